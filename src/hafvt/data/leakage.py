"""Leakage: how much of the future of other users a training knows, seen from the targets."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.data.repeats import user_chunks


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
    targets = np.concatenate([data.valid, data.test])
    target_times = np.sort(data.times[targets])
    # later[n]: training interactions that are later than the first n targets, but not than the next one
    later = np.zeros(len(targets) + 1, dtype=np.int64)
    for first, last in user_chunks(data.offsets):
        start, lengths = data.offsets[first], np.diff(data.offsets[first : last + 1])
        places = np.arange(data.offsets[last] - start) - np.repeat(data.offsets[first:last] - start, lengths)
        is_train = places < np.repeat(data.train_lengths[first:last], lengths)
        train_times = np.sort(data.times[start : data.offsets[last]][is_train])
        later += np.bincount(np.searchsorted(target_times, train_times), minlength=len(later))
    num_later = later[::-1].cumsum()[::-1][1:]  # of each target
    num_train = int(data.train_lengths.sum())
    share = float(num_later.mean()) / max(num_train, 1) if len(targets) else 0.0
    return Leakage(len(targets), int((num_later > 0).sum()), share)
