"""Measures whether the date of a request tells anything about the next item."""

from __future__ import annotations

import numpy as np

from hafvt.data.dataset import SECONDS_PER_DAY, Dataset, Int64

RECENT_SECONDS = 30 * SECONDS_PER_DAY
OVERALL_SHARE = 0.3  # weight of the overall popularity beside the recent one
MAX_TARGETS = 10_000  # evenly spread over the users


def date_gain(data: Dataset) -> float | None:
    """Return how much better recent popularity explains the validation targets than overall popularity.

    It is the mean over targets of log(0.7 recent / overall + 0.3), where `overall` is the share of the
    target's item in the training interactions of its domain and `recent` is its share in the 30 days before
    the request. Where items are chosen alike at all times, it is negative, as shares of few days are noisy.

    Returns:
        The gain in nats; None if the dataset has no dates or no validation targets.
    """
    if data.seconds is None or not len(data.valid):
        return None
    targets = np.asarray(data.valid)[:: -(-len(data.valid) // MAX_TARGETS)]
    train = data.train_positions()
    items, times = np.asarray(data.items)[train].astype(np.int64), data.seconds[train]
    target_items = np.asarray(data.items)[targets].astype(np.int64)
    until = data.request_times(targets)
    domains, target_domains = data.domains_of(items), data.domains_of(target_items)
    is_target = np.isin(items, target_items)
    recent = _count(items[is_target], times[is_target], target_items, until)
    recent_total = _count(domains, times, target_domains, until)
    sizes = np.array([len(domain) for domain in data.domains])[target_domains]
    overall = (data.train_counts()[target_items] + 1) / (
        np.bincount(domains, minlength=len(data.domains))[target_domains] + sizes
    )
    shares = np.where(recent_total > 0, recent / np.maximum(recent_total, 1), overall)
    return float(np.log((1 - OVERALL_SHARE) * shares / overall + OVERALL_SHARE).mean())


def _count(values: Int64, times: Int64, wanted: Int64, until: Int64 | None) -> Int64:
    """Return how often each wanted value occurs in the 30 days before `until`, (n,) and (m,) -> (m,)."""
    assert until is not None
    if not len(values):
        return np.zeros(len(wanted), dtype=np.int64)
    first = min(int(times.min()), int(until.min()) - RECENT_SECONDS)
    span = max(int(times.max()), int(until.max())) - first + 1
    keys = np.sort(values * span + (times - first))
    start = wanted * span + (until - first)
    return np.searchsorted(keys, start) - np.searchsorted(keys, start - RECENT_SECONDS)
