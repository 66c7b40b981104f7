"""The interface of all models."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.models.hyperparameters import ModelConfig
from hafvt.ops.shards import Shard

__all__ = ["BranchContributions", "BranchQuery", "Model", "ModelConfig", "ScoreFactors"]


class BranchContributions(NamedTuple):
    """How each branch, a pair of sequence and modality, contributes to scores."""

    shares: Tensor
    """(B, C, S, M) share of each branch in the score of each candidate; the shares sum to 1."""
    attention: Tensor
    """(B, S, M, T) weight of each item of the merged history in each branch; sums to 1 over the history, or
    to 0 where the branch's sequence is empty."""


ID_TABLES = ("ids", "items.ids", "items")
"""Submodules of which one holds the learned vectors of the items' ids, if the model has any."""


def normalize_shares(scores: Tensor) -> Tensor:
    """Return the scores of branches, (B, C, S, M), divided by their sum over branches; 0 where that is 0."""
    return scores / scores.sum((2, 3), keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)


class BranchQuery(NamedTuple):
    """What one branch needs for its softmax over the items of a domain."""

    modality: int
    h: Tensor
    """(B, d) last state, scaled so that its products with the vectors of `branch_vectors` are logits."""
    log_weight: Tensor
    """() log of the sequence's weight times the modality's weight."""
    is_empty: Tensor
    """(B,) whether the sequence has no items; such a branch scores 0."""
    log_subtracted_mass: Tensor
    """(B,) log of what to subtract from the softmax's denominator, as items of the history weigh less."""


class ScoreFactors(NamedTuple):
    """What turns the weighted sum of softmaxes of an item into its score, the log of the sum."""

    cold_item_boost: float
    """Factor on the sum of a cold item."""
    log_repeat_factor: float
    """Added to the score of an item of the history."""


class Model(nn.Module, ABC):
    """A recommender: computes a loss from training sequences and scores from histories.

    The constructor takes `item_features` and the model's `ModelConfig`.
    """

    max_length: int
    """The longest history that the model reads, in items; callers cut older items."""
    domains: tuple[Domain, ...]
    notes: tuple[str, ...] = ()
    """Sentences that a report shows below its tables, such as what the model lacks."""
    sequence_names: tuple[str, ...] = ()
    """Names of the S sequences of `explain`."""
    modalities: tuple[str, ...] = ()
    """Names of the M modalities of `explain`."""
    content_modalities: tuple[str, ...] = ()
    """The frozen features, such as image and title, that the model reads."""
    shard: Shard | None = None
    """The rows of item tables that this process holds in training; None for all."""
    sharded_names: tuple[str, ...] = ()
    """Names of the tensors in the state dict that are slices of item tables; none without a shard."""
    uses_relations: ClassVar[bool] = False
    """Whether the model needs the relations between items."""
    uses_interactions: ClassVar[bool] = False
    """Whether the model needs the training interactions."""
    by_domain: ClassVar[tuple[str, ...]] = ()
    """Module lists and parameters with an entry for each of `sequence_names` or, without these, domain."""
    uses_times: bool = False
    """Whether scores depend on the times of a batch."""
    can_explain: ClassVar[bool] = False
    can_extend_catalog: ClassVar[bool] = False
    can_shard_catalog: ClassVar[bool] = False
    """Whether several processes can hold slices of the item tables, see `ItemFeatures.shard`."""
    has_history_vectors: ClassVar[bool] = False
    """Whether `history_vectors` is available."""
    can_index: ClassVar[bool] = False
    """Whether `scoring_rows`, `branch_queries` and `score_factors`, which an index needs, are available."""

    @classmethod
    def prepare_item_features(cls, item_features: ItemFeatures, config: Any) -> ItemFeatures:
        """Return a dataset's item features with what the constructor needs and is computed only once."""
        return item_features

    @classmethod
    def restore_features(cls, item_features: ItemFeatures, weights: Mapping[str, Tensor]) -> ItemFeatures:
        """Return item features with those that only training computes, read from a model's state dict."""
        return item_features

    def loss(self, batch: Batch) -> Tensor:
        """Return the training loss of whole sequences, a scalar; models without parameters keep this 0.

        Every item but the first is the target of the items before it.
        """
        return torch.zeros((), device=batch.items.device)

    @abstractmethod
    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the scores of candidates as the next item of each history.

        Args:
            batch: histories, without the next item.
            domain: number of the domain whose items are ranked.
            candidates: (B, C) item indices of that domain, one set per history; None scores all its items.

        Returns:
            (B, C) scores, higher is better; without candidates, column c is the item `domain.start + c`.
        """

    def explain(self, batch: Batch, domain: int, candidates: Tensor) -> BranchContributions:
        """Return how each branch contributes to the scores of candidates, (B, C) items of a domain.

        Raises:
            HafvtError: the model cannot explain its scores.
        """
        raise HafvtError(f"{type(self).__name__} cannot explain its scores: use hafvt")

    def inherit_features(
        self, item_features: ItemFeatures, own: ItemFeatures, new: Tensor, old: Tensor
    ) -> ItemFeatures:
        """Return item features with what this model computed from its own ones and its weights depend on.

        Args:
            item_features: those of a later training.
            own: those of this model.
            new: (n,) indices of shared items in the later training.
            old: (n,) their indices in this model.
        """
        return item_features

    def extend_catalog(self, item_features: ItemFeatures, extended_indices: Tensor) -> Self:
        """Return this model over a larger catalog, in evaluation mode; scores of its items do not change.

        Args:
            item_features: of this model's items and of new items, whose train count is 0.
            extended_indices: (V,) the index in the larger catalog of each item of this model.

        Raises:
            HafvtError: the model cannot score items that it was not built with.
        """
        raise HafvtError(f"{type(self).__name__} cannot score added items: use hafvt with pictures or titles")

    @property
    def id_vectors(self) -> Tensor | None:
        """The learned vectors of the items' ids, (V, d); None for a model without any."""
        modules = dict(self.named_modules())
        tables = (modules[name] for name in ID_TABLES if isinstance(modules.get(name), nn.Embedding))
        return next((table.weight.detach() for table in tables), None)

    def history_vectors(self, batch: Batch) -> Tensor:
        """Return vectors of histories, (B, d), whose products with `id_vectors` are the scores."""
        raise NotImplementedError

    def scoring_sequence_indices(self, domain: int) -> list[int]:
        """Return the positions in `sequence_names` of the sequences of `branch_queries`."""
        raise NotImplementedError

    def branch_vectors(self, domain: int) -> list[tuple[Tensor, Tensor]]:
        """Return for each modality the vectors of a domain's items, and of the items of its softmaxes."""
        raise NotImplementedError

    def scoring_rows(self, items: Tensor) -> list[Tensor]:
        """Return for each modality the vectors that score items, (N,) -> (N, d), without whole tables."""
        raise NotImplementedError

    def branch_queries(self, batch: Batch, domain: int, *, by_row: bool = False) -> Iterator[BranchQuery]:
        """Yield the branches whose softmaxes, weighted and summed, are the scores of a domain's items.

        With `by_row`, no whole table of items is computed, see `scoring_rows`.
        """
        raise NotImplementedError

    def score_factors(self) -> ScoreFactors | None:
        """Return what turns sums of branches into scores.

        With None, the score is the dot product of the vectors of the only branch.
        """
        raise NotImplementedError
