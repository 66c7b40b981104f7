"""Repeats: next items that the history contains already. They decide what is a candidate by default."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_REPEAT_SHARE = 0.05
"""If at most this share of a domain's next items are repeats, items of the history are no candidates."""

Candidates = Literal["auto", "unseen", "all"]
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
    users = np.repeat(np.arange(len(train_lengths)), train_lengths)  # (training interactions,)
    first = train_lengths.cumsum() - train_lengths  # of each user, among training interactions
    places = np.arange(len(users)) - first[users]
    train_items = np.asarray(items)[np.asarray(offsets)[users] + places]
    order = np.lexsort((train_items, users))
    is_repeat = (np.diff(users[order]) == 0) & (np.diff(train_items[order]) == 0)
    domains = np.searchsorted(domain_starts, train_items, side="right") - 1
    counts = np.bincount(domains[places > 0], minlength=len(domain_starts))
    repeats = np.bincount(domains[order[1:][is_repeat]], minlength=len(domain_starts))
    return [RepeatCounts(*pair) for pair in zip(counts.tolist(), repeats.tolist(), strict=True)]
