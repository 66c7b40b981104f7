"""Popularity of the season: a baseline for shops whose customers buy other items in other months."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.data.dataset import SECONDS_PER_DAY
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.configs import SeasonalPopularityConfig
from hafvt.models.popularity import IntervalCounts, select_columns, train_times

SECONDS_PER_YEAR = 31_556_952  # 365.2425 days, the mean year of the calendar


class SeasonalPopularity(Model):
    """Scores an item by its training interactions, of all years, in the days around the date of the request.

    Without a time of the request, it is the end of the training data.
    """

    uses_interactions = True
    uses_times = True
    end: Tensor

    def __init__(self, item_features: ItemFeatures, config: SeasonalPopularityConfig) -> None:
        super().__init__()
        self.max_length = 1  # the scores do not depend on the history
        self.domains, self.config = item_features.domains, config
        times, items = train_times("seasonal-popularity", item_features)
        self.register_buffer("end", times.max()[None])
        # Each interaction counts in two years in a row, so that an interval may span the turn of the year.
        in_year = times % SECONDS_PER_YEAR
        in_years = torch.cat([in_year, in_year + SECONDS_PER_YEAR])
        self.counts = IntervalCounts(in_years, items.repeat(2), len(item_features))

    def loss(self, batch: Batch) -> Tensor:
        """Return 0: the model has no parameters."""
        return torch.zeros((), device=self.end.device)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the number of interactions of each item in the days of the season, see `Model.scores`."""
        times = self.end.expand(batch.lengths.shape[0]) if batch.times is None else batch.times
        length = self.config.days * SECONDS_PER_DAY
        after = (times - length // 2) % SECONDS_PER_YEAR
        return select_columns(self.counts(after, after + length), self, domain, candidates)
