"""The seconds that steps of a training take in this process."""

from __future__ import annotations

import time
from statistics import median

from hafvt.data.batches import TrainBatches
from hafvt.training.trainer import Trainer


def step_seconds(trainer: Trainer, batches: TrainBatches, steps: int, *, skip: int) -> tuple[float, float]:
    """Return the median wall and processor seconds of `steps` steps, after `skip` steps that do not count."""
    wall, processor = [], []
    for batch, number in zip(batches.epoch(0), range(steps + skip), strict=False):
        starts = time.perf_counter(), time.process_time()
        trainer.train_step(batch)
        trainer.ema.update(number + 1)
        wall.append(time.perf_counter() - starts[0])
        processor.append(time.process_time() - starts[1])
    return median(wall[skip:]), median(processor[skip:])
