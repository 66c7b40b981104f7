"""Groups of items that look or read alike, by their frozen vectors: spherical k-means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.features.cosines import cosines, known_items
from hafvt.progress import Advance

STEPS = 6


def find_clusters(
    rows: Tensor, present: Tensor, counts: Tensor, sizes: tuple[int, ...], advance: Advance | None = None
) -> tuple[Tensor, int]:
    """Returns the groups of each item, one of each size, (V, L), and how many there are of all sizes.

    They are numbered on from size to size; an item without a vector is put down in those numbered 0, 0, ...
    Groups are made of the items that training met, in all domains, and the others join the nearest, by
    cosine: so an item that training never met changes nothing for the others.

    Args:
        rows: (V, d) of unit length.
        present: (V,) which items have a vector of their own.
        counts: (V,) how often training met each.
        sizes: items that a group has on average, in L ways; where fewer were met, they are one group.
        advance: told how many items have found the nearest center, of all of them once, of those that groups
            are made of `STEPS` times more, for each size.
    """
    known = known_items(present, counts)
    table, found, total = rows[known], [], 0
    # Centers start at items spread evenly along some direction, not drawn: items' numbers mean nothing.
    along = (table @ torch.linspace(-1, 1, rows.shape[1])).argsort(stable=True)
    for size in sizes if len(known) else ():
        count = max(1, len(known) // size)
        centers = table[along[torch.arange(count) * len(known) // count]]
        for _ in range(STEPS):
            place = nearest(table, centers, advance)
            centers = F.normalize(torch.zeros_like(centers).index_add_(0, place, table), dim=1)
        found.append(total + nearest(rows, centers, advance))
        total += count
    if not found:
        return torch.zeros(len(rows), 1, dtype=torch.int64), 1
    return torch.stack(found, dim=1) * present[:, None], total


def nearest_clusters(rows: Tensor, of_items: Tensor, members: Tensor) -> Tensor:
    """Returns the groups that items join, those whose members' mean is nearest, (N, d) -> (N, L).

    Args:
        rows: (N, d) of unit length.
        of_items: (V, L) the groups of others.
        members: (V, d) their vectors.
    """
    found = []
    for level in of_items.T:
        used, place = level.unique(return_inverse=True)
        centers = members.new_zeros(len(used), members.shape[1]).index_add_(0, place, members)
        found.append(used[nearest(rows, F.normalize(centers, dim=1))])
    return torch.stack(found, dim=1)


def nearest(rows: Tensor, centers: Tensor, advance: Advance | None = None) -> Tensor:
    """Returns the place of the nearest center by cosine, (V, d), (G, d) -> (V,)."""
    return torch.cat([cosine.argmax(1) for cosine in cosines(rows, centers, advance)])
