"""Ragged histories become padded batches; no Python loop per item."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hafvt.data.dataset import Dataset, Int64


class Batch(NamedTuple):
    """Histories, right-padded.

    Attributes:
        items: (B, T) item indices; slots at or beyond a row's length hold 0 and mean nothing.
        lengths: (B,) number of real items in each row.
    """

    items: Tensor
    lengths: Tensor

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on another device."""
        return Batch(self.items.to(device), self.lengths.to(device))


def round_up_width(width: int) -> int:
    """Returns a width rounded up, so that few come up: kernels for each size met take memory that stays."""
    return -(-width // 8) * 8


def gather(items: np.ndarray, starts: Int64, stops: Int64, width: int | None = None) -> Batch:
    """Returns the slices items[start:stop] as one batch, (B, width), by default as wide as the longest."""
    lengths = stops - starts
    width = int(lengths.max(initial=1)) if width is None else width
    slots = np.arange(width)[None, :]
    inside = slots < lengths[:, None]  # (B, T)
    padded = np.where(inside, items[np.where(inside, starts[:, None] + slots, 0)], 0)
    return Batch(torch.from_numpy(padded.astype(np.int64)), torch.from_numpy(lengths.astype(np.int64)))


class TrainBatches:
    """The training sequences in batches, another order each epoch.

    Sequences of like length share a batch: the users are shuffled, sorted by length within pools of many
    batches, cut into batches, and the batches are shuffled. The order depends on seed and epoch only.

    Args:
        data: the dataset; each user's first `train_ends` interactions are used.
        batch_size: users per batch.
        max_length: only the last so many interactions of each sequence are used, counting the last target.
        seed: of the order.
    """

    POOL = 32  # batches that are sorted by length together

    def __init__(self, data: Dataset, batch_size: int, max_length: int, seed: int) -> None:
        lengths = np.minimum(np.asarray(data.train_ends), max_length)
        users = np.flatnonzero(lengths >= 2)  # one input and one target at least
        stops = np.asarray(data.offsets[:-1]) + data.train_ends
        self.items, self.batch_size, self.seed = data.items, batch_size, seed
        self.max_length = max_length
        self.starts, self.stops = (stops - lengths)[users], stops[users]

    def __len__(self) -> int:
        """Returns the number of batches in an epoch."""
        return -(-len(self.starts) // self.batch_size)

    @property
    def targets(self) -> int:
        """The number of next-item targets of the merged sequences in an epoch."""
        return int((self.stops - self.starts - 1).sum())

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yields the batches of an epoch from batch number `first` on."""
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.starts))
        lengths = (self.stops - self.starts)[order]
        pool = np.arange(len(order)) // (self.batch_size * self.POOL)
        order = order[np.lexsort((lengths, pool))]
        cuts = np.arange(0, len(order), self.batch_size)
        for cut in random.permutation(cuts)[first:]:
            rows = order[cut : cut + self.batch_size]
            longest = int((self.stops - self.starts)[rows].max())
            width = min(round_up_width(longest - 1) + 1, self.max_length)
            yield gather(self.items, self.starts[rows], self.stops[rows], width)


def target_batches(
    data: Dataset, positions: Int64, batch_size: int, max_length: int
) -> Iterator[tuple[Int64, Batch]]:
    """Yields the histories of targets, shortest first, so that padding is small.

    Args:
        data: the dataset.
        positions: (n,) positions of targets (`data.valid` or `data.test`).
        batch_size: histories per batch.
        max_length: only the last so many items before a target are used.

    Yields:
        Rows of `positions` and the histories that lead to them, which end right before the target.
    """
    starts = np.asarray(data.offsets)[data.user_of(positions)]
    starts = np.maximum(starts, positions - max_length)
    order = np.argsort(positions - starts, kind="stable")
    for cut in range(0, len(order), batch_size):
        rows = order[cut : cut + batch_size]
        yield rows, gather(data.items, starts[rows], np.asarray(positions)[rows])
