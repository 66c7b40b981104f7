"""Popularity of the last days: a baseline for shops whose range changes."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.data.dataset import SECONDS_PER_DAY
from hafvt.features.item_features import ItemFeatures
from hafvt.models.configs import RecentPopularityConfig
from hafvt.models.popularity import TimedPopularity


class RecentPopularity(TimedPopularity):
    """Scores an item by its training interactions in the last days before the time of the request.

    The days end with the training data if the request is later, or its time is unknown.
    """

    def __init__(self, item_features: ItemFeatures, config: RecentPopularityConfig) -> None:
        super().__init__("recent-popularity", item_features)
        self.config = config

    def interval(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return the last days before requests, see `TimedPopularity.interval`."""
        until = torch.minimum(times, self.end)
        return until - self.config.days * SECONDS_PER_DAY, until
