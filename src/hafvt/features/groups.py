"""Groups of items that look or read alike, by their frozen vectors: spherical k-means."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KNOWN = 32_768  # items that training met most: groups are made of them, or a million took hours
STEPS = 6
ROWS = 512  # items that are compared at a time


def groups(rows: Tensor, present: Tensor, counts: Tensor, sizes: tuple[int, ...]) -> tuple[Tensor, int]:
    """Returns the groups of each item, one of each size, (V, L), and how many there are of all sizes.

    They are numbered on from size to size; an item without a vector is put down in those numbered 0, 0, ...
    Groups are made of the items that training met, in all domains, and the others join the nearest, by
    cosine: so an item that training never met changes nothing for the others.

    Args:
        rows: (V, d) of unit length.
        present: (V,) which items have a vector of their own.
        counts: (V,) how often training met each.
        sizes: items that a group has on average, in L ways; where fewer were met, they are one group.
    """
    known = (present & (counts > 0)).nonzero()[:, 0]
    known = known[counts[known].argsort(descending=True, stable=True)[:KNOWN].sort().values]
    table, found, total = rows[known], [], 0
    # Centres start at items spread evenly along some direction, not drawn: items' numbers mean nothing.
    along = (table @ torch.linspace(-1, 1, rows.shape[1])).argsort(stable=True)
    for size in sizes if len(known) else ():
        count = max(1, len(known) // size)
        centres = table[along[torch.arange(count) * len(known) // count]]
        for _ in range(STEPS):
            place = nearest(table, centres)
            centres = F.normalize(torch.zeros_like(centres).index_add_(0, place, table), dim=1)
        found.append(total + nearest(rows, centres))
        total += count
    if not found:
        return torch.zeros(len(rows), 1, dtype=torch.int64), 1
    return torch.stack(found, dim=1) * present[:, None], total


def joined(rows: Tensor, of_items: Tensor, members: Tensor) -> Tensor:
    """Returns the groups that items join, those whose members' mean is nearest, (N, d) -> (N, L).

    Args:
        rows: (N, d) of unit length.
        of_items: (V, L) the groups of others.
        members: (V, d) their vectors.
    """
    found = []
    for level in of_items.T:
        used, place = level.unique(return_inverse=True)
        centres = members.new_zeros(len(used), members.shape[1]).index_add_(0, place, members)
        found.append(used[nearest(rows, F.normalize(centres, dim=1))])
    return torch.stack(found, dim=1)


def nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """Returns the place of the nearest centre by cosine, (V, d), (G, d) -> (V,)."""
    found = []
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        # Always as many rows: an item's products are the same, wherever it stands.
        cosine = F.pad(part, (0, 0, 0, ROWS - len(part))) @ centres.T
        found.append(cosine.argmax(1)[: len(part)])
    return torch.cat(found)
