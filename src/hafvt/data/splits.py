"""Splits: which interactions are for training, and which are validation and test targets."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.cut_times import TimeScale
from hafvt.data.dataset import Int64
from hafvt.errors import ArgumentError, HafvtError

MIN_LENGTH = 3  # of a history with targets: one interaction each for training, validation and test


class Split(NamedTuple):
    """A split of sorted histories; see `Dataset`.

    Attributes:
        train_lengths: (users,) how many interactions at the start of each history are for training.
        valid: (n,) positions of the validation targets, ascending.
        test: (n,) positions of the test targets, ascending.
    """

    train_lengths: Int64
    valid: Int64
    test: Int64


def leave_one_out(offsets: Int64) -> Split:
    """Use the last interaction of each user for test, the second to last for validation.

    Users with fewer than 3 interactions have no target: all their interactions are for training.

    Args:
        offsets: (users + 1,) where each user's history starts.
    """
    lengths = np.diff(offsets)
    has_targets = lengths >= MIN_LENGTH
    ends = offsets[1:][has_targets]
    return Split(np.where(has_targets, lengths - 2, lengths), ends - 2, ends - 1)


def split_by_time(offsets: Int64, times: npt.NDArray[Any], *, valid_share: float, test_share: float) -> Split:
    """Split all histories at the same two times.

    The times are those of actual interactions, such that about `test_share` of all interactions happen at or
    after the second and about `valid_share` between the two. An interaction at exactly one of the times
    belongs to the later part. Interactions after the first time are targets if their user has an earlier one.

    Args:
        offsets: (users + 1,) where each user's history starts.
        times: (interactions,) time of each interaction, ascending within each user.
        valid_share: approximate share of the interactions in the validation period.
        test_share: approximate share of the interactions in the test period.

    Raises:
        HafvtError: no interaction is left to train on.
    """
    ordered = np.sort(times)
    shares = np.array([1 - valid_share - test_share, 1 - test_share])
    ranks = np.ceil(shares * len(times) - 1e-9).astype(np.int64)
    valid_from, test_from = ordered[np.clip(ranks, 0, len(times) - 1)]
    if valid_from == ordered[0]:
        raise HafvtError(
            f"nothing to train on: no interaction is before {valid_from}, where validation starts: "
            "lower --valid-share and --test-share or use --split leave-one-out"
        )
    return cut_at_times(offsets, times, valid_from, test_from)


def split_at_dates(
    offsets: Int64, times: npt.NDArray[Any], scale: TimeScale, dates: tuple[int, int]
) -> Split:
    """Split all histories at two given times, see `cut_at_times`.

    Args:
        offsets: (users + 1,) where each user's history starts.
        times: (interactions,) time of each interaction, ascending within each user.
        scale: of the times.
        dates: first time of the validation period and of the test period, in the unit of the times.

    Raises:
        ArgumentError: the times are not in order.
        HafvtError: a part of the split is empty.
    """
    valid_from, test_from = dates
    option = f"--split-at {scale.format(valid_from)} {scale.format(test_from)}"
    if valid_from >= test_from:
        raise ArgumentError(f"{option}: give the start of validation first, then the later start of test")
    split = cut_at_times(offsets, times, valid_from, test_from)
    span = f"from {scale.format(scale.first)} to {scale.format(scale.last)}"
    for name, size in (
        ("training interaction", int(split.train_lengths.sum())),
        ("validation target", len(split.valid)),
        ("test target", len(split.test)),
    ):
        if not size:
            raise HafvtError(f"{option} leaves no {name}: choose other times; the interactions are {span}")
    return split


def cut_at_times(offsets: Int64, times: npt.NDArray[Any], valid_from: float, test_from: float) -> Split:
    """Split all histories at two times: training before the first, test from the second on.

    Interactions from the first time on are targets if their user has an earlier one.

    Args:
        offsets: (users + 1,) where each user's history starts.
        times: (interactions,) time of each interaction, ascending within each user.
        valid_from: first time of the validation period.
        test_from: first time of the test period.
    """
    train_before = np.concatenate([[0], np.cumsum(times < valid_from)])  # (interactions + 1,)
    train_lengths = train_before[offsets[1:]] - train_before[offsets[:-1]]
    has_history = np.ones(len(times), dtype=bool)  # whether the user has an earlier interaction
    has_history[offsets[:-1][np.diff(offsets) > 0]] = False
    valid = np.flatnonzero(has_history & (times >= valid_from) & (times < test_from))
    test = np.flatnonzero(has_history & (times >= test_from))
    return Split(train_lengths, valid, test)


def published_split(offsets: Int64, parts: npt.NDArray[np.object_]) -> Split:
    """Return the split that the publisher of a dataset made.

    Args:
        offsets: (users + 1,) where each user's history starts.
        parts: (interactions,) "train", "valid", "test", or None for an interaction that is neither trained
            on nor a target. The training interactions of a user come first in the history.
    """
    train_before = np.concatenate([[0], np.cumsum(parts == "train")])  # (interactions + 1,)
    train_lengths = train_before[offsets[1:]] - train_before[offsets[:-1]]
    return Split(train_lengths, np.flatnonzero(parts == "valid"), np.flatnonzero(parts == "test"))
