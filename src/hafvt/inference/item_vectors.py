"""Similarity of items: cosines of their vectors by id, picture, title or all of these."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool, Int64
from hafvt.errors import HafvtError
from hafvt.ops.top_k import top_k_columns

MAX_COSINES = 4_000_000  # in memory at a time
Float32 = npt.NDArray[np.float32]


class ItemVectors(NamedTuple):
    """Vectors of all V items in one modality.

    Attributes:
        rows: (V, d) of unit length, zero where there is none.
        present: (V,) whether an item has a vector.
    """

    rows: Float32
    present: Bool


VectorReader = Callable[[], dict[str, ItemVectors]]
"""Reads the vectors of all items by modality: "id" if the model learns ids, and features."""


def unit_vectors(rows: npt.NDArray[np.floating], present: Bool) -> ItemVectors:
    """Return vectors of unit length; those that are zero or not `present` become zero."""
    rows = rows.astype(np.float32)
    norms = np.linalg.norm(rows, axis=1)
    present = present & (norms > 0)
    return ItemVectors(rows * np.divide(1, norms, out=np.zeros_like(norms), where=present)[:, None], present)


def similarities(vectors: dict[str, ItemVectors], items: Int64, by: str) -> Float32:
    """Return the cosines of B items with all V items, (B, V); -inf where a vector is missing.

    With `by` "all" it is the mean of the cosines over the modalities in which the item of the row has a
    vector; a modality that only the other item lacks counts as 0.

    Raises:
        HafvtError: no item has vectors of `by`.
    """
    names = list(vectors) if by == "all" else [by]
    if by not in ("all", *vectors) or not vectors:
        raise HafvtError(f"by is {by!r}: choose {' or '.join(['all', *vectors])}")
    total = sum(vectors[name].rows[items] @ vectors[name].rows.T for name in names)
    counts = sum(vectors[name].present[items].astype(np.float32) for name in names)
    has_both = np.any(
        [vectors[name].present[items][:, None] & vectors[name].present for name in names], axis=0
    )
    return np.where(has_both, total / np.maximum(counts, 1)[:, None], -np.inf).astype(np.float32)


def similar_indices(
    vectors: dict[str, ItemVectors], items: Int64, by: str, candidates: range, k: int
) -> Iterator[list[tuple[int, float]]]:
    """Yield for each item the k most similar other items among the candidates, with their cosines.

    Raises:
        HafvtError: no item has vectors of `by`.
    """
    start, stop = candidates.start, candidates.stop
    num_items = max((len(one.rows) for one in vectors.values()), default=1)
    batch_size = max(1, MAX_COSINES // num_items)
    for first in range(0, len(items), batch_size):
        batch = items[first : first + batch_size]
        for item, cosines in zip(batch.tolist(), similarities(vectors, batch, by), strict=True):
            excluded = np.array([item - start] if item in candidates else [], dtype=np.int64)
            columns = top_k_columns(cosines[start:stop], k, excluded)
            yield [(start + column, float(cosines[start + column])) for column in columns.tolist()]
