"""Which items look or read alike, by their frozen vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.features.cosines import cosines, known_items
from hafvt.progress import Advance

TEMPERATURE = 0.1  # of the softmax over a few neighbors' cosines that weighs them


def neighbors(
    rows: Tensor,
    present: Tensor,
    counts: Tensor,
    count: int,
    items: Tensor | None = None,
    advance: Advance | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the nearest of all items, or some (N,), among those that training met, and their weights.

    Both are (V, k) or (N, k). By cosine, in all domains, the item itself left out; k is `count`, or less
    where training met fewer. Weights sum to 1; they are 0 for items without a vector. An item that training
    never met changes nothing for the others.

    Args:
        rows: (V, d) of unit length.
        present: (V,) which items have a vector of their own.
        counts: (V,) how often training met each.
        count: of neighbors.
        items: whose are sought; None for all.
        advance: told how many are found.
    """
    asked = torch.arange(len(rows)) if items is None else items
    known = known_items(present, counts)
    k = max(0, min(count, len(known) - 1))
    if k == 0:
        return torch.zeros(len(asked), 1, dtype=torch.int64), torch.zeros(len(asked), 1)
    start, found, weights = 0, [], []
    for cosine in cosines(rows if items is None else rows[items], rows[known], advance):
        itself = asked[start : start + len(cosine), None]
        start += len(cosine)
        place = torch.searchsorted(known, itself).clamp(max=len(known) - 1)
        cosine.scatter_(1, place, cosine.gather(1, place).masked_fill(known[place] == itself, -torch.inf))
        best, places = cosine.topk(k)
        found.append(known[places])
        weights.append(torch.softmax(best / TEMPERATURE, dim=1))
    return torch.cat(found), torch.cat(weights) * present[asked, None]
