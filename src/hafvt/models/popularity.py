"""The items met most often in training, whatever the history: the yardstick nobody may fall below."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.configs import PopularityConfig


class Popularity(Model):
    """Scores an item by its number of training interactions."""

    counts: Tensor

    def __init__(self, item_features: ItemFeatures, config: PopularityConfig) -> None:
        super().__init__()
        self.max_length = 1  # whatever the history, the scores are the same
        self.domains = item_features.domains
        self.register_buffer("counts", item_features.train_counts.clone())

    def loss(self, batch: Batch) -> Tensor:
        """Returns 0: there is nothing to learn."""
        return torch.zeros((), device=self.counts.device)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`."""
        if candidates is not None:
            return self.counts[candidates]
        chosen = self.domains[domain]
        return self.counts[chosen.start : chosen.stop].expand(batch.items.shape[0], -1)
