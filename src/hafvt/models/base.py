"""The two things a model must do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from hafvt.data.batches import Batch


class Model(nn.Module, ABC):
    """A recommender: it turns training sequences into a loss and histories into scores.

    Attributes:
        max_length: the longest history it reads, in items; callers cut older ones off.
        uses_relations: whether it wants the links between items in its catalog.
        notes: what a report on it should say.
    """

    max_length: int
    uses_relations: ClassVar[bool] = False
    notes: tuple[str, ...] = ()

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Returns the training loss of a batch of training sequences, a scalar.

        Args:
            batch: whole sequences; every item but the first is the target of those before it.
        """

    @abstractmethod
    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Scores candidates as the item that follows each history.

        Args:
            batch: histories; the next item is not part of them.
            domain: number of the domain whose items are ranked.
            candidates: (B, C) item indices of that domain, one set per history; None scores all its items.

        Returns:
            (B, C) scores, higher is better; column c is the item `candidates[:, c]`, or item
            `domain.start + c` without candidates.
        """
