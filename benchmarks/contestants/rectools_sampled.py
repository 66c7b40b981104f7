"""SASRec of RecTools with its sampled softmax, by its own trainer; each target has negatives of its own."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

from common import (
    BLOCKS,
    DROPOUT,
    HEADS,
    NEGATIVES,
    RATE,
    SAMPLED_BATCH,
    SAMPLED_LENGTH,
    SAMPLED_WIDTH,
    WARMUP_STEPS,
    Meter,
    arguments,
    read,
    resident_gib,
    write_steps,
)
from pytorch_lightning import Callback, Trainer
from rectools.models import SASRecModel
from rectools_sasrec import table

warnings.filterwarnings("ignore")


METER = Meter()
"""Not held by the callback, which RecTools copies."""


class Steps(Callback):
    """Measures the steps after the first ones."""

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, batch_idx: int) -> None:
        """Start to measure after the first steps."""
        if batch_idx == WARMUP_STEPS:
            METER.__enter__()

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        """Stop to measure."""
        METER.__exit__()


def main() -> None:
    options = arguments()
    train = table(read(options.log).train)
    start_gib = resident_gib()

    def trainer() -> Any:
        return Trainer(
            max_epochs=1,
            limit_train_batches=WARMUP_STEPS + options.passes,
            accelerator="cpu",
            callbacks=[Steps()],
            enable_checkpointing=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_blocks=BLOCKS,
        n_heads=HEADS,
        n_factors=SAMPLED_WIDTH,
        dropout_rate=DROPOUT,
        session_max_len=SAMPLED_LENGTH,
        loss="sampled_softmax",
        n_negatives=NEGATIVES,
        lr=RATE,
        batch_size=SAMPLED_BATCH,
        epochs=1,
        get_trainer_func=trainer,
    )
    model.fit(train)
    write_steps(options.out, METER, options.passes, start_gib, f"rectools {version('rectools')}")


if __name__ == "__main__":
    main()
