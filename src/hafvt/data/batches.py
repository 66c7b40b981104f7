"""Histories as padded batches, without a Python loop over items."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from hafvt.data.dataset import Dataset, Float32, Int64

BATCHES_PER_POOL = 32  # batches whose sequences are sorted by length together


class Batch(NamedTuple):
    """Histories, right-padded.

    Attributes:
        items: (B, T) item indices; positions at or after a row's length are padding, item index 0.
        lengths: (B,) number of items of each history.
        times: (B,) time at which the next item is to be predicted, in seconds since 1970; None if unknown.
        item_times: (B, T) in training, the time at which each item is to be predicted; None if unknown.
        weights: (B, T) in training, the weight of each item as a target; None if all have the same.
    """

    items: Tensor
    lengths: Tensor
    times: Tensor | None = None
    item_times: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """Return the batch on another device."""
        return Batch(*(None if tensor is None else tensor.to(device) for tensor in self))  # type: ignore[arg-type]


def round_up_width(width: int) -> int:
    """Return the next multiple of 8, so that few widths occur: each new width allocates kernel memory."""
    return -(-width // 8) * 8


def collate(
    items: np.ndarray,
    starts: Int64,
    stops: Int64,
    width: int | None = None,
    item_times: Int64 | None = None,
    weights: Float32 | None = None,
) -> Batch:
    """Return the slices `items[start:stop]`, and those of `item_times` and `weights`, as one batch.

    Args:
        items: (interactions,) item indices, see `Dataset.items`.
        starts: (B,) first position of each slice.
        stops: (B,) position after each slice.
        width: T of the batch; default: the longest slice.
        item_times: (interactions,) time at which each item is to be predicted.
        weights: (interactions,) weight of each item as a target.
    """
    lengths = stops - starts
    width = int(lengths.max(initial=1)) if width is None else width
    slots = np.arange(width)[None, :]
    is_item = slots < lengths[:, None]  # (B, T)
    positions = np.where(is_item, starts[:, None] + slots, 0)  # (B, T)
    padded = np.where(is_item, items[positions], 0).astype(np.int64)
    batch = Batch(torch.from_numpy(padded), torch.from_numpy(lengths.astype(np.int64)))
    if item_times is not None:
        batch = batch._replace(item_times=torch.from_numpy(np.where(is_item, item_times[positions], 0)))
    if weights is not None:
        batch = batch._replace(weights=torch.from_numpy(np.where(is_item, weights[positions], 0)))
    return batch


class TrainBatches:
    """Batches of the training sequences, in a different order each epoch.

    A longer sequence than `max_length` is cut into windows, so that each interaction but the first of a user
    is a target once in an epoch. The last item of a window is the first one of the next. Where windows begin
    is drawn anew in each epoch, so that a target has longer and shorter histories.

    Windows of similar length share a batch: they are shuffled, sorted by length within pools of many batches
    and cut into batches, and the batches are shuffled. All draws depend on seed and epoch only.
    Several processes share each batch: a process gets every `num_processes`-th row of it.

    Args:
        data: the dataset; the first `train_lengths` interactions of each user are used.
        batch_size: windows per batch, over all processes.
        max_length: the most interactions of a window, its last target included; at least 2.
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
        users = np.flatnonzero(np.asarray(data.train_lengths) >= 2)  # one input and one target
        starts = np.asarray(data.offsets)[users]
        self.items, self.batch_size, self.seed = data.items, batch_size, seed
        self.times = data.request_times(np.arange(len(data.items))) if with_times else None
        self.weights = data.weights
        self.max_length, self.process_index, self.num_processes = max_length, process_index, num_processes
        self.starts, self.stops = starts, starts + np.asarray(data.train_lengths)[users]  # of the sequences
        self.windows_of_users = -(-(self.stops - self.starts - 1) // (max_length - 1))

    def __len__(self) -> int:
        """Return the number of batches in an epoch."""
        return -(-int(self.windows_of_users.sum()) // self.batch_size)

    @property
    def num_targets(self) -> int:
        """The number of next-item targets of the merged sequences in an epoch."""
        return int((self.stops - self.starts - 1).sum())

    def windows(self, epoch: int) -> tuple[Int64, Int64]:
        """Return the first position of each window of an epoch, and the position after it."""
        random = np.random.default_rng([self.seed, epoch, 1])  # other draws than those of the order
        num_windows, stride = self.windows_of_users, self.max_length - 1
        spare_targets = num_windows * stride - (self.stops - self.starts - 1)
        shifts = random.integers(0, spare_targets + 1)
        user = np.repeat(np.arange(len(num_windows)), num_windows)
        windows_after = np.repeat(np.cumsum(num_windows), num_windows) - np.arange(len(user)) - 1
        stops = (self.stops + shifts)[user] - windows_after * stride
        return np.maximum(stops - self.max_length, self.starts[user]), np.minimum(stops, self.stops[user])

    def epoch(self, epoch: int, first: int = 0) -> Iterator[Batch]:
        """Yield this process's rows of the batches of an epoch from batch number `first` on.

        Where a batch has fewer rows than there are processes, some get its first row with a length of one
        item, so without a target.
        """
        random = np.random.default_rng([self.seed, epoch])
        starts, stops = self.windows(epoch)
        order = random.permutation(len(starts))
        lengths = (stops - starts)[order]
        pool = np.arange(len(order)) // (self.batch_size * BATCHES_PER_POOL)
        order = order[np.lexsort((lengths, pool))]
        for start in random.permutation(np.arange(0, len(order), self.batch_size))[first:]:
            rows = order[start : start + self.batch_size]
            longest = int((stops - starts)[rows].max())
            width = min(round_up_width(longest - 1) + 1, self.max_length)  # the same in all processes
            share = rows[self.process_index :: self.num_processes]
            part = share if len(share) else rows[:1]
            batch = collate(self.items, starts[part], stops[part], width, self.times, self.weights)
            yield batch if len(share) else batch._replace(lengths=torch.ones_like(batch.lengths))


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
