"""Communication between the processes of a training or evaluation, by torch.distributed.

Each process trains on its users of a batch. Its loss is its part of the batch's loss: models divide sums over
the targets of the process by the number of targets of all processes, see `total_counts`. The sum of all
losses is then the loss of one process with the whole batch, and so are the gradients.

All processes must call these functions equally often and in the same order. Without a process group, which
`hafvt.training.process_group` opens, the functions return what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from hafvt.errors import HafvtError

P = ParamSpec("P")
T = TypeVar("T")

BUCKET_ELEMENTS = 2**20
"""Smaller tensors share one message."""


def is_distributed() -> bool:
    """Return whether this process belongs to a process group."""
    return dist.is_available() and dist.is_initialized()


def _with_clear_error(function: Callable[P, T]) -> Callable[P, T]:
    """Turn the errors of torch.distributed into one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except RuntimeError as error:
            if not is_distributed() or "memory" in str(error):
                raise
            raise HafvtError(
                "another process ended or does not answer, so this one ends, too: see the messages of the "
                "others, and start the command again (train: with --resume)"
            ) from error

    return run


@_with_clear_error
def total_counts(counts: Sequence[int]) -> list[int]:
    """Return the sums of counts over all processes."""
    if not is_distributed():
        return list(counts)
    totals = torch.tensor(counts)
    dist.all_reduce(totals)
    return [int(total) for total in totals]


def total_count(count: int) -> int:
    """Return the sum of a count over all processes."""
    return total_counts([count])[0]


@_with_clear_error
def from_first_process(tensor: Tensor) -> Tensor:
    """Return the tensor of process 0, in place of one of the same shape."""
    if is_distributed():
        dist.broadcast(tensor, src=0)
    return tensor


@_with_clear_error
def all_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Return the rows of all processes, (B, T) -> (B', T), -1 in the place of missing columns.

    Longer rows of other processes are cut. The second value is the number of rows before those of this process.
    """
    if not is_distributed():
        return rows, 0
    sizes = [torch.empty(2, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(rows.shape))
    num_rows, width = (int(size) for size in torch.stack(sizes).amax(0))
    padding = (0, width - rows.shape[1], 0, num_rows - len(rows))
    padded = functional.pad(rows, padding, value=-1)
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    counts = [int(size[0]) for size in sizes]
    gathered = torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])
    return gathered[:, : rows.shape[1]], sum(counts[: dist.get_rank()])
