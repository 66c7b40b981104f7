"""Repeats: next items that the history contains already. They decide what is a candidate by default."""

from __future__ import annotations

from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_REPEAT_SHARE = 0.05
"""If at most this share of a domain's next items are repeats, items of the history are no candidates."""

CHUNK = 2**20  # interactions that are sorted at a time, which bounds memory

CandidateRule = Literal["auto", "unseen", "all"]
"""Whether items of the history are candidates: never ("unseen"), always ("all"), or in the domains where
users often choose an item again ("auto")."""


class RepeatCounts(NamedTuple):
    """Next items of the training part in one domain: all of them, and those that are repeats."""

    next_items: int
    repeats: int

    @property
    def share(self) -> float:
        """The share of repeats, 0 without next items."""
        return self.repeats / max(self.next_items, 1)


def find_repeats(items: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return whether each interaction is a repeat: its user's history contains the item before it.

    Args:
        items: (interactions,) item of each interaction, user after user.
        offsets: (users + 1,) where each user's history starts.
    """
    items, offsets = np.asarray(items), np.asarray(offsets)
    is_repeat = np.zeros(len(items), dtype=np.bool_)
    bounds = np.searchsorted(offsets, np.arange(0, len(items), CHUNK))  # users, by chunks of whole histories
    for first, last in pairwise(np.unique([*bounds, len(offsets) - 1]).tolist()):
        start, stop = offsets[first], offsets[last]
        users = np.repeat(np.arange(last - first), np.diff(offsets[first : last + 1]))
        chunk_items = items[start:stop]
        order = np.lexsort((chunk_items, users))  # stable: the earliest of equal items comes first
        is_same = (np.diff(users[order]) == 0) & (np.diff(chunk_items[order]) == 0)
        is_repeat[start + order[1:][is_same]] = True
    return is_repeat


def count_repeats(
    items: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    train_lengths: npt.NDArray[np.int64],
    domain_starts: list[int],
) -> list[RepeatCounts]:
    """Count repeats in the training part by domain.

    Args:
        items: (interactions,) item of each interaction, user after user.
        offsets: (users + 1,) where each user's history starts.
        train_lengths: (users,) how many interactions at the start of each history are for training.
        domain_starts: first item of each domain.
    """
    lengths = np.diff(offsets)
    places = np.arange(len(items)) - np.repeat(offsets[:-1], lengths)  # within each history
    is_next = (places > 0) & (places < np.repeat(train_lengths, lengths))
    domains = np.searchsorted(domain_starts, np.asarray(items)[is_next], side="right") - 1
    counts = np.bincount(domains, minlength=len(domain_starts))
    repeats = np.bincount(domains[find_repeats(items, offsets)[is_next]], minlength=len(domain_starts))
    return [RepeatCounts(*pair) for pair in zip(counts.tolist(), repeats.tolist(), strict=True)]
