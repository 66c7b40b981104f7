"""Learning-rate schedules: a factor of the learning rate for each step."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from hafvt.errors import HafvtError
from hafvt.training.config import Schedule


def schedule_factor(schedule: Schedule, warmup_steps: int, num_steps: int, step: int) -> float:
    """Return the factor of the learning rate at a step, from 0.

    It rises linearly to 1 during `warmup_steps`. Then it stays 1 or falls to 0 at `num_steps`, linearly or as
    half a cosine.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    done = min((step - warmup_steps) / max(num_steps - warmup_steps, 1), 1.0)
    factors = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return factors[schedule]


def make_scheduler(
    optimizer: torch.optim.Optimizer,
    schedule: Schedule,
    warmup_steps: int,
    num_steps: int,
    finished_steps: int = 0,
) -> LambdaLR | None:
    """Return the scheduler of a training of `num_steps` steps; None for a constant rate without warm-up.

    Raises:
        HafvtError: the warm-up is as long as the training.
    """
    if schedule == "constant" and warmup_steps == 0:
        return None
    if warmup_steps >= num_steps:
        raise HafvtError(
            f"--warmup-steps is {warmup_steps:,}, but the training has {num_steps:,} steps: choose fewer"
        )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # which a scheduler that starts later than at step 0 needs
    return LambdaLR(
        optimizer,
        lambda step: schedule_factor(schedule, warmup_steps, num_steps, step),
        last_epoch=finished_steps - 1,
    )
