"""Rows of a learned table, without a second gradient of the table's size.

A model looks up the items of a history in the same table that holds the candidates. Autograd would make a
gradient as large as the table for either use and add them. Here the table goes through the look-up on its way
to the candidates, so that its gradient comes back through it and the rows' gradients are added in place.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional


def look_up(table: Tensor, *indices: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Returns the table, for its one further use in the loss, and the rows at each of the indices.

    Args:
        table: (V, d).
        indices: int64 of any shape (...).

    Returns:
        The table, (V, d), and per index (..., d).
    """
    if not (table.requires_grad and torch.is_grad_enabled()):
        return table, [functional.embedding(index, table) for index in indices]
    table, *rows = _LookUp.apply(table, *indices)  # type: ignore[no-untyped-call]
    return table, rows


class _LookUp(torch.autograd.Function):
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
