"""Item tables in slices: each of several processes holds some rows of every table.

A `Shard` states which rows these are. A training step reads the rows of its items from the processes that
hold them with a `RowExchange`, whose gradients return to the same processes. All processes must call the
functions of this module in the same order, see `ops.collectives`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hafvt.files import check_space, explained_write_errors
from hafvt.ops.collectives import all_gather_rows, all_to_all_rows, barrier, broadcast_
from hafvt.ops.embedding import distinct_rows, embedding_lookup
from hafvt.processes import local_process_index, process_index

CHUNK_ROWS = 65_536
"""Rows of a table that processes send, draw or write at a time."""


@dataclass(frozen=True)
class Shard:
    """The rows of a table that one process holds: one piece of the rows of each domain.

    Attributes:
        starts: the first row of each piece, ascending, and last the number of rows of the whole table.
            Piece k belongs to process `k % num_processes`.
        process: number of the process.
        num_processes: number of processes.
    """

    starts: tuple[int, ...]
    process: int
    num_processes: int

    @classmethod
    def of_ranges(cls, ranges: Sequence[tuple[int, int]], process: int, num_processes: int) -> Shard:
        """Return the shard of a process, given the first and the last row plus 1 of each domain."""
        starts = [
            start + (stop - start) * number // num_processes
            for start, stop in ranges
            for number in range(num_processes)
        ]
        return cls((*starts, ranges[-1][1]), process, num_processes)

    def pieces(self) -> list[tuple[slice, int]]:
        """Return the pieces of all processes in order, with their processes."""
        bounds = enumerate(pairwise(self.starts))
        return [(slice(*part), number % self.num_processes) for number, part in bounds]

    @property
    def ranges(self) -> list[slice]:
        """The range of each domain in this process's slice, and last the whole slice."""
        parts = [slice(before, before + piece.stop - piece.start) for piece, before in self.own_pieces()]
        return [*parts, slice(0, parts[-1].stop)]

    @property
    def num_rows(self) -> int:
        """The number of rows that this process holds."""
        num_rows: int = self.ranges[-1].stop
        return num_rows

    def rows(self, table: Tensor) -> Tensor:
        """Return this process's rows of a whole table, a copy."""
        return torch.cat([table[piece] for piece, _ in self.own_pieces()])

    def locate(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Return the process that holds each row of the whole table, and the row's number in its slice."""
        pieces, offsets = self.pieces(), []
        num_local_rows = [0] * self.num_processes
        for piece, process in pieces:
            offsets.append(num_local_rows[process] - piece.start)
            num_local_rows[process] += piece.stop - piece.start
        starts = torch.tensor(self.starts[1:], device=items.device)
        number = torch.bucketize(items, starts, right=True)  # of an empty piece: that of the next one
        return number % self.num_processes, items + torch.tensor(offsets, device=items.device)[number]

    def subset(self, mask: Tensor) -> Shard:
        """Return the shard of a table that has only the rows in a mask, (V,) bool, numbered anew."""
        counts = functional.pad(mask.cumsum(0), (1, 0))
        return replace(self, starts=tuple(int(counts[start]) for start in self.starts))

    def own_pieces(self) -> list[tuple[slice, int]]:
        """Return the pieces of this process, each with the number of the slice's rows before it."""
        stops, pieces = 0, []
        for piece, process in self.pieces():
            if process == self.process:
                pieces.append((piece, stops))
                stops += piece.stop - piece.start
        return pieces

    def global_rows(self, first: int, rows: Tensor) -> list[tuple[int, Tensor]]:
        """Cut rows of the slice, from its row `first` on, where the whole table has others between.

        Return each part's first row in the whole table, and the part.
        """
        parts = []
        for piece, before in self.own_pieces():
            start = max(before, first)
            stop = min(before + piece.stop - piece.start, first + len(rows))
            if start < stop:
                parts.append((piece.start + start - before, rows[start - first : stop - first]))
        return parts

    def overlaps(self, other: Shard) -> bool:
        """Return whether another process, of the same or another number of them, holds some of the rows."""
        return any(
            max(a.start, b.start) < min(a.stop, b.stop)
            for a, _ in self.own_pieces()
            for b, _ in other.own_pieces()
        )


class RowExchange:
    """A plan by which this process reads rows of tables in slices.

    Args:
        shard: of the tables.
        items: (U,) rows of the whole tables that this process needs; best without repetitions.

    Attributes:
        requested: (R,) rows of this process's slice that the processes need, those for process 0 first.
    """

    def __init__(self, shard: Shard, items: Tensor) -> None:
        owners, positions = shard.locate(items)
        order = owners.argsort(stable=True)
        self.inverse = order.argsort()
        counts = torch.bincount(owners, minlength=shard.num_processes).cpu()
        ones = [1] * shard.num_processes
        self.counts: list[int] = counts.tolist()
        self.requested_counts: list[int] = all_to_all_rows(counts, ones, ones).tolist()
        self.requested = all_to_all_rows(positions[order], self.counts, self.requested_counts)

    def fetch(self, rows: Tensor) -> Tensor:
        """Send `rows`, (R, d) of this process at `requested`, and return those of the items, (U, d)."""
        received: Tensor = _Exchange.apply(rows, self.requested_counts, self.counts)  # type: ignore[no-untyped-call]
        return received.index_select(0, self.inverse)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, sent: list[int], received: list[int]) -> Tensor:
        ctx.sent, ctx.received = sent, received
        return all_to_all_rows(rows, sent, received)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return all_to_all_rows(grad, ctx.received, ctx.sent), None, None


def fetch_rows(read: Callable[[Tensor], Tensor], shard: Shard | None, items: Tensor) -> Tensor:
    """Return the rows of items, (U,) -> (U, d); `read` returns those of this process's slice, (R,) -> (R, d).

    Without a shard, this is `read(items)`.
    """
    if shard is None:
        return read(items)
    exchange = RowExchange(shard, items)
    return exchange.fetch(read(exchange.requested))


def sharded_lookup(table: Tensor, shard: Shard | None, *indices: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Return what `embedding_lookup` returns, for this process's slice of a table; without a shard, for all.

    The indices are rows of the whole table.
    """
    if shard is None:
        return embedding_lookup(table, *indices)
    items, positions = distinct_rows(*indices)
    exchange = RowExchange(shard, items)
    table, (rows,) = embedding_lookup(table, exchange.requested)
    fetched = exchange.fetch(rows)
    return table, [functional.embedding(position, fetched) for position in positions]


def make_embedding(num_rows: int, width: int, shard: Shard | None, *, sparse: bool) -> nn.Embedding:
    """Return a new `nn.Embedding`, or this process's slice of it, with the weights of the whole one."""
    if shard is None:
        return nn.Embedding(num_rows, width, sparse=sparse)
    embedding = nn.Embedding(shard.num_rows, width, sparse=sparse, _weight=torch.empty(shard.num_rows, width))
    init_normal(embedding.weight, shard, std=1.0)
    return embedding


@torch.no_grad()
def init_normal(weight: Tensor, shard: Shard | None, std: float) -> None:
    """Fill a table, or this process's slice of it, as `nn.init.normal_` fills the whole one."""
    if shard is None:
        nn.init.normal_(weight, std=std)
        return
    num_rows = shard.starts[-1]
    starts = list(range(0, max(num_rows - 16, 1), CHUNK_ROWS))  # torch draws fewer than 16 values differently
    for start, stop in zip(starts, [*starts[1:], num_rows], strict=True):
        copy_rows(weight, shard, start, torch.empty(stop - start, weight.shape[1]).normal_(std=std))


def distribute_rows(compute: Callable[[], Tensor], shard: Shard | None, dtype: torch.dtype) -> Tensor:
    """Return this process's slice of a table, (V, d), that process 0 computes; without a shard, all of it."""
    if shard is None:
        return compute()
    table = compute() if shard.process == 0 else None
    barrier()  # process 0 may compute for a long time
    width = int(broadcast_(torch.tensor(0 if table is None else table.shape[1])))
    rows = torch.empty(shard.num_rows, width, dtype=dtype)
    for start in range(0, shard.starts[-1], CHUNK_ROWS):
        stop = min(start + CHUNK_ROWS, shard.starts[-1])
        chunk = torch.empty(stop - start, width, dtype=dtype)
        if table is not None:
            chunk.copy_(table[start:stop])
        copy_rows(rows, shard, start, broadcast_(chunk))
    return rows


def copy_rows(rows: Tensor, shard: Shard, start: int, chunk: Tensor) -> None:
    """Copy this process's rows among those of a chunk of the whole table, which begins at row `start`."""
    for piece, before in shard.own_pieces():
        first, last = max(piece.start, start), min(piece.stop, start + len(chunk))
        if first < last:
            target = before + first - piece.start
            rows[target : target + last - first] = chunk[first - start : last - start]


def iter_table(rows: Tensor, shard: Shard) -> Iterator[Tensor]:
    """Yield the whole table in order, some rows at a time, from the slices that the processes hold."""
    position = 0
    for piece, process in shard.pieces():
        for start in range(piece.start, piece.stop, CHUNK_ROWS):
            count = min(CHUNK_ROWS, piece.stop - start)
            if process == shard.process:
                chunk = rows[position : position + count].detach().contiguous()
                position += count
            else:
                chunk = rows.new_empty(count, *rows.shape[1:])
            yield broadcast_(chunk, process)


def mapped_table(rows: Tensor, shard: Shard) -> Tensor:
    """Return the whole table of slices, (V, d) float32, on their device.

    On a CPU it is a memory-mapped temporary file that all processes of a machine share.
    """
    if rows.device.type != "cpu":
        return torch.cat(list(iter_table(rows, shard)))
    shape, path = (shard.starts[-1], rows.shape[1]), Path()
    num_bytes = 4 * shape[0] * shape[1]
    if local_process_index() == 0:
        with explained_write_errors(Path(tempfile.gettempdir()), num_bytes=num_bytes):
            check_space(Path(tempfile.gettempdir()) / "table", num_bytes)
            with tempfile.NamedTemporaryFile(prefix="hafvt-", suffix=".rows", delete=False) as file:
                path = Path(file.name)
                for chunk in iter_table(rows, shard):
                    file.write(chunk.numpy().data)
    else:
        for _ in iter_table(rows, shard):
            pass
    names = all_gather_rows(torch.frombuffer(bytearray(str(path).encode()), dtype=torch.uint8))
    name = bytes(names[process_index() - local_process_index()].tolist()).decode()
    try:
        table = np.memmap(name, np.float32, "c", shape=shape)
        barrier()
    finally:
        if local_process_index() == 0:
            with suppress(OSError):
                path.unlink()
    return torch.from_numpy(table)
