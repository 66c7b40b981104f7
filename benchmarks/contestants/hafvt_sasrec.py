"""Our SASRec, by `hafvt train`'s own loop."""

from __future__ import annotations

from importlib.metadata import version
from typing import cast

import numpy as np
import torch
from common import (
    BATCH,
    BLOCKS,
    DROPOUT,
    HEADS,
    LENGTH,
    RATE,
    WIDTH,
    K,
    Meter,
    arguments,
    read,
    right_padded,
    write,
)

from hafvt import train
from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset, Domain
from hafvt.models.sasrec import SasRec
from hafvt.models.sequences import dot_scores
from hafvt.ops.top_k import top_k_columns


def main() -> None:
    options = arguments()
    log = read(options.log)
    data = Dataset.open(options.log.parent / "data")
    params = {
        "max_length": LENGTH,
        "width": WIDTH,
        "blocks": BLOCKS,
        "heads": HEADS,
        "dropout": DROPOUT,
    }
    with Meter() as training:
        run = train(
            "sasrec",
            data,
            options.out / "run",
            params=params,
            epochs=options.passes,
            batch_size=BATCH,
            learning_rate=RATE,
            ema_decay=0,  # nobody else averages
            validate_every=options.passes,
            patience=0,
            test=False,
        )
    model, every_item = cast(SasRec, run.model.eval()), Domain("both", 0, log.items)
    with Meter() as ranking, torch.inference_mode():
        top = np.empty((len(log.history), K), dtype=np.int64)
        order = np.argsort([len(row) for row in log.history], kind="stable")  # as `hafvt evaluate` does
        for cut in range(0, len(order), 256):
            users = order[cut : cut + 256]
            rows = [log.history[user] for user in users]
            batch = Batch(
                torch.from_numpy(right_padded(rows, len(rows[-1]), 0)),
                torch.tensor([len(row) for row in rows]),
            )
            scores = dot_scores(model.history_vectors(batch), model.scoring_table, every_item, None)
            nothing = np.empty(0, dtype=np.int64)
            top[users] = [top_k_columns(row, K, nothing) for row in scores.numpy()]
            del scores  # so that the next batch has its memory
    write(options.out, log, options.passes, training, ranking, top, f"hafvt {version('hafvt')}")


if __name__ == "__main__":
    main()
