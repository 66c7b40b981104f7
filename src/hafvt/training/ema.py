"""A running average of a model's weights over the steps of its training.

Polyak and Juditsky, Acceleration of Stochastic Approximation by Averaging, 1992, in its exponential form:
where a constant learning rate keeps the weights moving about a minimum, their average comes nearer to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

WARM = 20  # at first the average is of the latest steps, a twentieth of all: the first weights are forgotten


class EmaWeights:
    """The average of all weights that learn.

    Args:
        model: what is trained.
        keep: how much of itself the average keeps at a step, in the long run.
    """

    def __init__(self, model: nn.Module, keep: float) -> None:
        self.keep = keep
        self.learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {name: weight.detach().clone() for name, weight in self.learning.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Moves the average towards the weights, after `step` steps in all."""
        keep = min(self.keep, step / (step + WARM))
        for name, weight in self.learning.items():
            self.weights[name].lerp_(weight, 1 - keep)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the model, and the weights back at the end."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for name, weight in self.learning.items():
            held = weight.clone()  # one at a time: a second copy of all would double an item table's memory
            weight.copy_(self.weights[name])
            self.weights[name].copy_(held)
