"""Exponential moving average of a model's weights over the steps of its training.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, in its exponential form:
where a constant learning rate keeps the weights moving around a minimum, their average is closer to it.

Tables with sparse gradients change in few rows per step. The average of a row is brought up to date only when
the row is about to change and when the average is read. This is exact: between steps s and t the row w stays
the same, so its average a becomes `w + remaining * (a - w)`, where `remaining` is the product of the decays
of steps s + 1 to t.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARMUP = 20  # in early steps the decay is step / (step + 20), so that the initial weights are soon forgotten
CHUNK_ROWS, CHUNK_VALUES = 65_536, 2**22  # rows, or values, that are copied at a time


class EmaWeights:
    """The exponential moving average of all trainable weights of a model.

    `decay` is the share of the average that a step keeps, after the warm-up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {name: weight.detach().clone() for name, weight in self.parameters.items()}
        modules = model.modules()
        sparse = {
            id(module.weight) for module in modules if isinstance(module, nn.Embedding) and module.sparse
        }
        self.row_steps = {  # (V,) the step up to which the average of each row of a table is up to date
            name: torch.zeros(len(weight), dtype=torch.int32, device=weight.device)
            for name, weight in self.parameters.items()
            if id(weight) in sparse
        }

    @property
    def state(self) -> dict[str, Tensor]:
        """Return the tensors that a resumed training needs, by name; they are not copies."""
        return self.weights | {f"{name}.row_steps": steps for name, steps in self.row_steps.items()}

    @torch.no_grad()
    def update_rows(self, step: int) -> None:
        """Bring the rows of sparse gradients up to date with `step`, before the next step changes them."""
        for name in self.row_steps:
            grad = self.parameters[name].grad
            if grad is not None:
                self._catch_up(name, grad._indices()[0], step)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after optimizer step number `step`, from 1."""
        decay = min(self.decay, step / (step + WARMUP))
        for name, weight in self.parameters.items():
            if name not in self.row_steps:
                self.weights[name].lerp_(weight, 1 - decay)

    @contextmanager
    def applied(self, step: int) -> Iterator[None]:
        """Load the average after `step` into the model while the block runs, then restore the weights."""
        for name, steps in self.row_steps.items():
            for rows in torch.split(torch.arange(len(steps), device=steps.device), CHUNK_ROWS):
                self._catch_up(name, rows, step)
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _catch_up(self, name: str, rows: Tensor, step: int) -> None:
        """Bring the average of rows, which did not change in between, up to date with `step`."""
        average, steps, weight = self.weights[name], self.row_steps[name], self.parameters[name][rows]
        remaining = remaining_share(steps[rows].cpu(), step, self.decay).to(weight)
        average[rows] = torch.lerp(weight, average[rows], remaining[:, None])
        steps[rows] = step

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange average and weights, some values at a time to bound the memory of copies."""
        for name, weight in self.parameters.items():
            parts, averages = (torch.split(t.view(-1), CHUNK_VALUES) for t in (weight, self.weights[name]))
            for part, average in zip(parts, averages, strict=True):
                copy = part.clone()
                part.copy_(average)
                average.copy_(copy)


def remaining_share(since: Tensor, until: int, decay: float) -> Tensor:
    """Return the product of the decays of the steps after `since`, (U,) int, up to `until`, (U,) float64.

    The decay of step k is `min(decay, k / (k + WARMUP))`.
    """
    last_warmup_step = math.floor(decay * WARMUP / (1 - decay))
    steps = torch.cat([since, since.new_tensor([until])])  # (U + 1,)
    warm = steps.clamp(max=last_warmup_step).double()
    num_constant = steps - warm
    # The product of k / (k + WARMUP) for k up to n is n! WARMUP! / (n + WARMUP)!.
    log_product = torch.lgamma(warm + 1) - torch.lgamma(warm + 1 + WARMUP)
    log_remaining = log_product[-1] - log_product[:-1]
    log_remaining += torch.xlogy(num_constant[-1] - num_constant[:-1], log_remaining.new_tensor(decay))
    return log_remaining.exp()
