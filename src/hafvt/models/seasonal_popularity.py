"""Popularity of the season: a baseline for shops whose customers buy other items in other months."""

from __future__ import annotations

from torch import Tensor

from hafvt.data.dataset import SECONDS_PER_DAY
from hafvt.features.item_features import ItemFeatures
from hafvt.models.configs import SeasonalPopularityConfig
from hafvt.models.popularity import TimedPopularity

SECONDS_PER_YEAR = 31_556_952  # 365.2425 days, the mean year of the calendar


class SeasonalPopularity(TimedPopularity):
    """Scores an item by its training interactions, of all years, in the days around the date of the request.

    Without a time of the request, it is the end of the training data.
    """

    def __init__(self, item_features: ItemFeatures, config: SeasonalPopularityConfig) -> None:
        super().__init__("seasonal-popularity", item_features, period=SECONDS_PER_YEAR)
        self.config = config

    def interval(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return the days around the date of requests, see `TimedPopularity.interval`."""
        length = self.config.days * SECONDS_PER_DAY
        after = (times - length // 2) % SECONDS_PER_YEAR
        return after, after + length
