"""SASRec and BERT4Rec of RecTools, by its own trainer.

Settings: `model` ("sasrec" or "bert4rec"), `ligr` (whether the blocks are LiGR's), `max_length`, and
arguments of the library's class, such as `n_factors`, `loss` and `lr`.
"""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from convergence import UNKNOWN_ITEM, ExternalCurve, ExternalModel, longest_input, read_trial, train_windows
from pytorch_lightning import Callback, Trainer
from rectools.models import BERT4RecModel, SASRecModel
from rectools.models.nn.transformers.ligr import LiGRLayers
from rectools_sasrec import table

from hafvt.data.dataset import Dataset

warnings.filterwarnings("ignore")


class ValidateAfterEpoch(Callback):
    """Ranks the validation targets after each epoch, and ends the training when it has converged."""

    def __init__(self, curve: ExternalCurve, max_length: int) -> None:
        self.curve, self.max_length = curve, max_length

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Wrap the network, which the library has built by now."""
        self.model = external_model(pl_module, self.curve.trial.data, self.max_length)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Validate."""
        trainer.should_stop = self.curve.validate(self.model)


def external_model(module: Any, data: Dataset, max_length: int) -> ExternalModel:
    """Return the library's model; items that its training did not have are not recommended."""
    preparator = module.data_preparator
    known = np.asarray(preparator.get_known_item_ids(), dtype=np.int64)
    numbers = np.zeros(data.num_items, dtype=np.int64)  # the library's number of each item, 0 if it has none
    numbers[known] = preparator.n_item_extra_tokens + np.arange(len(known))

    def score(histories: list[np.ndarray]) -> torch.Tensor:
        rows = [numbers[history] for history in histories]
        sessions = [(list(row[row > 0]) or [0], [], {}) for row in rows]
        batch = preparator._collate_fn_recommend(sessions)
        states, items = module._get_user_item_embeddings([batch], "cpu")
        return (states @ items[numbers].T).masked_fill_(torch.from_numpy(numbers == 0), UNKNOWN_ITEM)

    return ExternalModel(module.torch_model, score, data, max_length)


def main() -> None:
    trial = read_trial()
    curve = ExternalCurve(trial)
    settings = dict(trial.settings)
    name, max_length = settings.pop("model"), longest_input(trial.data, settings.pop("max_length"))
    if settings.pop("ligr", False):
        settings |= {"transformer_layers_type": LiGRLayers, "use_key_padding_mask": True}
    watch = ValidateAfterEpoch(curve, max_length)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=trial.epochs,
            accelerator="cpu",
            enable_checkpointing=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[watch],
        )

    # BERT4Rec reads one item less than its session, as the mask takes a place.
    settings |= {"get_trainer_func": trainer, "session_max_len": max_length + (name == "bert4rec")}
    model = (BERT4RecModel if name == "bert4rec" else SASRecModel)(**settings)
    model.fit(table(train_windows(trial.data, max_length)))  # each window as a user of its own
    watch = model.fit_trainer.callbacks[0]  # the library trains with a copy of the trainer
    watch.curve.finish(watch.model, f"RecTools {version('rectools')}")


if __name__ == "__main__":
    main()
