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
    for first, last in user_chunks(offsets):
        start, stop = offsets[first], offsets[last]
        is_repeat[start:stop] = _find_repeats(items[start:stop], np.diff(offsets[first : last + 1]))
    return is_repeat


def user_chunks(offsets: npt.NDArray[np.int64]) -> list[tuple[int, int]]:
    """Return ranges of users, first and end, with about `CHUNK` interactions each."""
    bounds = np.searchsorted(offsets, np.arange(0, offsets[-1], CHUNK))
    return list(pairwise(np.unique([*bounds, len(offsets) - 1]).tolist()))


def _find_repeats(items: npt.NDArray[np.int32], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Return which interactions are repeats, see `find_repeats`, of histories of these lengths."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((items, users))  # stable: the earliest of equal items comes first
    is_same = (np.diff(users[order]) == 0) & (np.diff(items[order]) == 0)
    is_repeat = np.zeros(len(items), dtype=np.bool_)
    is_repeat[order[1:][is_same]] = True
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
    totals = np.zeros((len(domain_starts), 2), dtype=np.int64)
    for first, last in user_chunks(offsets):
        start, lengths = offsets[first], np.diff(offsets[first : last + 1])
        chunk_items = np.asarray(items[start : offsets[last]])
        places = np.arange(len(chunk_items)) - np.repeat(offsets[first:last] - start, lengths)
        is_next = (places > 0) & (places < np.repeat(train_lengths[first:last], lengths))
        domains = np.searchsorted(domain_starts, chunk_items[is_next], side="right") - 1
        repeats = domains[_find_repeats(chunk_items, lengths)[is_next]]
        totals[:, 0] += np.bincount(domains, minlength=len(domain_starts))
        totals[:, 1] += np.bincount(repeats, minlength=len(domain_starts))
    return [RepeatCounts(*pair) for pair in totals.tolist()]
