"""Our SASRec with a sampled softmax: the steps of `hafvt train`, without its average."""

from __future__ import annotations

from importlib.metadata import version

import numpy as np
import torch
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

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.features.item_features import ItemFeatures
from hafvt.models import build_model, configure
from hafvt.ops.device import compute_dtype
from hafvt.training.optimizer import RowAdam


def main() -> None:
    options = arguments()
    log, start_gib = read(options.log), resident_gib()
    params = {
        "max_length": SAMPLED_LENGTH,
        "width": SAMPLED_WIDTH,
        "blocks": BLOCKS,
        "heads": HEADS,
        "dropout": DROPOUT,
        "num_negatives": NEGATIVES,
    }
    torch.manual_seed(0)
    # Equal train counts: negatives are drawn uniformly.
    features = ItemFeatures((Domain("all", 0, log.items),), {}, torch.ones(log.items))
    model = build_model("sasrec", features, configure("sasrec", params=params)).train()
    optimizer = RowAdam(model.parameters(), lr=RATE, fused=True)
    uses_bfloat16 = compute_dtype(torch.device("cpu")) == torch.bfloat16  # as `hafvt train` chooses

    def train(first: int, count: int) -> None:
        for cut in range(first * SAMPLED_BATCH, (first + count) * SAMPLED_BATCH, SAMPLED_BATCH):
            rows = np.stack(log.train[cut : cut + SAMPLED_BATCH])
            batch = Batch(torch.from_numpy(rows).long(), torch.full((SAMPLED_BATCH,), rows.shape[1]))
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=uses_bfloat16):
                loss = model.loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    train(0, WARMUP_STEPS)
    with Meter() as steps:
        train(WARMUP_STEPS, options.passes)
    write_steps(options.out, steps, options.passes, start_gib, f"hafvt {version('hafvt')}")


if __name__ == "__main__":
    main()
