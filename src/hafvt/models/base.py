"""The interface of all models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple, Self

from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.models.hyperparameters import ModelConfig

__all__ = ["BranchContributions", "BranchQuery", "Model", "ModelConfig"]


class BranchContributions(NamedTuple):
    """How each branch, a pair of sequence and modality, contributes to scores.

    Attributes:
        shares: (B, C, S, M) share of each branch in the score of each candidate; the shares sum to 1.
        attention: (B, S, M, T) weight of each item of the merged history in each branch; sums to 1 over the
            history, or to 0 where the branch's sequence is empty.
    """

    shares: Tensor
    attention: Tensor


class BranchQuery(NamedTuple):
    """What one branch needs for its softmax over the items of a domain."""

    modality: int
    h: Tensor
    """(B, d) last state, scaled so that its products with the vectors of `branch_tables` are logits."""
    log_weight: Tensor
    """() log of the sequence's weight times the modality's weight."""
    is_empty: Tensor
    """(B,) whether the sequence has no items; such a branch scores 0."""
    log_excluded_mass: Tensor
    """(B,) log of the mass that the softmax's denominator leaves out, such as that of repeated items."""


class Model(nn.Module, ABC):
    """A recommender: computes a loss from training sequences and scores from histories.

    The constructor takes `item_features` and the model's `ModelConfig`.

    Attributes:
        max_length: the longest history that the model reads, in items; callers cut older items.
        domains: the domains of the catalog.
        notes: remarks for a report on this model.
        sequence_names: names of the sequences of `explain`, S of them.
        modalities: names of the modalities of `explain`, M of them.
        content_modalities: the frozen features, such as image and title, that the model reads.
        uses_relations: whether the model needs the relations between items.
        can_explain: whether `explain` is available.
        can_extend_catalog: whether `extend_catalog` is available.
        can_index: whether `branch_tables`, `branch_queries` and `finish_scores` are available, from which an
            index of the items is built and searched.
    """

    max_length: int
    domains: tuple[Domain, ...]
    notes: tuple[str, ...] = ()
    sequence_names: tuple[str, ...] = ()
    modalities: tuple[str, ...] = ()
    content_modalities: tuple[str, ...] = ()
    uses_relations: ClassVar[bool] = False
    can_explain: ClassVar[bool] = False
    can_extend_catalog: ClassVar[bool] = False
    can_index: ClassVar[bool] = False

    @classmethod
    def prepare_item_features(cls, item_features: ItemFeatures, config: Any) -> ItemFeatures:
        """Return the item features that the constructor needs, with what is computed from them once.

        Args:
            item_features: as read from the dataset.
            config: the model's hyperparameters.
        """
        return item_features

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Return the training loss of a batch of training sequences, a scalar.

        Args:
            batch: whole sequences; every item but the first is the target of the items before it.
        """

    @abstractmethod
    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the scores of candidates as the next item of each history.

        Args:
            batch: histories, without the next item.
            domain: number of the domain whose items are ranked.
            candidates: (B, C) item indices of that domain, one set per history; None scores all its items.

        Returns:
            (B, C) scores, higher is better; column c is the item `candidates[:, c]`, or item
            `domain.start + c` without candidates.
        """

    def explain(self, batch: Batch, domain: int, candidates: Tensor) -> BranchContributions:
        """Return how each branch contributes to the scores of candidates.

        Args:
            batch: histories.
            domain: number of the candidates' domain.
            candidates: (B, C) item indices.

        Raises:
            HafvtError: the model cannot explain its scores.
        """
        raise HafvtError(f"{type(self).__name__} cannot explain its scores: use hafvt")

    def extend_catalog(self, item_features: ItemFeatures, new_index: Tensor) -> Self:
        """Return this model over a larger catalog, in evaluation mode; scores of its items do not change.

        Args:
            item_features: of this model's items and of new items, whose train count is 0.
            new_index: (V,) the index in the larger catalog of each item of this model.

        Raises:
            HafvtError: the model cannot score items that it was not built with.
        """
        raise HafvtError(f"{type(self).__name__} cannot score added items: use hafvt with pictures or titles")

    def branch_tables(self, domain: int) -> list[tuple[Tensor, Tensor]]:
        """Return for each modality the vectors of a domain's items, and of the items of its softmaxes."""
        raise NotImplementedError

    def branch_queries(self, batch: Batch, domain: int) -> Iterator[BranchQuery]:
        """Yield the branches whose softmaxes, weighted and summed, are the scores of a domain's items."""
        raise NotImplementedError

    def finish_scores(
        self, total: Tensor, batch: Batch, domain: int, candidates: Tensor | None = None
    ) -> Tensor:
        """Turn the sum of the branches, (B, C), into scores, in place; arguments as for `scores`."""
        raise NotImplementedError
