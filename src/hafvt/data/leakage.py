"""Leakage: how much of the future of other users a training knows, seen from the targets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hafvt.data.dataset import Dataset


class Leakage(NamedTuple):
    """Training interactions that are later than the validation and test targets.

    Attributes:
        targets: number of targets.
        leaking_targets: targets with at least one later training interaction. It is of another user, as the
            training interactions of the own user come before the target.
        later_share: mean over all targets of the share of the training interactions that are later.
    """

    targets: int
    leaking_targets: int
    later_share: float

    def __str__(self) -> str:
        """Return one line with the remedy."""
        share = self.leaking_targets / max(self.targets, 1)
        return (
            f"leakage: training has later interactions of other users for {self.leaking_targets:,} of "
            f"{self.targets:,} targets ({share:.1%}), on average {self.later_share:.1%} of all training "
            "interactions: a split by time (prepare --split time or --split-at) has none"
        )


def measure_leakage(data: Dataset) -> Leakage:
    """Return how many validation and test targets are earlier than training interactions."""
    times = np.asarray(data.times)
    train_times = np.sort(times[data.train_positions()])
    target_times = times[np.concatenate([data.valid, data.test])]
    num_later = len(train_times) - np.searchsorted(train_times, target_times, side="right")
    share = float(num_later.mean()) / max(len(train_times), 1) if len(target_times) else 0.0
    return Leakage(len(target_times), int((num_later > 0).sum()), share)
