"""Compute the softmax of queries over an item table in tiles of logits that fit the processor's cache.

`ops.catalog_softmax` builds its losses from `iter_tiles`. Each step yields the log-partitions of some
queries, the mean item vector under each softmax (the gradient of the queries) and a way to add the gradient
of the table. The step is a `LogitTile` (matrix products and exponentials in one reused buffer) or, where the
processor does that faster, a `FlashTile` (PyTorch's fused attention for the CPU).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hafvt.ops.dtype import has_matrix_units

TILE_SHAPE = {"cpu": (512, 8192), "cuda": (2048, 65536)}
"""Queries and items of one tile, by device type."""
MAX_STORED_LOGITS = {"cpu": 2**26, "cuda": 2**28}
"""Most exponentials that are stored at a time (queries times all items), by device type."""
CACHE_LOGITS = 2**23
"""With more stored float32 exponentials than this, fewer queries at a time are faster on a CPU."""
MIN_QUERIES = 128
"""Fewest queries for which the matrix products run at their full rate."""
QUERY_MULTIPLE = 64
"""Tiles hold a multiple of this many queries: oneDNN caches a kernel, and its memory, for each size."""
ROW_CHUNK = 4096
"""Rows of a table that are normalized or converted at a time."""
FLASH_ROWS = 8192
"""Items of one attention call."""
FLASH_BATCH = 4
"""Groups of `FLASH_ROWS` items that one attention call processes in parallel."""
MAX_SAFE_LOGIT = 60.0
"""Up to this size, exponentials and sums of millions of them overflow neither float32 nor bfloat16."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums of values of a dtype: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class LogitTile(NamedTuple):
    """Softmax of n queries over V items: `p[i, j] = exponentials[i, j] * exp(log_factor[i])`."""

    exponentials: list[tuple[slice, Tensor]]
    """Ranges of items with their exponentials, (n or more, items); empty if they are not stored."""
    log_factor: Tensor
    """(n,)"""
    log_partition: Tensor
    """(n,)"""
    mean: Tensor
    """(n, d) mean item vector under the softmax; zeros unless requested."""

    def add_table_grad(self, table_grad: Tensor, grad: Tensor, q: Tensor) -> None:
        """Add the gradient of the log-partitions, `sum_i p[i, j] grad[i] q[i]`, to `table_grad`, (V, d)."""
        weighted = ((grad * self.log_factor.exp())[:, None] * q).to(self.exponentials[0][1].dtype)  # (n, d)
        weighted = functional.pad(weighted, (0, 0, 0, len(self.exponentials[0][1]) - len(weighted)))
        for items, exponentials in self.exponentials:
            if weighted.dtype == table_grad.dtype:  # 10 % to 30 % faster than a product and a sum
                table_grad[items].addmm_(exponentials.T, weighted)
            else:
                table_grad[items] += torch.mm(exponentials.T, weighted)


class FlashTile(NamedTuple):
    """Softmax of all N queries over V items, `p[i, j] = exp(q[i] . rows[j] - log_partition[i])`."""

    q: Tensor
    """(N or more, d) queries, padded with zeros."""
    rows: Tensor
    """(V, d)"""
    log_partition: Tensor
    """(N,)"""
    mean: Tensor
    """(N, d) mean item vector under the softmax."""

    def add_table_grad(self, table_grad: Tensor, grad: Tensor, q: Tensor) -> None:
        """Add the gradient of the log-partitions, `sum_i p[i, j] grad[i] q[i]`, to `table_grad`, (V, d).

        Attention from the items to the queries returns that sum divided by its partition, and the partition.
        """
        weighted = ((grad * (-self.log_partition).exp())[:, None] * q).to(self.q.dtype)  # (N, d)
        weighted = functional.pad(weighted, (0, 0, 0, len(self.q) - len(q)))
        for start in range(0, len(self.rows), FLASH_ROWS):
            items = slice(start, start + FLASH_ROWS)
            (mean,), (log_partition,) = _attention(self.rows[items], self.q[None], weighted[None])
            table_grad[items].addcmul_(mean.to(table_grad.dtype), log_partition.exp()[:, None])


def iter_tiles(
    q: Tensor, rows: Tensor, safe: bool, *, with_means: bool, store: bool
) -> Iterator[tuple[slice, LogitTile | FlashTile]]:
    """Yield ranges of queries with their softmax; the next step overwrites the buffer of the previous one.

    Args:
        q: (N, d) scaled queries.
        rows: (V, d) item vectors.
        safe: Whether no logit exceeds `MAX_SAFE_LOGIT`, so that no maximum needs to be subtracted.
        with_means: Compute the mean item vectors.
        store: Keep the exponentials, which `add_table_grad` needs.
    """
    if safe and len(q) and uses_flash_attention(q, with_means=with_means, store=store):
        yield slice(0, len(q)), _flash_tile(q, rows)  # (the kernel crashes on an empty batch)
        return
    device = "cuda" if q.is_cuda else "cpu"
    max_height, width = TILE_SHAPE[device]
    store = store or not safe
    if store and device == "cpu" and q.dtype != torch.bfloat16:
        max_height = min(max_height, max(MIN_QUERIES, CACHE_LOGITS // len(rows)))
    height = max(1, min(max_height, MAX_STORED_LOGITS[device] // len(rows))) if store else max_height
    multiple = min(QUERY_MULTIPLE, height)
    height = min(height // multiple, -(-len(q) // multiple)) * multiple
    ranges = [slice(start, min(start + width, len(rows))) for start in range(0, len(rows), width)]
    buffer = q.new_empty(height * (len(rows) if store else min(width, len(rows))))
    # exp2(z / log 2) is faster than exp(z), but would round a bfloat16 query once more.
    stretch, exp_ = (1.0, Tensor.exp_) if q.dtype == torch.bfloat16 else (1 / math.log(2), Tensor.exp2_)
    for start in range(0, len(q), max(height, 1)):
        chunk = q[start : start + height]
        count = len(chunk)
        chunk = functional.pad(chunk, (0, 0, 0, -count % multiple)) * stretch  # (n, d)
        n = len(chunk)
        offsets = [n * items.start if store else 0 for items in ranges]
        logits = [
            buffer[offset : offset + n * (items.stop - items.start)].view(n, -1)
            for offset, items in zip(offsets, ranges, strict=True)
        ]
        maximum = torch.zeros(n, 1, dtype=q.dtype, device=q.device)
        if not safe:
            for items, z in zip(ranges, logits, strict=True):
                torch.mm(chunk, rows[items].T, out=z)
            maximum = torch.stack([z.amax(1) for z in logits]).amax(0)[:, None]
        total = maximum.new_zeros(n, dtype=accumulation_dtype(q.dtype))
        mean = maximum.new_zeros(chunk.shape, dtype=total.dtype)
        for items, z in zip(ranges, logits, strict=True):
            if safe:
                torch.mm(chunk, rows[items].T, out=z)
            else:
                z.sub_(maximum)
            total += exp_(z).sum(1)
            if with_means:
                mean += torch.mm(z, rows[items])
        log_total = total.log()
        log_partition = log_total + maximum[:, 0] / stretch
        mean.div_(total[:, None])
        stored = list(zip(ranges, logits, strict=True)) if store else []
        tile = LogitTile(stored, -log_total[:count], log_partition[:count], mean[:count])
        yield slice(start, start + count), tile


def uses_flash_attention(q: Tensor, *, with_means: bool, store: bool) -> bool:
    """Return whether PyTorch's fused attention is faster than `LogitTile` for these queries.

    In bfloat16 it is on processors with matrix units (AMX). In float32 it is for a table without gradient;
    the gradient of the table would need a fourth product.
    """
    available = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")  # private to PyTorch
    faster = {torch.bfloat16: has_matrix_units(), torch.float32: with_means and not store}
    return q.device.type == "cpu" and available and faster.get(q.dtype, False)


def _flash_tile(q: Tensor, rows: Tensor) -> FlashTile:
    """Return the softmax of all queries, some rows at a time since the kernel copies its inputs."""
    padded = functional.pad(q, (0, 0, 0, -len(q) % QUERY_MULTIPLE))
    total = padded.new_zeros(len(padded), 1, dtype=accumulation_dtype(q.dtype))
    mean = padded.new_zeros(padded.shape, dtype=total.dtype)
    count = -(-len(rows) // FLASH_ROWS)
    even = len(rows) // count * count
    groups = torch.split(rows[:even].reshape(count, -1, rows.shape[1]), FLASH_BATCH)  # (P, J, d) each
    for group in (*groups, rows[None, even:]) if even < len(rows) else groups:
        _add_attention(padded, group, total, mean)
    mean.div_(total)
    return FlashTile(padded, rows, total[: len(q), 0].log(), mean[: len(q)])


def _add_attention(q: Tensor, group: Tensor, total: Tensor, mean: Tensor) -> None:
    """Add partitions to `total`, (N, 1), and partitions times means to `mean`, (N, d), for rows (P, J, d).

    In a function of its own, so that its temporaries are freed before the next group.
    """
    for part_mean, log_partition in zip(*_attention(q, group, group), strict=True):
        partition = log_partition.exp()[:, None]
        total += partition
        mean.addcmul_(part_mean.to(mean.dtype), partition)


def _attention(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the means of the values under softmax(q keys^T) and the log-partitions, for P parts.

    Args:
        q: (N, d).
        keys: (P, J, d).
        values: (P, J, d).

    Returns:
        (P, N, d) and (P, N).
    """
    repeated = q.contiguous().expand(len(keys), *q.shape)
    inputs = (tensor[None] for tensor in (repeated, keys.contiguous(), values.contiguous()))
    mean, log_partition = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*inputs, scale=1.0)
    return mean[0], log_partition[0]


def prepare_rows(table: Tensor, queries: Sequence[Tensor], normalize_rows: bool) -> tuple[Tensor, bool]:
    """Return the table as it enters the products, and whether no logit exceeds `MAX_SAFE_LOGIT`."""
    rows = table
    if normalize_rows or queries[0].dtype != table.dtype:
        rows = torch.empty_like(table, dtype=queries[0].dtype, memory_format=torch.contiguous_format)
        for start in range(0, len(table), ROW_CHUNK):
            chunk = table[start : start + ROW_CHUNK]
            rows[start : start + ROW_CHUNK] = functional.normalize(chunk, dim=1) if normalize_rows else chunk
    longest_query = max(_max_norm(q) for q in queries)
    return rows, bool(longest_query * (1 if normalize_rows else _max_norm(table)) < MAX_SAFE_LOGIT)


def _max_norm(rows: Tensor) -> float:
    """Return the greatest length of a row."""
    longest = torch.zeros((), dtype=accumulation_dtype(rows.dtype), device=rows.device)
    for start in range(0, len(rows), ROW_CHUNK):
        chunk = rows[start : start + ROW_CHUNK].to(longest.dtype)
        longest = torch.maximum(longest, torch.linalg.vector_norm(chunk, dim=1).max())
    return float(longest)


def normalize_backward(grad: Tensor, table: Tensor, normalized: bool) -> Tensor:
    """Convert, in place, the gradient of normalized rows to that of the rows; return it.

    Args:
        grad: (V, d) gradient of the rows that entered the products.
        table: (V, d) the rows before normalization.
        normalized: Whether they were normalized; if not, `grad` stays as it is.
    """
    for start in range(0, len(table) if normalized else 0, ROW_CHUNK):
        chunk, rows = grad[start : start + ROW_CHUNK], table[start : start + ROW_CHUNK].to(grad.dtype)
        length = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        direction = rows / length
        chunk.sub_((chunk * direction).sum(1, keepdim=True) * direction).div_(length)
    return grad
