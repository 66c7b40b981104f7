"""Popularity: a baseline that ranks items by their training interactions, whatever the history."""

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
        self.max_length = 1  # the scores do not depend on the history
        self.domains = item_features.domains
        self.register_buffer("counts", item_features.train_counts.clone())

    def loss(self, batch: Batch) -> Tensor:
        """Return 0: the model has no parameters."""
        return torch.zeros((), device=self.counts.device)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the train count of each item, see `Model.scores`."""
        if candidates is not None:
            return self.counts[candidates]
        start, stop = self.domains[domain].start, self.domains[domain].stop
        return self.counts[start:stop].expand(batch.items.shape[0], -1)
