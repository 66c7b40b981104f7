"""Compute the softmax of queries over an item table in tiles of logits that fit the processor's cache.

For queries q, (N, d), and item vectors, the rows of a table, (V, d):

    z[i, j]          = q[i] . rows[j]                          logit
    log_partition[i] = log(sum over j of exp(z[i, j]))         log of the softmax's denominator
    p[i, j]          = exp(z[i, j] - log_partition[i])         softmax
    mean[i]          = sum over j of p[i, j] rows[j]           gradient of log_partition[i] by q[i]

`iter_tiles` yields a tile for each range of queries, with `log_partition` and `mean`. If grad[i] is the
gradient of a loss by log_partition[i], then the tile's method `add_table_grad` adds the loss's gradient by
rows[j], the sum over i of grad[i] p[i, j] q[i]. `ops.catalog_softmax` builds its losses from these.

A tile is a `LogitTile` (matrix products and exponentials in one reused buffer) or, where the processor does
that faster, a `FlashTile` (PyTorch's fused attention for the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hafvt.ops.device import has_matrix_units

TILE_SHAPE = {"cpu": (512, 8192), "cuda": (2048, 65536)}
"""Most queries and most items of one matrix of logits, by device type."""
MAX_STORED_EXPONENTIALS = {"cpu": 2**26, "cuda": 2**28}
"""Most exponentials to store at a time for gradients (queries times all items), by device type."""
MAX_CACHED_EXPONENTIALS = 2**23
"""Most float32 exponentials to store at a time on a CPU, if that leaves `MIN_QUERIES`; more are slower."""
MIN_QUERIES = 128
"""Fewest queries at a time for which matrix products run at full speed."""
QUERY_MULTIPLE = 64
"""Queries are padded to a multiple of this: for each new shape, oneDNN keeps another kernel in memory."""
ROW_CHUNK = 4096
"""Rows of a table to normalize or convert at a time."""
FLASH_GROUP_ITEMS = 8192
"""Most items of one group; fused attention processes items in groups."""
FLASH_GROUPS = 4
"""Most groups of items in one call of fused attention, which processes them in parallel."""
MAX_SAFE_LOGIT = 60.0
"""Below this logit, a sum of millions of exponentials does not overflow float32 or bfloat16."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype in which to sum values of `dtype`: float64 for float64, else float32."""
    return torch.promote_types(dtype, torch.float32)


class LogitTile(NamedTuple):
    """The softmax of n queries over V items, by stored exponentials."""

    exponentials: list[tuple[slice, Tensor]]
    """Ranges of items with their exponentials, (n or more with padding, items); empty if not stored."""
    log_factor: Tensor
    """(n,) log of the factor of probabilities, `p[i, j] = exponentials[i, j] * exp(log_factor[i])`."""
    log_partition: Tensor
    """(n,) logs of the softmax's denominators."""
    mean: Tensor
    """(n, d) mean item vectors under the softmax; zeros unless requested."""

    def add_table_grad(self, table_grad: Tensor, grad: Tensor, q: Tensor) -> None:
        """Add the gradient of the table to `table_grad`, (V, d); see the module's docstring."""
        weighted = ((grad * self.log_factor.exp())[:, None] * q).to(self.exponentials[0][1].dtype)  # (n, d)
        weighted = functional.pad(weighted, (0, 0, 0, len(self.exponentials[0][1]) - len(weighted)))
        for items, exponentials in self.exponentials:
            if weighted.dtype == table_grad.dtype:  # 10 % to 30 % faster than a product and a sum
                table_grad[items].addmm_(exponentials.T, weighted)
            else:
                table_grad[items] += torch.mm(exponentials.T, weighted)


class FlashTile(NamedTuple):
    """The softmax of all N queries over V items, by fused attention."""

    q: Tensor
    """(N or more, d) queries, padded with zeros."""
    rows: Tensor
    """(V, d) item vectors."""
    log_partition: Tensor
    """(N,) logs of the softmax's denominators."""
    mean: Tensor
    """(N, d) mean item vectors under the softmax."""

    def add_table_grad(self, table_grad: Tensor, grad: Tensor, q: Tensor) -> None:
        """Add the gradient of the table to `table_grad`, (V, d); see the module's docstring.

        Attention with items as queries and `q` as keys returns that sum divided by
        `sum_i exp(q[i] . rows[j])`, and the log of this divisor.
        """
        weighted = ((grad * (-self.log_partition).exp())[:, None] * q).to(self.q.dtype)  # (N, d)
        weighted = functional.pad(weighted, (0, 0, 0, len(self.q) - len(q)))
        for start in range(0, len(self.rows), FLASH_GROUP_ITEMS):
            items = slice(start, start + FLASH_GROUP_ITEMS)
            (mean,), (log_partition,) = _attention(self.rows[items], self.q[None], weighted[None])
            table_grad[items].addcmul_(mean.to(table_grad.dtype), log_partition.exp()[:, None])


def iter_tiles(
    q: Tensor, rows: Tensor, logits_are_bounded: bool, *, with_means: bool, store_exponentials: bool
) -> Iterator[tuple[slice, LogitTile | FlashTile]]:
    """Yield ranges of queries with their tiles. Use each tile before the next, which reuses its buffer.

    Args:
        q: (N, d) queries, multiplied by the scale of the logits.
        rows: (V, d) item vectors.
        logits_are_bounded: All logits are below `MAX_SAFE_LOGIT`; if not, each query's maximum is subtracted.
        with_means: Compute `mean`, the gradients by the queries.
        store_exponentials: Keep the exponentials until the next tile, which `add_table_grad` needs.
    """
    use_flash = uses_flash_attention(q, with_means=with_means, store_exponentials=store_exponentials)
    if use_flash and logits_are_bounded and len(q):  # the kernel crashes on an empty batch
        yield slice(0, len(q)), _flash_tile(q, rows)
        return
    buffer = LogitBuffer.allocate(q, len(rows), holds_all=store_exponentials or not logits_are_bounded)
    for start in range(0, len(q), max(buffer.max_queries, 1)):
        chunk = q[start : start + buffer.max_queries]
        tile = _logit_tile(chunk, rows, buffer, logits_are_bounded, with_means=with_means)
        yield slice(start, start + len(chunk)), tile


@dataclass(frozen=True)
class LogitBuffer:
    """Memory for the logits of a `LogitTile`, which one tile after the other uses.

    Attributes:
        values: The memory, one-dimensional.
        max_queries: Most queries of a tile.
        multiple: The queries of a tile are padded to a multiple of this.
        ranges: All items, in ranges for one matrix product each.
        holds_all: Whether there is space for all ranges, not for one at a time.
    """

    values: Tensor
    max_queries: int
    multiple: int
    ranges: list[slice]
    holds_all: bool

    @classmethod
    def allocate(cls, q: Tensor, num_items: int, *, holds_all: bool) -> LogitBuffer:
        """Return a buffer for as many of the queries, (N, d), at a time as stay in the processor's cache."""
        device = "cuda" if q.is_cuda else "cpu"
        max_queries, max_items = TILE_SHAPE[device]
        if holds_all:
            if device == "cpu" and q.dtype != torch.bfloat16:
                max_queries = min(max_queries, max(MIN_QUERIES, MAX_CACHED_EXPONENTIALS // num_items))
            max_queries = max(1, min(max_queries, MAX_STORED_EXPONENTIALS[device] // num_items))
        multiple = min(QUERY_MULTIPLE, max_queries)
        max_queries = min(max_queries // multiple, -(-len(q) // multiple)) * multiple
        ranges = [slice(start, min(start + max_items, num_items)) for start in range(0, num_items, max_items)]
        values = q.new_empty(max_queries * (num_items if holds_all else min(max_items, num_items)))
        return cls(values, max_queries, multiple, ranges, holds_all)

    def views(self, num_queries: int) -> list[Tensor]:
        """Return the memory for the logits of each of `ranges`, (num_queries, items)."""
        offsets = [num_queries * items.start if self.holds_all else 0 for items in self.ranges]
        return [
            self.values[offset : offset + num_queries * (items.stop - items.start)].view(num_queries, -1)
            for offset, items in zip(offsets, self.ranges, strict=True)
        ]


def _logit_tile(
    q: Tensor, rows: Tensor, buffer: LogitBuffer, logits_are_bounded: bool, *, with_means: bool
) -> LogitTile:
    """Return the tile of n queries, (n, d), at most `buffer.max_queries`; see `iter_tiles`."""
    # exp2(z / log 2) is faster than exp(z), but its factor would round a bfloat16 query once more.
    base_factor, exp_ = (1.0, Tensor.exp_) if q.dtype == torch.bfloat16 else (1 / math.log(2), Tensor.exp2_)
    count = len(q)
    q = functional.pad(q, (0, 0, 0, -count % buffer.multiple)) * base_factor  # (n or more, d)
    logits = list(zip(buffer.ranges, buffer.views(len(q)), strict=True))
    max_logits = torch.zeros(len(q), 1, dtype=q.dtype, device=q.device)
    if not logits_are_bounded:
        for items, z in logits:
            torch.mm(q, rows[items].T, out=z)
        max_logits = torch.stack([z.amax(1) for _, z in logits]).amax(0)[:, None]
    total = max_logits.new_zeros(len(q), dtype=accumulation_dtype(q.dtype))  # sum of exponentials
    mean = max_logits.new_zeros(q.shape, dtype=total.dtype)
    for items, z in logits:
        if logits_are_bounded:
            torch.mm(q, rows[items].T, out=z)
        else:
            z.sub_(max_logits)
        total += exp_(z).sum(1)
        if with_means:
            mean += torch.mm(z, rows[items])
    log_total = total.log()
    log_partition = log_total + max_logits[:, 0] / base_factor
    mean.div_(total[:, None])
    stored = logits if buffer.holds_all else []
    return LogitTile(stored, -log_total[:count], log_partition[:count], mean[:count])


def uses_flash_attention(q: Tensor, *, with_means: bool, store_exponentials: bool) -> bool:
    """Return whether PyTorch's fused attention is faster than `LogitTile` for these queries.

    Bfloat16: on processors with matrix units (AMX). Float32: with means, without a gradient of the table; for
    that gradient, fused attention would compute the logits again, in a fourth matrix product.
    """
    available = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")  # private to PyTorch
    faster = {torch.bfloat16: has_matrix_units(), torch.float32: with_means and not store_exponentials}
    return q.device.type == "cpu" and available and faster.get(q.dtype, False)


def _flash_tile(q: Tensor, rows: Tensor) -> FlashTile:
    """Return the tile of all queries, by a few groups of rows at a time: the kernel copies its inputs."""
    padded = functional.pad(q, (0, 0, 0, -len(q) % QUERY_MULTIPLE))
    partition = padded.new_zeros(len(padded), 1, dtype=accumulation_dtype(q.dtype))
    mean = padded.new_zeros(padded.shape, dtype=partition.dtype)
    num_groups = -(-len(rows) // FLASH_GROUP_ITEMS)
    even_rows = len(rows) // num_groups * num_groups
    # Groups of equal size, (P, J, d) for each call; the remaining rows come last, as one small group.
    groups = torch.split(rows[:even_rows].reshape(num_groups, -1, rows.shape[1]), FLASH_GROUPS)
    for group in (*groups, rows[None, even_rows:]) if even_rows < len(rows) else groups:
        _add_attention(padded, group, partition, mean)
    mean.div_(partition)
    return FlashTile(padded, rows, partition[: len(q), 0].log(), mean[: len(q)])


def _add_attention(q: Tensor, group: Tensor, total: Tensor, mean: Tensor) -> None:
    """Add the softmax sums of P groups of J rows, (P, J, d), to those of earlier rows.

    Add partitions to `total`, (N, 1), and partitions times mean rows to `mean`, (N, d). This is a function of
    its own, so that its temporaries are freed before the next call.
    """
    for group_mean, log_partition in zip(*_attention(q, group, group), strict=True):
        group_partition = log_partition.exp()[:, None]
        total += group_partition
        mean.addcmul_(group_mean.to(mean.dtype), group_partition)


def _attention(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the values under softmax(q keys^T), (P, N, d), and the log-partitions, (P, N).

    The queries are (N, d), keys and values P groups of J rows, (P, J, d).
    """
    repeated = q.contiguous().expand(len(keys), *q.shape)
    inputs = (tensor[None] for tensor in (repeated, keys.contiguous(), values.contiguous()))
    mean, log_partition = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*inputs, scale=1.0)
    return mean[0], log_partition[0]


def prepare_rows(table: Tensor, queries: Sequence[Tensor], normalize_rows: bool) -> tuple[Tensor, bool]:
    """Return the table, normalized if requested, in the queries' dtype, and whether logits are bounded.

    They are if none can exceed `MAX_SAFE_LOGIT`, by the norms of queries and rows.
    """
    rows = table
    if normalize_rows or queries[0].dtype != table.dtype:
        rows = torch.empty_like(table, dtype=queries[0].dtype, memory_format=torch.contiguous_format)
        for start in range(0, len(table), ROW_CHUNK):
            chunk = table[start : start + ROW_CHUNK]
            rows[start : start + ROW_CHUNK] = functional.normalize(chunk, dim=1) if normalize_rows else chunk
    longest_query = max(_max_norm(q) for q in queries)
    return rows, bool(longest_query * (1 if normalize_rows else _max_norm(table)) < MAX_SAFE_LOGIT)


def _max_norm(rows: Tensor) -> float:
    """Return the greatest norm of a row."""
    longest = torch.zeros((), dtype=accumulation_dtype(rows.dtype), device=rows.device)
    for start in range(0, len(rows), ROW_CHUNK):
        chunk = rows[start : start + ROW_CHUNK].to(longest.dtype)
        longest = torch.maximum(longest, torch.linalg.vector_norm(chunk, dim=1).max())
    return float(longest)


def normalize_backward(grad: Tensor, table: Tensor, normalized: bool) -> Tensor:
    """Convert the gradient by the normalized rows into the gradient by the rows, in place, and return it.

    Both `grad` and `table`, the rows before normalization, are (V, d). If rows were not normalized, `grad`
    stays as it is.
    """
    for start in range(0, len(table) if normalized else 0, ROW_CHUNK):
        grad_chunk, rows = grad[start : start + ROW_CHUNK], table[start : start + ROW_CHUNK].to(grad.dtype)
        norm = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        direction = rows / norm
        grad_chunk.sub_((grad_chunk * direction).sum(1, keepdim=True) * direction).div_(norm)
    return grad
