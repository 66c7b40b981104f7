"""Estimate the softmax over a catalog from sampled items, for catalogs too large for the exact softmax.

One sample per step serves all queries. It is drawn with replacement, popular items more often. An item drawn
with probability q stands for 1 / (count * q) items, so its logit is lowered by log(count * q), the log-q
correction of Bengio and Senecal (2008); the estimated partition is then right on average. The target always
takes part, once, with its exact logit. The (N, count) logits of the sample are stored.

Items of a query's history may have a lower weight in the softmax than others (`SeenItems`). They have the
largest logits, so they enter the partition exactly, and the sample leaves them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.ops.catalog_softmax import SoftmaxQuery
from hafvt.ops.collectives import broadcast_

POPULARITY_POWER = 0.75
"""Sampling weight is (popularity + 1) to this power: 0 is uniform, 1 proportional."""


class ItemSample(NamedTuple):
    """Sampled items."""

    items: Tensor
    """(count,) row numbers of the whole table."""
    log_rate: Tensor
    """(count,) log of how often each item is drawn on average."""


class SeenItems(NamedTuple):
    """The history items of `SoftmaxQuery.log_subtracted_mass`, which subtracts a share of their weight."""

    items: Tensor
    """(N, T) row numbers of the whole table; -1 for none."""
    log_odds: Tensor
    """() log of the remaining share over the subtracted share of their weight."""


def popularity_weights(popularity: Tensor) -> Tensor:
    """Return the sampling weight of each item, from its training interactions, (V,) -> (V,)."""
    return (popularity.double() + 1) ** POPULARITY_POWER


def cumulative_weights(weights: Tensor) -> Tensor:
    """Return the sum of the sampling weights of the items up to each one, (V,) -> (V,) float64 on the CPU.

    It is computed once; then `sample_items` draws without a pass over the catalog.
    """
    return weights.double().cpu().cumsum(0)


def sample_items(
    cumulative: Tensor, candidates: slice, count: int, device: torch.device | None = None
) -> ItemSample:
    """Draw items with replacement, by torch's global generator on the CPU; all processes get the same sample.

    Args:
        cumulative: (V,) of `cumulative_weights`. Items of weight 0 are not drawn.
        candidates: rows to draw from.
        count: number of items.
        device: of the returned sample.
    """
    before = cumulative[candidates.start - 1] if candidates.start else cumulative.new_zeros(())
    total = cumulative[candidates.stop - 1] - before
    points = before + total * broadcast_(torch.rand(count, dtype=torch.float64))
    items = torch.searchsorted(cumulative, points, right=True).clamp(candidates.start, candidates.stop - 1)
    weights = cumulative[items] - torch.where(items > 0, cumulative[items - 1], 0.0)
    return ItemSample(items.to(device), (count * weights / total).log().float().to(device))


def sampled_log_probabilities(
    queries: Sequence[SoftmaxQuery],
    samples: Sequence[ItemSample],
    table: Tensor,
    scale: float | Tensor = 1.0,
    *,
    normalize_rows: bool = False,
    seen_items: Sequence[SeenItems | None] | None = None,
) -> list[Tensor]:
    """Return estimates of `target_log_probabilities`, one (N,) tensor per query, with their gradients.

    `samples` has a sample of each query's candidates, `seen_items` the items of its `log_subtracted_mass`.
    Other arguments are those of the functions of `catalog_softmax`.
    """
    log_probabilities = []
    for query, sample, seen in zip(queries, samples, seen_items or [None] * len(queries), strict=True):
        sample_rows, target_rows = F.embedding(sample.items, table), F.embedding(query.targets, table)
        if normalize_rows:
            sample_rows, target_rows = F.normalize(sample_rows, dim=1), F.normalize(target_rows, dim=1)
        h = query.h.to(table.dtype) * scale
        z = (h @ sample_rows.T).float() - sample.log_rate  # (N, count)
        target_logit = (h * target_rows).sum(1).float()  # (N,)
        exact_items = query.targets[:, None]  # (N, 1 + T) items that enter the partition exactly
        exact_logits = [target_logit[:, None]]
        if query.log_subtracted_mass is not None and seen is not None:
            is_repeat = (seen.items == exact_items).any(1)  # the target is counted among the seen items
            exact_items = torch.cat([exact_items, seen.items], dim=1)
            log_seen_mass = (query.log_subtracted_mass + seen.log_odds).float()
            exact_logits = [target_logit.masked_fill(is_repeat, -torch.inf)[:, None], log_seen_mass[:, None]]
        z = z.masked_fill(_is_in_row(sample.items, exact_items, len(table)), -torch.inf)
        log_probabilities.append(target_logit - torch.cat([*exact_logits, z], dim=1).logsumexp(1))
    return log_probabilities


def _is_in_row(sampled: Tensor, rows: Tensor, item_count: int) -> Tensor:
    """Return which sampled items, (count,), each row of items, (N, K), -1 for none, contains: (N, count)."""
    distinct, number = torch.unique(sampled, return_inverse=True)  # (U,), (count,)
    column = distinct.new_full((item_count + 1,), len(distinct))  # of an item among the distinct ones, else U
    column[distinct] = torch.arange(len(distinct), device=distinct.device)
    contains = torch.zeros(len(rows), len(distinct) + 1, dtype=torch.bool, device=sampled.device)
    return contains.scatter_(1, column[rows], True)[:, number]
