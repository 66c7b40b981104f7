"""Filters of interactions: k-core, users of all domains, the most recent interactions of each user."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hafvt.data.dataset import Bool, Int32


class KCore(NamedTuple):
    """Masks of the interactions and of the items that pass `k_core`."""

    interactions: Bool
    items: Bool


def is_active_in_all_domains(users: Int32, domains: Int32, num_domains: int, minimum: int) -> Bool:
    """Return which users have at least `minimum` interactions in every domain, (largest user + 1,).

    Args:
        users: (n,) user of each interaction.
        domains: (n,) domain of each interaction.
        num_domains: number of domains, those without interactions included.
        minimum: 0 accepts every user.
    """
    num_users = int(users.max(initial=-1)) + 1
    counts = np.bincount(users.astype(np.int64) * num_domains + domains, minlength=num_users * num_domains)
    is_active: Bool = counts.reshape(num_users, num_domains).min(axis=1) >= minimum
    return is_active


def k_core(
    users: Int32,
    items: Int32,
    item_domains: Int32,
    *,
    min_per_domain: int,
    min_per_item: int,
    min_per_user: int = 0,
) -> KCore:
    """Return the largest set of interactions in which users and items have enough interactions.

    Removing an item removes interactions of users and vice versa, so both filters repeat until neither
    removes anything.

    Args:
        users: (n,) user of each interaction.
        items: (n,) item of each interaction.
        item_domains: (items,) domain of each item.
        min_per_domain: interactions that a user needs in every domain; 0 accepts every user.
        min_per_item: interactions that an item needs; 0 accepts all items, those without interactions too.
        min_per_user: interactions that a user needs in all domains together.
    """
    num_domains = int(item_domains.max()) + 1
    rows = np.arange(len(users))
    while True:
        num_rows = len(rows)
        domains = item_domains[items[rows]]
        is_active = is_active_in_all_domains(users[rows], domains, num_domains, min_per_domain)
        is_active &= np.bincount(users[rows], minlength=len(is_active)) >= min_per_user
        rows = rows[is_active[users[rows]]]
        is_frequent = np.bincount(items[rows], minlength=len(item_domains)) >= min_per_item
        rows = rows[is_frequent[items[rows]]]
        if len(rows) == num_rows:
            break
    interactions = np.zeros(len(users), dtype=bool)
    interactions[rows] = True
    return KCore(interactions, is_frequent)


def is_recent(users: Int32, max_length: int) -> Bool:
    """Return which interactions are among the last `max_length` of their user.

    Args:
        users: (n,) user of each interaction; those of a user are adjacent, oldest first.
        max_length: how many interactions of each user are recent, at most.
    """
    ends = np.searchsorted(users, users, side="right")
    recent: Bool = np.arange(len(users)) >= ends - max_length
    return recent
