"""Tables of the most frequent links between items; `hafvt.data.relations` reads the links."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from hafvt.data.relations import TRANSITION, WITHIN_DOMAIN


def link_tables(
    relations: Mapping[str, Tensor], train_counts: Tensor, num_links: int
) -> tuple[Tensor, Tensor]:
    """Return the most frequent links of each item in each of R relations.

    Args:
        relations: (n, 2) int64 links from an item to another, by name; repeated links count more.
        train_counts: (items,) training interactions, by which equally frequent links are ordered. Links that
            are still equal at the limit are all left out, as item numbers must not matter.
        num_links: links of an item in a relation, at most.

    Returns:
        Linked items (items, R, num_links), -1 where there are fewer; and, of the same shape, whether the link
        is a transition that occurs only once in training.
    """
    items = len(train_counts)
    links = torch.full((items, len(relations), num_links), -1)
    occurs_once = torch.zeros(links.shape, dtype=torch.bool)
    for r, (name, edges) in enumerate(relations.items()):
        edges = edges[edges[:, 0] != edges[:, 1]]
        pairs, counts = torch.unique(edges[:, 0] * items + edges[:, 1], return_counts=True)
        source, target = pairs // items, pairs % items
        sort_keys = (-train_counts[target].numpy(), -counts.numpy(), source.numpy())
        order = torch.from_numpy(np.lexsort(sort_keys))
        source, target, counts = source[order], target[order], counts[order]
        first = torch.searchsorted(source, source)  # position of the first link of the same source
        rank = torch.arange(len(source)) - first
        ties = torch.stack([source, counts, train_counts[target].long()])
        _, group, sizes = torch.unique_consecutive(ties, dim=1, return_inverse=True, return_counts=True)
        within_limit = sizes.cumsum(0)[group] - first <= num_links  # including the last link of its group
        index = source[within_limit], r, rank[within_limit]
        links[index] = target[within_limit]
        occurs_once[index] = (counts[within_limit] == 1) & (name == TRANSITION)
    return links, occurs_once


def graph_relations(relations: Mapping[str, Tensor]) -> list[str]:
    """Return the names of the relations in the item table or, if there are none, of training transitions."""
    in_table = [name for name in relations if name not in (TRANSITION, WITHIN_DOMAIN)]
    return in_table or [name for name in relations if name == TRANSITION]
