"""Exponential moving average of a model's weights over the steps of its training.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, in its exponential form:
where a constant learning rate keeps the weights moving around a minimum, their average is closer to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

WARMUP = 20  # in early steps the decay is step / (step + 20), so that the initial weights are soon forgotten


class EmaWeights:
    """The exponential moving average of all trainable weights of a model.

    `decay` is the share of the average that a step keeps, after the warm-up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {name: weight.detach().clone() for name, weight in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the weights after optimizer step number `step`, from 1."""
        decay = min(self.decay, step / (step + WARMUP))
        for name, weight in self.parameters.items():
            self.weights[name].lerp_(weight, 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Load the average into the model while the block runs, then restore the weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        """Exchange average and weights, one tensor at a time to bound the memory of copies."""
        for name, weight in self.parameters.items():
            copy = weight.clone()
            weight.copy_(self.weights[name])
            self.weights[name].copy_(copy)
