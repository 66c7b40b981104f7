"""Softmax over a catalog, estimated from a sample: for catalogs whose exact softmax takes too long.

The items are drawn once per step for all queries, with replacement, popular ones more often. An item that is
drawn with probability q stands for 1 / (count * q) like it, so its logit is lowered by log(count * q) (the
log-q correction of Bengio and Senecal, 2008), and the sum of the exponentials is right on average. The target
always takes part, once, as itself. The logits of the sample, (N, count), are stored.

What a query's history holds may count less than the rest (`SeenItems`). It has the largest logits and is known, so
it is counted as it is and left out of the sample, instead of taken off an estimate that may not even hold it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.ops.catalog_softmax import SoftmaxQuery

POWER = 0.75  # of the popularity: between uniform and as popular


class Sample(NamedTuple):
    """Drawn items.

    Attributes:
        items: (count,) row numbers of the whole table.
        log_rate: (count,) log of how often each is drawn on average.
    """

    items: Tensor
    log_rate: Tensor


class SeenItems(NamedTuple):
    """What `SoftmaxQuery.less` speaks of: items that count less than others in a query's softmax."""

    items: Tensor
    """(N, T) row numbers of the whole table; -1 for none."""
    log_odds: Tensor
    """(), log of what such an item counts, over what it counts less."""


def draw(popularity: Tensor, among: slice, count: int) -> Sample:
    """Draws from a part of the catalog, with replacement, by torch's generator.

    Args:
        popularity: (V,) how often each item was chosen in training.
        among: the part, start:stop.
        count: how many.
    """
    weight = (popularity[among].float() + 1) ** POWER
    items = torch.multinomial(weight, count, replacement=True)
    return Sample(items + among.start, (count * weight[items] / weight.sum()).log())


def sampled_log_probabilities(
    softmax_queries: Sequence[SoftmaxQuery],
    samples: Sequence[Sample],
    table: Tensor,
    scale: float | Tensor = 1.0,
    *,
    unit: bool = False,
    had: Sequence[SeenItems | None] | None = None,
) -> list[Tensor]:
    """Returns estimates of `target_log_probabilities`, with their gradients.

    Args:
        asks: queries and their targets.
        samples: per ask, drawn from what its softmax is over.
        table: (V, d) item vectors.
        scale: factor of the logits.
        unit: the table's rows count with unit length.
        had: per ask with `less`, what that is of.

    Returns:
        One tensor (N,) per ask.
    """
    found = []
    for ask, sample, known in zip(
        softmax_queries, samples, had or [None] * len(softmax_queries), strict=True
    ):
        drawn, row = F.embedding(sample.items, table), F.embedding(ask.targets, table)  # (count, d), (N, d)
        if unit:
            drawn, row = F.normalize(drawn, dim=1), F.normalize(row, dim=1)
        h = ask.h.to(table.dtype) * scale
        z = (h @ drawn.T).float() - sample.log_rate  # (N, count)
        own = (h * row).sum(1).float()
        exact = ask.targets[:, None]  # (N, 1) and, below, the history: what is not to be estimated
        parts = [own[:, None]]
        if ask.less is not None and known is not None:
            again = (known.items == exact).any(1)  # the target is in its history: counted there
            exact = torch.cat([exact, known.items], dim=1)
            counted = (ask.less + known.log_odds).float()
            parts = [own.masked_fill(again, -torch.inf)[:, None], counted[:, None]]
        z = z.masked_fill(among(sample.items, exact, len(table)), -torch.inf)
        found.append(own - torch.cat([*parts, z], dim=1).logsumexp(1))
    return found


def among(drawn: Tensor, rows: Tensor, size: int) -> Tensor:
    """Returns which drawn items are among those of each row, (count,), (N, K) -> (N, count).

    Args:
        drawn: items.
        rows: items, -1 for none.
        size: how many items there are.
    """
    kinds, kind = torch.unique(drawn, return_inverse=True)  # (U,), (count,)
    place = kinds.new_full((size + 1,), len(kinds))  # of an item among the kinds; U for any other
    place[kinds] = torch.arange(len(kinds), device=kinds.device)
    met = torch.zeros(len(rows), len(kinds) + 1, dtype=torch.bool, device=drawn.device)
    return met.scatter_(1, place[rows], True)[:, kind]
