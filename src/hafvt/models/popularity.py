"""Popularity: baselines that rank items by their training interactions, whatever the history."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.configs import PopularityConfig


class Popularity(Model):
    """Scores an item by its number of training interactions, or by the sum of their weights."""

    counts: Tensor

    def __init__(self, item_features: ItemFeatures, config: PopularityConfig) -> None:
        super().__init__()
        self.max_length = 1  # the scores do not depend on the history
        self.domains = item_features.domains
        weights = item_features.train_weights
        self.register_buffer("counts", (item_features.train_counts if weights is None else weights).clone())

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the train count of each item, see `Model.scores`."""
        if candidates is not None:
            return self.counts[candidates]
        start, stop = self.domains[domain].start, self.domains[domain].stop
        return self.counts[start:stop].expand(batch.items.shape[0], -1)


class IntervalCounts(nn.Module):
    """Counts the training interactions of each of V items in intervals of time.

    Args:
        times: (n,) int64 time of each interaction.
        items: (n,) int64 item of each interaction.
        num_items: V.
        weights: (n,) weight of each interaction; None if all have the same.
    """

    times: Tensor
    items: Tensor
    weights: Tensor | None

    def __init__(self, times: Tensor, items: Tensor, num_items: int, weights: Tensor | None = None) -> None:
        super().__init__()
        order = times.argsort(stable=True)
        self.num_items = num_items
        self.register_buffer("times", times[order])
        self.register_buffer("items", items[order])
        self.register_buffer("weights", None if weights is None else weights[order])

    def forward(self, after: Tensor, until: Tensor) -> Tensor:
        """Return how often each item occurs at times `after` < t <= `until`, (B,) each -> (B, V)."""
        if torch.compiler.is_exporting():  # the requests of a call have the same time
            is_inside = (self.times > after[:1]) & (self.times <= until[:1])  # (n,)
            values = is_inside.float() if self.weights is None else is_inside * self.weights
            counts = torch.zeros(self.num_items).index_add(0, self.items, values)
            return counts.expand(after.shape[0], -1)
        intervals, rows = torch.unique(torch.stack([after, until], 1), dim=0, return_inverse=True)
        bounds = torch.searchsorted(self.times, intervals, right=True).tolist()
        return torch.stack(
            [
                torch.bincount(
                    self.items[first:last],
                    None if self.weights is None else self.weights[first:last],
                    self.num_items,
                )
                for first, last in bounds
            ]
        ).float()[rows]


class TimedPopularity(Model):
    """Scores an item by its training interactions in an interval of time that depends on the request.

    Args:
        name: name of the model, for messages.
        item_features: the items, with the training interactions.
        period: seconds after which times repeat, such as those of a year; None: they do not.
    """

    uses_interactions = True
    uses_times = True
    end: Tensor
    """(1,) time of the last training interaction."""

    def __init__(self, name: str, item_features: ItemFeatures, period: int | None = None) -> None:
        super().__init__()
        self.max_length = 1  # the scores do not depend on the history
        self.domains = item_features.domains
        times, items, weights = train_times(name, item_features)
        self.register_buffer("end", times.max()[None])
        if period is not None:
            # Each interaction counts in two periods in a row, as an interval may span the turn of a period.
            times, items = torch.cat([times % period, times % period + period]), items.repeat(2)
            weights = None if weights is None else weights.repeat(2)
        self.counts = IntervalCounts(times, items, len(item_features), weights)

    @abstractmethod
    def interval(self, times: Tensor) -> tuple[Tensor, Tensor]:
        """Return start and end of the intervals for requests at some times, (B,) -> (B,) each.

        Interactions at the start are outside, those at the end inside.
        """

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the number of interactions of each item in the interval, see `Model.scores`."""
        times = self.end.expand(batch.lengths.shape[0]) if batch.times is None else batch.times
        return select_columns(self.counts(*self.interval(times)), self, domain, candidates)


def train_times(model: str, item_features: ItemFeatures) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return time, item and weight of each training interaction, (n,); zeros where a finished run is opened.

    There are no weights if all interactions have the same.

    Raises:
        HafvtError: the dataset has no times in seconds since 1970.
    """
    interactions = item_features.interactions
    if interactions is None:
        zeros = torch.zeros(int(item_features.train_counts.double().sum()), dtype=torch.int64)
        return zeros, zeros, None if item_features.train_weights is None else zeros.float()
    if interactions.times is None:
        raise HafvtError(
            f"{model} needs dates or times since 1970, all after March 1973, which this dataset does not "
            "have: prepare it with those, or choose popularity"
        )
    return interactions.times, interactions.items, interactions.weights


def select_columns(scores: Tensor, model: Model, domain: int, candidates: Tensor | None) -> Tensor:
    """Return those scores of all items, (B, V), that belong to a domain's items or to candidates, (B, C)."""
    if candidates is not None:
        return scores.gather(1, candidates)
    return scores[:, model.domains[domain].start : model.domains[domain].stop]
