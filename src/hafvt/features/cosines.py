"""Cosines of all items with those that training met most, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.progress import Advance

KNOWN = 32_768  # items that all others are compared with at most, or a million took hours
ROWS = 512  # items that are compared at a time


def known_items(present: Tensor, counts: Tensor) -> Tensor:
    """Returns the items with a vector that training met most, (K,), ascending.

    Args:
        present: (V,) which items have a vector of their own.
        counts: (V,) how often training met each.
    """
    known = (present & (counts > 0)).nonzero()[:, 0]
    return known[counts[known].argsort(descending=True, stable=True)[:KNOWN].sort().values]


def cosines(rows: Tensor, table: Tensor, advance: Advance | None = None) -> Iterator[Tensor]:
    """Yields the products of some rows at a time with a table, (V, d), (K, d) -> (up to ROWS, K).

    All in one buffer: the next overwrite the last. `advance` is told of those that are done with.
    """
    buffer = rows.new_empty(ROWS, len(table))
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        # Always as many rows: an item's products are the same, wherever it stands.
        torch.mm(F.pad(part, (0, 0, 0, ROWS - len(part))), table.T, out=buffer)
        yield buffer[: len(part)]
        if advance is not None:
            advance(len(part))
