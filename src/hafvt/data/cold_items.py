"""Items that are held out of training, to measure recommendations of items without interactions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from hafvt.data.dataset import Bool, Dataset, Int32, Int64


def draw_cold_items(item_domains: Int32, share: float, seed: int) -> Bool:
    """Draw a share of the items of each domain: at least one and never all, unless the share is 0.

    Args:
        item_domains: (items,) domain index of each item.
        share: from 0 to below 1.
        seed: the draw depends on nothing but seed and items.

    Returns:
        (items,) whether an item is held out.
    """
    random = np.random.default_rng([seed, 3])
    is_cold = np.zeros(len(item_domains), dtype=np.bool_)
    for domain in np.unique(item_domains) if share else []:
        items = np.flatnonzero(item_domains == domain)
        count = min(max(round(share * len(items)), 1), len(items) - 1)
        is_cold[random.choice(items, count, replace=False)] = True
    return is_cold


def find_cold_targets(
    users: Int32, items: Int32, is_cold: Bool, offsets: Int64, train_lengths: Int64
) -> Int64:
    """Return the interactions with held-out items that follow the training part of their user's history.

    Like validation and test targets, they happen after everything that the model is trained on.

    Args:
        users: (interactions,) user of each interaction, held-out items included, sorted by user and time.
        items: (interactions,) item of each interaction.
        is_cold: (items,) whether an item is held out.
        offsets: (users + 1,) where each user's history starts once the held-out items are removed.
        train_lengths: (users,) see `Dataset`.

    Returns:
        (n, 3), see `Dataset.cold_targets`.
    """
    cold_interactions = is_cold[items]
    positions = np.cumsum(~cold_interactions)[cold_interactions]  # in the flat array without held-out items
    user = users[cold_interactions]
    targets = np.stack([user, positions, items[cold_interactions]], axis=1).astype(np.int64)  # (n, 3)
    return targets[(positions > offsets[user]) & (positions >= offsets[user] + train_lengths[user])]


def cold_target_view(data: Dataset, max_length: int) -> Dataset:
    """Return an in-memory dataset whose test targets are the cold targets of `data`, in their order.

    It has one user for each cold target, whose history leads to that target.

    Args:
        data: a dataset with cold targets.
        max_length: histories are cut to their last `max_length` items.
    """
    user, position, item = np.asarray(data.cold_targets).T
    lengths = np.minimum(position - np.asarray(data.offsets)[user], max_length)
    offsets = np.concatenate([[0], (lengths + 1).cumsum()])
    rows = np.repeat(np.arange(len(item)), lengths + 1)
    slots = np.arange(offsets[-1]) - offsets[rows] - lengths[rows]  # 0 at the target, -1 just before it
    is_history = slots < 0
    items = np.empty(offsets[-1], dtype=np.int32)
    items[is_history] = np.asarray(data.items)[(position[rows] + slots)[is_history]]
    items[~is_history] = item
    times = np.asarray(data.times)[position[rows] + np.minimum(slots, -1)]  # a target: of the item before it
    return replace(data, items=items, times=times, offsets=offsets, test=offsets[1:] - 1)
