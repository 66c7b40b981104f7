"""The softmax of queries over items, tile after tile or by attention; see `catalog_softmax`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from hafvt.ops.dtype import has_matrix_units

TILES = {"cpu": (512, 8192), "cuda": (2048, 65536)}  # queries x items of one tile
ATTENDED = 8192  # items that attention is made of at a time
PARTS = 4  # of so many items in one call
HELD = {"cpu": 2**26, "cuda": 2**28}  # logits that are held at a time: of as many queries, over all items
CACHED = 2**23  # logits wider than bfloat16: more than these are better held of fewer queries at a time
FEW = 128  # queries, of which the products run at their full rate
MULTIPLE = 64  # of queries in a tile: the library's kernels, one for each size met, take memory that stays
ROWS = 4096  # of a table that are normalized or converted at a time
SAFE = 60.0  # no exponential of so large a logit, nor a sum of millions of them, leaves float32 or bfloat16


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of sums: float32 at least."""
    return torch.promote_types(dtype, torch.float32)


class LogitTile(NamedTuple):
    """The softmax of r queries over V rows: `p[i, j] = held[i, j] * exp(log_factor[i])`."""

    held: list[tuple[slice, Tensor]]
    """Items and their exponentials, (r or more, items); nothing where they are not kept."""
    log_factor: Tensor
    lse: Tensor
    mean: Tensor
    """(r, d) of the rows under the softmax, zeros where not asked for."""

    def add_to(self, change: Tensor, grad: Tensor, q: Tensor) -> None:
        """Adds the gradient of log-partitions, `sum_i p[i, j] grad[i] q[i]`, to `change`, (V, d)."""
        weighed = ((grad * self.log_factor.exp())[:, None] * q).to(self.held[0][1].dtype)  # (r, d)
        weighed = functional.pad(weighed, (0, 0, 0, len(self.held[0][1]) - len(weighed)))
        for items, exponentials in self.held:
            if weighed.dtype == change.dtype:  # a tenth to a third faster than a product that is then added
                change[items].addmm_(exponentials.T, weighed)
            else:
                change[items] += torch.mm(exponentials.T, weighed)


class FlashTile(NamedTuple):
    """The softmax of N queries over V rows, `p[i, j] = exp(q[i] . rows[j] - lse[i])`, by attention."""

    q: Tensor
    """(N or more, d); what is more is zero."""
    rows: Tensor
    lse: Tensor
    mean: Tensor
    """(N, d) of the rows under the softmax."""

    def add_to(self, change: Tensor, grad: Tensor, q: Tensor) -> None:
        """Adds the gradient of log-partitions, `sum_i p[i, j] grad[i] q[i]`, to `change`, (V, d).

        Attention of the items to the queries has that sum over its own partition, which it also tells.
        """
        weighed = ((grad * (-self.lse).exp())[:, None] * q).to(self.q.dtype)  # (N, d)
        weighed = functional.pad(weighed, (0, 0, 0, len(self.q) - len(q)))
        for start in range(0, len(self.rows), ATTENDED):
            items = slice(start, start + ATTENDED)
            (mean,), (lse,) = _attention(self.rows[items], self.q[None], weighed[None])
            change[items].addcmul_(mean.to(change.dtype), lse.exp()[:, None])


def by_attention(q: Tensor, *, means: bool, hold: bool) -> bool:
    """Returns whether PyTorch's attention is faster than tiles for what `iter_tiles` is asked.

    In bfloat16 its kernel is where it multiplies by AMX. In float32 it is for a frozen table: its exponential
    takes less time than torch's. A learned table's gradient would take a fourth product.
    """
    known = hasattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu")  # private: it may go away
    faster = {torch.bfloat16: has_matrix_units(), torch.float32: means and not hold}
    return q.device.type == "cpu" and known and faster.get(q.dtype, False)


def _attended(q: Tensor, rows: Tensor) -> FlashTile:
    """Returns the softmax of all queries; few rows at a time, as the kernel copies what it is given."""
    padded = functional.pad(q, (0, 0, 0, -len(q) % MULTIPLE))
    total = padded.new_zeros(len(padded), 1, dtype=accumulation_dtype(q.dtype))
    mean = padded.new_zeros(padded.shape, dtype=total.dtype)
    count = -(-len(rows) // ATTENDED)
    even = len(rows) // count * count
    parts = torch.split(rows[:even].reshape(count, -1, rows.shape[1]), PARTS)  # (P, J, d) each
    for some in (*parts, rows[None, even:]) if even < len(rows) else parts:
        _add_attended(padded, some, total, mean)
    mean.div_(total)
    return FlashTile(padded, rows, total[: len(q), 0].log(), mean[: len(q)])


def _add_attended(q: Tensor, parts: Tensor, total: Tensor, mean: Tensor) -> None:
    """Adds the exponentials of (N, d) queries and (P, J, d) rows to `total`, (N, 1), times rows to `mean`."""
    for of_part, lse in zip(*_attention(q, parts, parts), strict=True):
        exponentials = lse.exp()[:, None]
        total += exponentials
        mean.addcmul_(of_part.to(mean.dtype), exponentials)


def _attention(q: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the means of the values under softmax(q keys^T), and the log-partitions, for P parts of them.

    Threads share the parts, and of each part 256 queries at a time.

    Args:
        q: (N, d).
        keys: (P, J, d).
        values: (P, J, d).

    Returns:
        (P, N, d) and (P, N).
    """
    each = q.contiguous().expand(len(keys), *q.shape)
    given = (part[None] for part in (each, keys.contiguous(), values.contiguous()))  # last stride: 1
    mean, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*given, scale=1.0)
    return mean[0], lse[0]


def iter_tiles(
    q: Tensor, rows: Tensor, safe: bool, *, means: bool, hold: bool
) -> Iterator[tuple[slice, LogitTile | FlashTile]]:
    """Yields the softmax of some queries at a time, all in one buffer: the next overwrites the last.

    Args:
        q: (N, d) queries.
        rows: (V, d) items.
        safe: no exponential overflows.
        means: whether the rows' means are wanted.
        hold: whether the exponentials are wanted; else one tile of them is all that there is at a time.
    """
    # Of no queries the kernel makes an end of the process.
    if safe and len(q) and by_attention(q, means=means, hold=hold):
        yield slice(0, len(q)), _attended(q, rows)
        return
    device = "cuda" if q.is_cuda else "cpu"
    most, width = TILES[device]
    hold = hold or not safe
    if hold and device == "cpu" and q.dtype != torch.bfloat16:
        most = min(most, max(FEW, CACHED // len(rows)))
    height = max(1, min(most, HELD[device] // len(rows))) if hold else most
    multiple = min(MULTIPLE, height)
    height = min(height // multiple, -(-len(q) // multiple)) * multiple
    cuts = [slice(start, min(start + width, len(rows))) for start in range(0, len(rows), width)]
    buffer = q.new_empty(height * (len(rows) if hold else min(width, len(rows))))
    sums = accumulation_dtype(q.dtype)
    # 2^(z / log 2) takes two thirds of the time of e^z, but bfloat16 would round the queries once more.
    stretch, power = (1.0, Tensor.exp_) if q.dtype == torch.bfloat16 else (1 / math.log(2), Tensor.exp2_)
    for start in range(0, len(q), max(height, 1)):
        part = q[start : start + height]
        real = len(part)
        part = functional.pad(part, (0, 0, 0, -real % multiple)) * stretch  # (r, d)
        r = len(part)
        starts = [r * cut.start if hold else 0 for cut in cuts]
        tiles = [
            buffer[at : at + r * (cut.stop - cut.start)].view(r, -1)
            for at, cut in zip(starts, cuts, strict=True)
        ]
        shift = torch.zeros(r, 1, dtype=q.dtype, device=q.device)
        if not safe:
            for cut, z in zip(cuts, tiles, strict=True):
                torch.mm(part, rows[cut].T, out=z)
            shift = torch.stack([z.amax(1) for z in tiles]).amax(0)[:, None]
        total, mean = shift.new_zeros(r, dtype=sums), shift.new_zeros(part.shape, dtype=sums)
        for cut, z in zip(cuts, tiles, strict=True):
            if safe:
                torch.mm(part, rows[cut].T, out=z)
            else:
                z.sub_(shift)
            total += power(z).sum(1)
            if means:
                mean += torch.mm(z, rows[cut])
        log_total = total.log()
        held = list(zip(cuts, tiles, strict=True)) if hold else []
        lse = log_total + shift[:, 0] / stretch
        mean.div_(total[:, None])
        yield slice(start, start + real), LogitTile(held, -log_total[:real], lse[:real], mean[:real])


def prepared(table: Tensor, queries: Sequence[Tensor], unit: bool) -> tuple[Tensor, bool]:
    """Returns the rows as they enter the products, and whether no logit is too large for its exponential."""
    rows = table
    if unit or queries[0].dtype != table.dtype:
        rows = torch.empty_like(table, dtype=queries[0].dtype, memory_format=torch.contiguous_format)
        for start in range(0, len(table), ROWS):
            part = table[start : start + ROWS]
            rows[start : start + ROWS] = functional.normalize(part, dim=1) if unit else part
    longest = [_longest(q) for q in queries]
    return rows, bool(max(longest) * (1 if unit else _longest(table)) < SAFE)


def _longest(rows: Tensor) -> float:
    longest = torch.zeros((), dtype=accumulation_dtype(rows.dtype), device=rows.device)
    for start in range(0, len(rows), ROWS):  # norms of bfloat16 are taken of a copy in float32
        part = rows[start : start + ROWS].to(longest.dtype)
        longest = torch.maximum(longest, torch.linalg.vector_norm(part, dim=1).max())
    return float(longest)


def normalize_backward(change: Tensor, table: Tensor, unit: bool) -> Tensor:
    """Takes the gradient of normalized rows back to the rows, in place."""
    for start in range(0, len(table) if unit else 0, ROWS):
        part, rows = change[start : start + ROWS], table[start : start + ROWS].to(change.dtype)
        length = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
        direction = rows / length
        part.sub_((part * direction).sum(1, keepdim=True) * direction).div_(length)
    return change
