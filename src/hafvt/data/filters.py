"""Which interactions stay: overlap of users, k-core, the last of each user. Pure functions on numbers."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Int32

Bool = npt.NDArray[np.bool_]


class Core(NamedTuple):
    """What stays.

    Attributes:
        interactions: (interactions,) which stay.
        items: (items,) which stay in the catalog.
    """

    interactions: Bool
    items: Bool


def active_everywhere(users: Int32, domains: Int32, count: int, least: int) -> Bool:
    """Returns which users have at least `least` interactions in every domain.

    Args:
        users: (n,) user of each interaction.
        domains: (n,) domain of each interaction.
        count: how many domains there are.
        least: in each; 0 takes everyone.

    Returns:
        (largest user + 1,)
    """
    size = int(users.max(initial=-1)) + 1
    met = np.bincount(users.astype(np.int64) * count + domains, minlength=size * count)
    enough: Bool = met.reshape(size, count).min(axis=1) >= least
    return enough


def core(users: Int32, items: Int32, item_domains: Int32, *, min_per_domain: int, min_per_item: int) -> Core:
    """Finds the largest part in which both conditions hold at once.

    Dropping items takes interactions from users and the other way round, so both are repeated until nothing
    changes.

    Args:
        users: (n,) user of each interaction.
        items: (n,) item of each interaction.
        item_domains: (items,) domain of each item.
        min_per_domain: interactions that a user needs in every domain; 0 keeps everyone.
        min_per_item: interactions that an item needs; 0 keeps all items, even those never met.
    """
    count = int(item_domains.max()) + 1
    left = np.arange(len(users))
    while True:
        before = len(left)
        domains = item_domains[items[left]]
        left = left[active_everywhere(users[left], domains, count, min_per_domain)[users[left]]]
        enough = np.bincount(items[left], minlength=len(item_domains)) >= min_per_item
        left = left[enough[items[left]]]
        if len(left) == before:
            break
    interactions = np.zeros(len(users), dtype=bool)
    interactions[left] = True
    return Core(interactions, enough)


def last_of_each(users: Int32, last: int) -> Bool:
    """Returns which interactions are among the last `last` of their user.

    Args:
        users: (n,) user of each interaction; the interactions of a user stand together, oldest first.
        last: how many to keep.
    """
    ends = np.searchsorted(users, users, side="right")
    kept: Bool = np.arange(len(users)) >= ends - last
    return kept
