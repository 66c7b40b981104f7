"""Items that are held out of training altogether, to measure what a model makes of items it never met."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Dataset, Int32, Int64

Bool = npt.NDArray[np.bool_]


def draw_items(item_domains: Int32, share: float, seed: int) -> Bool:
    """Draws a share of each domain's items, (items,) bool; at least one and never all, if the share is not 0.

    Args:
        item_domains: (items,) number of each item's domain.
        share: from 0 to below 1.
        seed: of the draw; together with the items it decides everything.
    """
    random = np.random.default_rng([seed, 3])
    drawn = np.zeros(len(item_domains), dtype=np.bool_)
    for domain in np.unique(item_domains) if share else []:
        mine = np.flatnonzero(item_domains == domain)
        count = min(max(round(share * len(mine)), 1), len(mine) - 1)
        drawn[random.choice(mine, count, replace=False)] = True
    return drawn


def cold_targets(users: Int32, items: Int32, held_out: Bool, offsets: Int64, train_ends: Int64) -> Int64:
    """Returns the interactions with held-out items that a model may be asked for, (n, 3).

    These are the ones after the training part of their user's history, as the targets of validation and test
    are: what came later was not trained on either.

    Args:
        users: (interactions,) user of each interaction, held-out items included, sorted by user and time.
        items: (interactions,) its item.
        held_out: (items,) bool.
        offsets: (users + 1,) where each user's history starts once the held-out items are taken out of it.
        train_ends: (users,) see `Dataset`.

    Returns:
        Columns: see `Dataset.cold`.
    """
    out = held_out[items]
    before = np.cumsum(~out)[out]  # the interactions left before each, all users together
    found = np.stack([users[out], before, items[out]], axis=1).astype(np.int64)
    user, position = found[:, 0], found[:, 1]
    return found[(position > offsets[user]) & (position >= offsets[user] + train_ends[user])]


def cold_view(data: Dataset, max_length: int) -> Dataset:
    """Returns a dataset in memory whose test targets are the cold ones, in their order.

    Each "user" of it is a cold target: the history that leads to it, then the target.

    Args:
        data: has cold targets.
        max_length: histories are cut to their last so many items.
    """
    user, position, item = np.asarray(data.cold).T
    lengths = np.minimum(position - np.asarray(data.offsets)[user], max_length)
    offsets = np.concatenate([[0], (lengths + 1).cumsum()])
    rows = np.repeat(np.arange(len(item)), lengths + 1)
    slots = np.arange(offsets[-1]) - offsets[rows] - lengths[rows]  # 0 at the target, -1 just before it
    inside = slots < 0
    items = np.empty(offsets[-1], dtype=np.int32)
    items[inside] = np.asarray(data.items)[(position[rows] + slots)[inside]]
    items[~inside] = item
    return replace(data, items=items, offsets=offsets, test=offsets[1:] - 1)
