"""Rows of a learned table, and sums of its rows, by gradients that take little.

A model looks up the items of a history in the same table that holds the candidates. Autograd would make a
gradient as large as the table for either use and add them. Here the table goes through the look-up on its way
to the candidates, so that its gradient comes back through it and the rows' gradients are added in place.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hafvt.errors import HafvtError

ROWS = 4096  # of a table that links are followed from at a time: their sums stay in the cache


def embedding_lookup(table: Tensor, *indices: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the table, for its one further use in the loss, and the rows at each of the indices.

    Args:
        table: (V, d).
        indices: int64 of any shape (...).

    Returns:
        The table, (V, d), and per index (..., d).
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
    def backward(ctx: Any, grad: Tensor, *grads: Tensor) -> tuple[Tensor | None, ...]:
        for index, of_rows in zip(ctx.saved_tensors, grads, strict=True):
            grad.index_add_(0, index.flatten(), of_rows.flatten(0, -2).to(grad.dtype))
        return grad, *(None for _ in grads)


class SparseLinks(NamedTuple):
    """From each of V items to k rows of a table of R rows, and back."""

    rows: Tensor
    """(V, k) rows, int64."""
    weights: Tensor
    """(V, k)."""
    sources: Tensor
    """(V * k) the items that links come from, by the row that they lead to."""
    back: Tensor
    """(V * k) the weights of these."""
    starts: Tensor
    """(R,) where those that lead to a row begin."""


def links(rows: Tensor, weights: Tensor, table: int) -> SparseLinks:
    """Returns links with their way back, of (V, k) rows and weights into a table of so many rows.

    Raises:
        HafvtError: a link leads out of the table.
    """
    strange = rows[(rows < 0) | (rows >= table)]
    if len(strange):
        raise HafvtError(f"a link leads to row {int(strange[0])} of {table}: the weights are damaged")
    counts, order = torch.bincount(rows.flatten(), minlength=table), rows.flatten().argsort(stable=True)
    return SparseLinks(
        rows, weights, order // rows.shape[1], weights.flatten()[order], counts.cumsum(0) - counts
    )


def weighted_row_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Returns `sum_j weights[i, j] * table[rows[i, j]]`, of some links as they are, (R, d) -> (N, d)."""
    return (functional.embedding(rows, table) * weights[..., None]).sum(1)


def add_weighted_rows(total: Tensor, table: Tensor, over: SparseLinks, scale: Tensor) -> Tensor:
    """Adds `scale[i] * sum_j weights[i, j] * table[rows[i, j]]` to each row i, in place.

    Nothing as large as the total is made on the way. The gradient of the table is gathered the same way,
    along the links back, where PyTorch's own takes ten times as long.

    Args:
        total: (V, d), of no other use.
        table: (R, d).
        over: links from V items to its rows.
        scale: (V, 1), without a gradient.

    Returns:
        The total, (V, d).
    """
    if torch.compiler.is_exporting():
        return total + scale * weighted_row_sums(table, over.rows, over.weights)
    found: Tensor = _AddWeightedRows.apply(total, table, scale, *over)  # type: ignore[no-untyped-call]
    return found


class _AddWeightedRows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        total: Tensor,
        table: Tensor,
        scale: Tensor,
        rows: Tensor,
        weights: Tensor,
        sources: Tensor,
        back: Tensor,
        starts: Tensor,
    ) -> Tensor:
        ctx.mark_dirty(total)
        ctx.save_for_backward(scale, sources, back, starts)
        weights = weights.to(table.dtype)
        for start in range(0, len(rows), ROWS):
            some = slice(start, start + ROWS)
            sums = functional.embedding_bag(rows[some], table, mode="sum", per_sample_weights=weights[some])
            total[some].addcmul_(sums, scale[some])
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        scale, sources, back, starts = ctx.saved_tensors
        back = (back * scale[sources, 0]).to(grad.dtype)
        change = functional.embedding_bag(
            sources, grad.contiguous(), starts, mode="sum", per_sample_weights=back
        )
        return grad, change, None, None, None, None, None, None
