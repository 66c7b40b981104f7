"""Tables of the most frequent links between items; `hafvt.data.relations` reads the links."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hafvt.data.relations import TRANSITION, WITHIN_DOMAIN


def link_tables(relations: Mapping[str, Tensor], counts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the `count` most frequent links of each item in each relation.

    Args:
        relations: (n, 2) directed edges by name; one that is given twice weighs more.
        counts: (items,) how often each item was met, which breaks ties; what is still tied across the limit
            is left out, as an item's number must not matter.
        count: K.

    Returns:
        Links (items, R, K), -1 where there are fewer; which of them a single training step made, same shape.
    """
    items = len(counts)
    links = torch.full((items, len(relations), count), -1)
    single = torch.zeros(links.shape, dtype=torch.bool)
    for r, (name, edges) in enumerate(relations.items()):
        edges = edges[edges[:, 0] != edges[:, 1]]
        pairs, times = torch.unique(edges[:, 0] * items + edges[:, 1], return_counts=True)
        source, target = pairs // items, pairs % items
        order = torch.from_numpy(np.lexsort((-counts[target].numpy(), -times.numpy(), source.numpy())))
        source, target, times = source[order], target[order], times[order]
        first = torch.searchsorted(source, source)
        rank = torch.arange(len(source)) - first
        tied = torch.stack([source, times, counts[target].long()])
        _, group, sizes = torch.unique_consecutive(tied, dim=1, return_inverse=True, return_counts=True)
        keep = sizes.cumsum(0)[group] - first <= count  # the last of its group is within the limit
        links[source[keep], r, rank[keep]] = target[keep]
        single[source[keep], r, rank[keep]] = (times[keep] == 1) & (name == TRANSITION)
    return links, single


def graph_relations(relations: Mapping[str, Tensor]) -> list[str]:
    """Return the relations that make the graph: those of the items' table, or else training transitions."""
    listed = [name for name in relations if name not in (TRANSITION, WITHIN_DOMAIN)]
    return listed or [name for name in relations if name == TRANSITION]
