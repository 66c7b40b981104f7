"""Histories as padded batches, without a Python loop over items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hafvt.data.dataset import Dataset, Int64

BATCHES_PER_POOL = 32  # batches whose sequences are sorted by length together


class Batch(NamedTuple):
    """Histories, right-padded.

    Attributes:
        items: (B, T) item indices; positions at or after a row's length are padding, item index 0.
        lengths: (B,) number of items of each history.
        times: (B,) time at which the next item is to be predicted, in seconds since 1970; None if unknown.
        item_times: (B, T) in training, the time at which each item is to be predicted; None if unknown.
    """

    items: Tensor
    lengths: Tensor
    times: Tensor | None = None
    item_times: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        times, item_times = (None if t is None else t.to(device) for t in (self.times, self.item_times))
        return Batch(self.items.to(device), self.lengths.to(device), times, item_times)


def round_up_width(width: int) -> int:
    """Return the next multiple of 8, so that few widths occur: each new width allocates kernel memory."""
    return -(-width // 8) * 8


def collate(
    items: np.ndarray,
    starts: Int64,
    stops: Int64,
    width: int | None = None,
    item_times: Int64 | None = None,
) -> Batch:
    """Return the slices `items[start:stop]`, and those of `item_times`, as one batch.

    Args:
        items: (interactions,) item indices, see `Dataset.items`.
        starts: (B,) first position of each slice.
        stops: (B,) position after each slice.
        width: T of the batch; default: the longest slice.
        item_times: (interactions,) time at which each item is to be predicted.
    """
    lengths = stops - starts
    width = int(lengths.max(initial=1)) if width is None else width
    slots = np.arange(width)[None, :]
    is_item = slots < lengths[:, None]  # (B, T)
    positions = np.where(is_item, starts[:, None] + slots, 0)  # (B, T)
    padded = np.where(is_item, items[positions], 0).astype(np.int64)
    batch = Batch(torch.from_numpy(padded), torch.from_numpy(lengths.astype(np.int64)))
    if item_times is None:
        return batch
    return batch._replace(item_times=torch.from_numpy(np.where(is_item, item_times[positions], 0)))


class TrainBatches:
    """Batches of the training sequences, in a different order each epoch.

    Sequences of similar length share a batch: users are shuffled, sorted by length within pools of many
    batches and cut into batches, and the batches are shuffled. The order depends on seed and epoch only.
    Several processes share each batch: a process gets every `num_processes`-th row of it.

    Args:
        data: the dataset; the first `train_lengths` interactions of each user are used.
        batch_size: users per batch, over all processes.
        max_length: only the last `max_length` interactions of a sequence are used, its last target included.
        seed: seed of the order.
        process_index: number of this process, below `num_processes`.
        num_processes: number of processes.
        with_times: whether batches have `item_times`, if the dataset has times since 1970.
    """

    def __init__(
        self,
        data: Dataset,
        batch_size: int,
        max_length: int,
        seed: int,
        *,
        process_index: int = 0,
        num_processes: int = 1,
        with_times: bool = False,
    ) -> None:
        lengths = np.minimum(np.asarray(data.train_lengths), max_length)
        users = np.flatnonzero(lengths >= 2)  # a sequence needs one input and one target
        stops = np.asarray(data.offsets[:-1]) + data.train_lengths
        self.items, self.batch_size, self.seed = data.items, batch_size, seed
        self.times = data.request_times(np.arange(len(data.items))) if with_times else None
        self.max_length, self.process_index, self.num_processes = max_length, process_index, num_processes
        self.starts, self.stops = (stops - lengths)[users], stops[users]

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-len(self.starts) // self.batch_size)

    @property
    def num_targets(self) -> int:
        """The number of next-item targets of the merged sequences in an epoch."""
        return int((self.stops - self.starts - 1).sum())

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield this process's rows of the batches of an epoch from batch number `first` on.

        Where a batch has fewer rows than there are processes, some get its first row with a length of one
        item, so without a target.
        """
        random = np.random.default_rng([self.seed, epoch])
        order = random.permutation(len(self.starts))
        lengths = (self.stops - self.starts)[order]
        pool = np.arange(len(order)) // (self.batch_size * BATCHES_PER_POOL)
        order = order[np.lexsort((lengths, pool))]
        for start in random.permutation(np.arange(0, len(order), self.batch_size))[first:]:
            rows = order[start : start + self.batch_size]
            longest = int((self.stops - self.starts)[rows].max())
            width = min(round_up_width(longest - 1) + 1, self.max_length)  # the same in all processes
            share = rows[self.process_index :: self.num_processes]
            if len(share):
                yield collate(self.items, self.starts[share], self.stops[share], width, self.times)
            else:
                batch = collate(self.items, self.starts[rows[:1]], self.stops[rows[:1]], width, self.times)
                yield batch._replace(lengths=torch.ones_like(batch.lengths))


def target_batches(
    data: Dataset, positions: Int64, batch_size: int, max_length: int
) -> Iterator[tuple[Int64, Batch]]:
    """Yield the histories of targets, shortest first, so that padding is small.

    Args:
        data: the dataset.
        positions: (n,) positions of targets (`data.valid` or `data.test`).
        batch_size: histories per batch.
        max_length: only the last `max_length` items before a target are used.

    Yields:
        Row numbers in `positions`, (B,), and the batch of their histories, each of which ends right before
        its target.
    """
    starts = np.asarray(data.offsets)[data.users_at(positions)]
    order = np.argsort(np.minimum(positions - starts, max_length), kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        yield rows, history_batch(data, np.asarray(positions)[rows], max_length)


def history_batch(data: Dataset, positions: Int64, max_length: int) -> Batch:
    """Return the histories of targets and their times of request, see `target_batches`."""
    starts = np.asarray(data.offsets)[data.users_at(positions)]
    batch = collate(data.items, np.maximum(starts, positions - max_length), positions)
    times = data.request_times(positions)
    return batch if times is None else batch._replace(times=torch.from_numpy(times))
