"""Which interactions are trained on, and which are the targets of validation and test."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Int64
from hafvt.errors import HafvtError

SHORTEST = 3  # one interaction each for training, validation and test


class Split(NamedTuple):
    """A split of sorted histories; see `Dataset`.

    Attributes:
        train_ends: (users,) how many leading interactions of each user may be trained on.
        valid: (n,) positions of the validation targets, ascending.
        test: (n,) positions of the test targets, ascending.
    """

    train_ends: Int64
    valid: Int64
    test: Int64


def leave_one_out(offsets: Int64) -> Split:
    """Takes the last interaction of each user for test, the last but one for validation.

    Users with fewer than 3 interactions are trained on in full and never are targets.

    Args:
        offsets: (users + 1,) where each user's history starts.
    """
    lengths = np.diff(offsets)
    targets = lengths >= SHORTEST
    ends = offsets[1:][targets]
    return Split(np.where(targets, lengths - 2, lengths), ends - 2, ends - 1)


def by_time(offsets: Int64, times: npt.NDArray[Any], *, valid_share: float, test_share: float) -> Split:
    """Cuts all histories at the same two moments.

    The moments are the times of actual interactions, such that about `test_share` of all interactions
    happen at or after the second and `valid_share` between the two. What happens at a moment belongs to the
    part after it. Interactions after the first moment are targets if their user has an earlier one.

    Args:
        offsets: (users + 1,) where each user's history starts.
        times: (interactions,) time of each interaction, ascending within each user.
        valid_share: about this share of all interactions lies in the window of validation.
        test_share: likewise, of test.

    Raises:
        HafvtError: no interaction is left to train on.
    """
    rank_targets = np.sort(times)
    ranks = np.ceil(np.array([1 - valid_share - test_share, 1 - test_share]) * len(times) - 1e-9).astype(
        np.int64
    )
    valid_from, test_from = rank_targets[np.clip(ranks, 0, len(times) - 1)]
    if valid_from == rank_targets[0]:
        raise HafvtError(
            f"nothing to train on: no interaction is before {valid_from}, where validation starts: "
            "lower --valid-share and --test-share or use --split leave-one-out"
        )
    early = np.concatenate([[0], np.cumsum(times < valid_from)])
    train_ends = early[offsets[1:]] - early[offsets[:-1]]
    follows = np.ones(len(times), dtype=bool)  # whether the user has an earlier interaction
    follows[offsets[:-1][np.diff(offsets) > 0]] = False
    valid = np.flatnonzero(follows & (times >= valid_from) & (times < test_from))
    test = np.flatnonzero(follows & (times >= test_from))
    return Split(train_ends, valid, test)
