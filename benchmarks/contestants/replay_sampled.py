"""SASRec of RePlay with its sampled cross-entropy, driven by a bare loop; a batch shares its negatives."""

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
from replay.nn.loss import CESampled
from replay_sasrec import build


def main() -> None:
    options = arguments()
    log, start_gib = read(options.log), resident_gib()
    torch.manual_seed(0)
    model = build(log.items, SAMPLED_WIDTH, BLOCKS, HEADS, DROPOUT, SAMPLED_LENGTH).train()
    model.loss = CESampled()
    model.loss.logits_callback = model.get_logits
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)

    def train(first: int, count: int) -> None:
        for cut in range(first * SAMPLED_BATCH, (first + count) * SAMPLED_BATCH, SAMPLED_BATCH):
            rows = torch.from_numpy(np.stack(log.train[cut : cut + SAMPLED_BATCH])).long()
            inputs, labels = rows[:, :-1], rows[:, 1:, None]
            optimizer.zero_grad()
            values = model(
                {"item_id": inputs},
                torch.ones_like(inputs, dtype=torch.bool),
                positive_labels=labels,
                negative_labels=torch.randint(log.items, (NEGATIVES,)),
                target_padding_mask=torch.ones_like(labels, dtype=torch.bool),
            )
            values["loss"].backward()
            optimizer.step()

    train(0, WARMUP_STEPS)
    with Meter() as steps:
        train(WARMUP_STEPS, options.passes)
    write_steps(options.out, steps, options.passes, start_gib, f"replay-rec {version('replay-rec')}")


if __name__ == "__main__":
    main()
