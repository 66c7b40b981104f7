"""Communication between the processes of a training or evaluation, by torch.distributed.

Each process trains on its users of a batch. Its loss is its part of the batch's loss: models divide sums
over the targets of the process by the number of targets of all processes, see `global_count`. The sum of all
losses is then the loss of one process with the whole batch, and the same holds for gradients.

All processes must call these functions equally often and in the same order. Outside of `process_group`, or
with one process, the functions return what they are given. Names are as in torch.distributed; functions whose
names end with an underscore replace the values of a tensor, as in torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from hafvt.errors import HafvtError
from hafvt.processes import num_processes, process_index, set_reports_errors

P = ParamSpec("P")
T = TypeVar("T")

STEP_TIMEOUT = timedelta(seconds=60)
"""Longest wait for a message within a step, after which the other process counts as dead."""
LONG_TIMEOUT = timedelta(hours=6)
"""Longest wait for a process that works alone, such as one that writes a checkpoint."""
BUCKET_ELEMENTS = 2**20
"""Gradients with fewer elements are summed in one message, as in the buckets of DistributedDataParallel."""

_long_timeout_group: Any = None
_launcher_pid = 0


@contextmanager
def process_group() -> Iterator[None]:
    """Connect the processes that torchrun started while the block runs; without torchrun, do nothing.

    If the block fails in several processes, the first of them reports the error.
    """
    global _long_timeout_group, _launcher_pid
    if num_processes() == 1 or is_distributed():
        yield
        return
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    _with_clear_error(dist.init_process_group)(
        "cpu:gloo,cuda:nccl" if has_nccl else "gloo", timeout=STEP_TIMEOUT
    )
    store = dist.distributed_c10d._get_default_store()  # of torchrun's agent, which outlives the processes
    _long_timeout_group = _with_clear_error(dist.new_group)(timeout=LONG_TIMEOUT)
    _launcher_pid = os.getppid()
    try:
        yield
    except BaseException:
        try:  # without the agent, torch would print a trace in C++
            set_reports_errors(is_orphan() or store.add("hafvt_errors", 1) == 1)
        except RuntimeError:  # the agent ended, too
            set_reports_errors(True)
        raise
    finally:
        _long_timeout_group = None
        dist.destroy_process_group()


def is_distributed() -> bool:
    """Return whether this process is connected to others."""
    return dist.is_available() and dist.is_initialized()


def is_orphan() -> bool:
    """Return whether torchrun's agent, which started this process, has ended."""
    return is_distributed() and os.getppid() != _launcher_pid


def _with_clear_error(function: Callable[P, T]) -> Callable[P, T]:
    """Turn the errors of torch.distributed into one line."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except (RuntimeError, ValueError) as error:
            if num_processes() == 1 or "memory" in str(error):
                raise
            raise HafvtError(
                "another process was killed, failed or does not answer, so all end: see other messages, and "
                "start the command again (train: with --resume, which continues from the last checkpoint)"
            ) from error

    return run


@_with_clear_error
def barrier() -> None:
    """Wait until all processes call this function, for `LONG_TIMEOUT` at most."""
    if is_distributed():
        dist.all_reduce(torch.zeros(1), group=_long_timeout_group)


@_with_clear_error
def all_reduce_sum(values: Sequence[float], *, long_timeout: bool = False) -> list[float]:
    """Return the sum of each value over all processes; `long_timeout` waits for them up to `LONG_TIMEOUT`."""
    if not is_distributed():
        return list(values)
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums, group=_long_timeout_group if long_timeout else None)
    return sums.tolist()


def global_count(count: int) -> int:
    """Return the sum of a count over all processes."""
    return int(all_reduce_sum([count])[0])


@_with_clear_error
def all_reduce_sum_(tensor: Tensor, *, long_timeout: bool = False) -> None:
    """Replace a tensor by its sum over all processes; with `long_timeout`, others may come hours later."""
    if is_distributed():
        dist.all_reduce(tensor, group=_long_timeout_group if long_timeout else None)


@_with_clear_error
def all_reduce_max_(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its maximum over all processes."""
    for tensor in tensors if is_distributed() else ():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)


@_with_clear_error
def broadcast_(tensor: Tensor, source: int = 0) -> Tensor:
    """Replace the values of a tensor by those in the process `source`, and return it."""
    if is_distributed():
        dist.broadcast(tensor, src=source)
    return tensor


@_with_clear_error
def all_to_all_rows(rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
    """Send `sent[p]` of the rows to each process p, in order, and return the `received[p]` rows of each."""
    if not is_distributed():
        return rows
    result = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(result, rows.contiguous(), received, sent)
    return result


@_with_clear_error
def all_gather_rows(rows: Tensor, counts: Sequence[int] | None = None) -> list[Tensor]:
    """Return the rows of each process; `counts` are their numbers, which are exchanged if None."""
    if not is_distributed():
        return [rows]
    if counts is None:
        lengths = [torch.empty(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(lengths, torch.tensor([len(rows)]))
        counts = [int(length) for length in lengths]
    padded = functional.pad(rows, [0, 0] * (rows.ndim - 1) + [0, max(counts) - len(rows)])
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return [part[:count] for part, count in zip(parts, counts, strict=True)]


def all_gather_histories(items: Tensor) -> tuple[Tensor, int]:
    """Return the histories of all processes, (B, T) -> (B', T), and how many rows come before this process's.

    Rows shorter than T are padded with -1, and longer ones are cut.
    """
    if not is_distributed():
        return items, 0
    width = torch.tensor(items.shape[1])
    all_reduce_max_([width])
    parts = all_gather_rows(functional.pad(items, (0, int(width) - items.shape[1]), value=-1))
    return torch.cat(parts)[:, : items.shape[1]], sum(map(len, parts[: process_index()]))


@_with_clear_error
def all_reduce_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Replace the gradient of each parameter by its sum over all processes.

    A gradient is None if it is None in all processes, and sparse if it is sparse in any.
    """
    if not is_distributed():
        return
    kinds = torch.tensor([0 if p.grad is None else 1 + p.grad.is_sparse for p in parameters])
    all_reduce_max_([kinds])
    bucket: list[Tensor] = []
    for parameter, kind in zip(parameters, kinds.tolist(), strict=True):
        if kind == 2:
            parameter.grad = _all_reduce_sparse(parameter.grad, parameter)
        elif kind == 1:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            if parameter.numel() < BUCKET_ELEMENTS:
                bucket.append(parameter.grad)
            else:
                dist.all_reduce(parameter.grad)
    if bucket:
        flat = torch.cat([grad.flatten() for grad in bucket])
        dist.all_reduce(flat)
        for grad, part in zip(bucket, torch.split(flat, [grad.numel() for grad in bucket]), strict=True):
            grad.copy_(part.view_as(grad))


def _all_reduce_sparse(grad: Tensor | None, parameter: Tensor) -> Tensor:
    """Return the sum of gradients that are sparse in their first dimension; None is a zero gradient."""
    if grad is None:
        rows, values = (
            torch.zeros(0, dtype=torch.int64, device=parameter.device),
            parameter.new_zeros(0, *parameter.shape[1:]),
        )
    else:
        grad = grad.coalesce()
        rows, values = grad.indices()[0], grad.values()
    rows, values = torch.cat(all_gather_rows(rows)), torch.cat(all_gather_rows(values))
    return torch.sparse_coo_tensor(rows[None], values, parameter.shape, check_invariants=False).coalesce()
