"""Similarity of items: cosines of their vectors by id, picture, title or all of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool, Int64
from hafvt.errors import HafvtError

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
