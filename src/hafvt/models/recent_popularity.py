"""Popularity of the last days: a baseline for shops whose range changes."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.data.dataset import SECONDS_PER_DAY
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.configs import RecentPopularityConfig
from hafvt.models.popularity import IntervalCounts, select_columns, train_times


class RecentPopularity(Model):
    """Scores an item by its training interactions in the last days before the time of the request.

    The days end with the training data if the request is later, or its time is unknown.
    """

    uses_interactions = True
    uses_times = True
    end: Tensor

    def __init__(self, item_features: ItemFeatures, config: RecentPopularityConfig) -> None:
        super().__init__()
        self.max_length = 1  # the scores do not depend on the history
        self.domains, self.config = item_features.domains, config
        times, items = train_times("recent-popularity", item_features)
        self.counts = IntervalCounts(times, items, len(item_features))
        self.register_buffer("end", times.max()[None])

    def loss(self, batch: Batch) -> Tensor:
        """Return 0: the model has no parameters."""
        return torch.zeros((), device=self.end.device)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the number of interactions of each item in the last days, see `Model.scores`."""
        end = self.end.expand(batch.lengths.shape[0])
        until = end if batch.times is None else torch.minimum(batch.times, end)
        counts = self.counts(until - self.config.days * SECONDS_PER_DAY, until)
        return select_columns(counts, self, domain, candidates)
