"""Chronological order of interactions, and the order of those with equal times."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool, Int32, Int64
from hafvt.errors import warn

Times = npt.NDArray[Any]  # Int64 or Float64
MAX_DUPLICATE_SHARE = 1 / 3
"""Share of duplicates from which on `prepare` warns of a log that was written twice."""


class TimeTies(NamedTuple):
    """How often times leave the order of interactions open.

    Attributes:
        adjacent_pairs: pairs of adjacent interactions of one user.
        tied_pairs: pairs among them with equal times.
        duplicates: interactions that repeat another one: same user, item and time.
    """

    adjacent_pairs: int
    tied_pairs: int
    duplicates: int


def sort_histories(
    users: Int32,
    items: Int32,
    times: Times,
    *,
    tie_order: Literal["random", "input"],
    random: np.random.Generator,
    weights: npt.NDArray[np.float32] | None = None,
) -> Int64:
    """Return the order of interactions by user and time, (n,) row numbers.

    Args:
        users: (n,) user of each interaction.
        items: (n,) item of each interaction.
        times: (n,) time of each interaction.
        tie_order: order of interactions with equal user and time: "random", which does not depend on the
            order of the input, or the order of the "input".
        random: generator of the random order.
        weights: (n,) weight of each interaction, if there are any.
    """
    if tie_order == "input":
        return np.lexsort((times, users))
    # Sorting ties by item first makes their random order independent of the order of the rows.
    order = np.lexsort((items, times, users) if weights is None else (weights, items, times, users))
    group, slots = _tied(users[order], times[order])
    order[slots] = order[slots][np.lexsort((random.random(len(slots)), group))]
    return order


def user_offsets(users: Int32, num_users: int) -> Int64:
    """Return where each user's interactions start, (users + 1,), for interactions sorted by user."""
    return np.concatenate([[0], np.bincount(users, minlength=num_users).cumsum()]).astype(np.int64)


def is_not_duplicate(
    users: Int32,
    items: Int32,
    times: Times,
    weights: npt.NDArray[np.float32] | None,
    rule: Literal["drop", "last"],
) -> Bool:
    """Return which interactions remain if duplicates are removed, (n,).

    Args:
        users: (n,) user of each interaction.
        items: (n,) item of each interaction.
        times: (n,) time of each interaction.
        weights: (n,) weight of each interaction; the largest of equal interactions remains.
        rule: "drop" keeps one of all interactions with equal user, item and time; "last" keeps the last one
            of each user with each item.
    """
    keys = (times, items, users) if weights is None else (weights, times, items, users)
    order = np.lexsort(keys)
    is_same = (np.diff(users[order]) == 0) & (np.diff(items[order]) == 0)
    if rule == "drop":
        is_same &= times[order][1:] == times[order][:-1]
    remains = np.ones(len(users), dtype=np.bool_)
    remains[order[:-1][is_same]] = False
    return remains


def warn_of_duplicates(num_duplicates: int, num_interactions: int) -> None:
    """Warn if so many interactions are duplicates as in a log that was written twice."""
    if num_duplicates >= MAX_DUPLICATE_SHARE * num_interactions:
        warn(
            f"{num_duplicates:,} of {num_interactions:,} interactions have the user, item and time of "
            "another, as if the log was written twice, so that targets equal the items before them: use "
            "--duplicates drop"
        )


def count_ties(users: Int32, items: Int32, times: Times) -> TimeTies:
    """Count equal times in sorted histories; see `sort_histories` for the arguments."""
    adjacent_pairs = len(users) - len(np.unique(users))
    group, slots = _tied(users, times)
    tied_pairs = len(slots) - len(np.unique(group))
    tied_items = items[slots]
    by_item = np.lexsort((tied_items, group))
    is_repeated = (np.diff(group[by_item]) == 0) & (np.diff(tied_items[by_item]) == 0)
    return TimeTies(adjacent_pairs, tied_pairs, int(is_repeated.sum()))


def _tied(users: Int32, times: Times) -> tuple[Int64, Int64]:
    """Return group number and position of each interaction that shares user and time with a neighbor."""
    starts_group = np.ones(len(users) + 1, dtype=bool)  # the last entry closes the last group
    starts_group[1:-1] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    slots = np.flatnonzero(~(starts_group[:-1] & starts_group[1:]))
    return np.cumsum(starts_group[:-1])[slots], slots
