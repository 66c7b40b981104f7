"""Embedding look-ups and weighted sums of table rows whose gradients need little memory and time.

A model looks up the items of histories in the same table that also serves as its softmax's candidates.
Autograd would allocate one gradient as large as the table for each use and add them. `embedding_lookup`
passes the table on to its second use, so that the rows' gradients are added to that one gradient in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hafvt.errors import HafvtError

ROW_CHUNK = 4096
"""Rows for which `add_weighted_rows` sums linked rows at a time, so that the sums stay in the cache."""


def embedding_lookup(table: Tensor, *indices: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the table, (V, d), to be used once more in the loss, and its rows at each of the indices.

    Indices are int64 tensors of any shape (...); their rows are (..., d).
    """
    if not (table.requires_grad and torch.is_grad_enabled()):
        return table, [functional.embedding(index, table) for index in indices]
    table, *rows = _EmbeddingLookup.apply(table, *indices)  # type: ignore[no-untyped-call]
    return table, rows


class _EmbeddingLookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, *indices: Tensor) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*indices)
        return table.view_as(table), *(functional.embedding(index, table) for index in indices)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, table_grad: Tensor, *row_grads: Tensor) -> tuple[Tensor | None, ...]:
        for index, grad in zip(ctx.saved_tensors, row_grads, strict=True):
            table_grad.index_add_(0, index.flatten(), grad.flatten(0, -2).to(table_grad.dtype))
        return table_grad, *(None for _ in row_grads)


def distinct_rows(*indices: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return the distinct row numbers in all indices, (U,) ascending, and each index as positions in them.

    Where a loss reads few rows of a large table, it can look these up once and then use them as its table.
    """
    rows, positions = torch.unique(torch.cat([index.flatten() for index in indices]), return_inverse=True)
    parts = positions.split([index.numel() for index in indices])
    return rows, [part.view_as(index) for part, index in zip(parts, indices, strict=True)]


class SparseLinks(NamedTuple):
    """Weighted links from each of V items to k rows of a table with R rows, and the same links reversed."""

    rows: Tensor
    """(V, k) int64 rows of the table."""
    weights: Tensor
    """(V, k)"""
    reverse_items: Tensor
    """(V * k,) items that links start from, sorted by the row that they lead to."""
    reverse_weights: Tensor
    """(V * k,) weights in that order."""
    reverse_offsets: Tensor
    """(R,) index of each row's first link in that order."""


def build_links(rows: Tensor, weights: Tensor, row_count: int) -> SparseLinks:
    """Return links to `rows`, (V, k), of a table of `row_count` rows, with their reverse order.

    Raises:
        HafvtError: a link leads out of the table.
    """
    invalid = rows[(rows < 0) | (rows >= row_count)]
    if len(invalid):
        raise HafvtError(f"a link leads to row {int(invalid[0])} of {row_count}: the weights are damaged")
    counts, order = torch.bincount(rows.flatten(), minlength=row_count), rows.flatten().argsort(stable=True)
    return SparseLinks(
        rows, weights, order // rows.shape[1], weights.flatten()[order], counts.cumsum(0) - counts
    )


def weighted_row_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Return `sum_j weights[i, j] * table[rows[i, j]]`, (R, d) and twice (N, k) -> (N, d)."""
    return (functional.embedding(rows, table) * weights[..., None]).sum(1)


def add_weighted_rows(total: Tensor, table: Tensor, links: SparseLinks, scale: Tensor) -> Tensor:
    """Add `scale[i] * sum_j weights[i, j] * table[rows[i, j]]` to each row i of `total`, in place.

    No temporary is as large as `total`. The table's gradient is gathered along the reversed links, ten times
    as fast as PyTorch's own. Shapes: `total` (V, d), without any other use; `table` (R, d); `scale` (V, 1),
    which gets no gradient.
    """
    if torch.compiler.is_exporting():
        return total + scale * weighted_row_sums(table, links.rows, links.weights)
    updated: Tensor = _AddWeightedRows.apply(total, table, scale, *links)  # type: ignore[no-untyped-call]
    return updated


class _AddWeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, total: Tensor, table: Tensor, scale: Tensor, *link_parts: Tensor) -> Tensor:
        links = SparseLinks(*link_parts)
        ctx.mark_dirty(total)
        ctx.save_for_backward(scale, links.reverse_items, links.reverse_weights, links.reverse_offsets)
        weights = links.weights.to(table.dtype)
        for start in range(0, len(links.rows), ROW_CHUNK):
            chunk = slice(start, start + ROW_CHUNK)
            sums = functional.embedding_bag(
                links.rows[chunk], table, mode="sum", per_sample_weights=weights[chunk]
            )
            total[chunk].addcmul_(sums, scale[chunk])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, items, weights, offsets = ctx.saved_tensors
        weights = (weights * scale[items, 0]).to(grad.dtype)
        table_grad = functional.embedding_bag(
            items, grad.contiguous(), offsets, mode="sum", per_sample_weights=weights
        )
        return grad, table_grad, *[None] * (1 + len(SparseLinks._fields))
