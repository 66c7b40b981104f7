"""Interactions in the order of time, and what to do where the time is the same."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Int32, Int64

Times = npt.NDArray[Any]  # Int64 or Float64


class Ties(NamedTuple):
    """How much of the order the times leave open.

    Attributes:
        neighbors: pairs of neighboring interactions of one user.
        tied: those of them that share their time.
        duplicates: interactions that repeat another one: same user, item and time.
    """

    neighbors: int
    tied: int
    duplicates: int


def sort_histories(
    users: Int32, items: Int32, times: Times, *, ties: Literal["random", "input"], random: np.random.Generator
) -> Int64:
    """Sorts by user and time.

    Args:
        users: (n,) user of each interaction.
        items: (n,) item of each interaction.
        times: (n,) time of each interaction.
        ties: what shares user and time gets a "random" order, which does not depend on the order of the
            input, or stays in the order of the "input".
        random: draws the random order.

    Returns:
        (n,) the interactions in their new order.
    """
    if ties == "input":
        return np.lexsort((times, users))
    # Sorting by item first makes the draw a matter of what there is, not of the rows' order; it goes then.
    order = np.lexsort((items, times, users))
    group, slots = _tied(users[order], times[order])
    order[slots] = order[slots][np.lexsort((random.random(len(slots)), group))]
    return order


def offsets_of(users: Int32, count: int) -> Int64:
    """Returns where each user's interactions start, (count + 1,), for interactions sorted by user."""
    return np.concatenate([[0], np.bincount(users, minlength=count).cumsum()]).astype(np.int64)


def count_ties(users: Int32, items: Int32, times: Times) -> Ties:
    """Counts equal times in sorted histories; see `sort_histories` for the arguments."""
    neighbors = len(users) - len(np.unique(users))
    group, slots = _tied(users, times)
    tied = len(slots) - len(np.unique(group))
    item = items[slots]
    by_item = np.lexsort((item, group))
    same = (np.diff(group[by_item]) == 0) & (np.diff(item[by_item]) == 0)
    return Ties(neighbors, tied, int(same.sum()))


def _tied(users: Int32, times: Times) -> tuple[Int64, Int64]:
    """Returns group and position of each interaction that shares user and time with a neighbor."""
    new = np.ones(len(users) + 1, dtype=bool)  # the last entry closes the last group
    new[1:-1] = (users[1:] != users[:-1]) | (times[1:] != times[:-1])
    slots = np.flatnonzero(~(new[:-1] & new[1:]))
    return np.cumsum(new[:-1])[slots], slots
