"""SASRec of RecTools, by its own trainer."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
from common import BATCH, BLOCKS, DROPOUT, HEADS, LENGTH, RATE, WIDTH, K, Meter, arguments, read, write
from pytorch_lightning import Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel

warnings.filterwarnings("ignore")


def table(rows: list[np.ndarray]) -> Dataset:
    """Returns histories as RecTools has them."""
    lengths = [len(row) for row in rows]
    frame = pd.DataFrame(
        {
            Columns.User: np.repeat(np.arange(len(rows)), lengths),
            Columns.Item: np.concatenate(rows),
            Columns.Weight: 1,
            Columns.Datetime: pd.to_datetime(np.concatenate([np.arange(n) for n in lengths]), unit="D"),
        }
    )
    return Dataset.construct(frame)


def main() -> None:
    options = arguments()
    log = read(options.log)
    train, history = table(log.train), table(log.history)

    def trainer() -> Any:
        return Trainer(
            max_epochs=options.passes,
            accelerator="cpu",
            enable_checkpointing=False,
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    model = SASRecModel(
        n_blocks=BLOCKS,
        n_heads=HEADS,
        n_factors=WIDTH,
        dropout_rate=DROPOUT,
        session_max_len=LENGTH,
        loss="softmax",
        lr=RATE,
        batch_size=BATCH,
        epochs=options.passes,
        get_trainer_func=trainer,
    )
    with Meter() as training:
        model.fit(train)
    users = np.arange(len(log.history))
    with Meter() as ranking:
        values = model.recommend(users, history, k=K, filter_viewed=False, on_unsupported_targets="ignore")
    top = np.full((len(users), K), -1)
    top[values[Columns.User], values[Columns.Rank] - 1] = values[Columns.Item]
    write(options.out, log, options.passes, training, ranking, top, f"rectools {version('rectools')}")


if __name__ == "__main__":
    main()
