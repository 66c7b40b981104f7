"""Adam that costs what its rows cost where gradients are sparse.

Sampled losses read few rows of an item table (`nn.Embedding(..., sparse=True)`), so that its gradient is
sparse. `RowAdam` then reads and writes these rows of the table and of its moments alone, as
`torch.optim.SparseAdam`
does: the moments of other rows do not decay. All other weights get Adam's dense update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class RowAdam(torch.optim.Adam):
    """Adam for weights with dense gradients, and Adam of the gradient's rows for those with sparse ones.

    `weight_decay` of a table acts on the rows of the gradient alone.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights; sparse gradients are removed."""
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None and weight.grad.is_sparse:
                    self._update_rows(weight, group)
                    weight.grad = None
        return super().step(closure)

    def _update_rows(self, weight: Tensor, group: dict[str, Any]) -> None:
        assert weight.grad is not None
        gradient, state = weight.grad.coalesce(), self.state[weight]
        rows, grad = gradient.indices()[0], gradient.values()
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(weight), torch.zeros_like(weight)
        state["step"] += 1
        step, (beta1, beta2) = int(state["step"]), group["betas"]
        if group["weight_decay"]:
            grad = grad.add(weight[rows], alpha=group["weight_decay"])
        mean = state["exp_avg"].index_select(0, rows).lerp_(grad, 1 - beta1)
        mean_square = state["exp_avg_sq"].index_select(0, rows).mul_(beta2)
        mean_square.addcmul_(grad, grad, value=1 - beta2)
        state["exp_avg"].index_copy_(0, rows, mean)
        state["exp_avg_sq"].index_copy_(0, rows, mean_square)
        size = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        weight.index_add_(0, rows, mean.div_(mean_square.sqrt_().add_(group["eps"])), alpha=-size)
