"""Rows of a table as data frames: at once or in batches, by the fastest reader that can read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import polars as pl

from hafvt.data.origin import Origin

ROWS_PER_CHUNK = 100_000


class RawTable(NamedTuple):
    """Columns of a table, or of a batch of its rows, before any check.

    Attributes:
        frame: the requested columns that the table has, under the input's names; text is not parsed.
        columns: the names of all columns of the table; of a JSONL file the keys of its first line.
        origin: the file or data frame.
        first_row: index in the table of the first row of `frame`.
    """

    frame: pl.DataFrame
    columns: list[str]
    origin: Origin
    first_row: int = 0


class RawBatches(NamedTuple):
    """A table as data frames of some of its rows each, at least one; see `RawTable`."""

    frames: Iterator[pl.DataFrame]
    columns: list[str]
    origin: Origin


class UnreadableRecord(Exception):
    """A record that a fast reader cannot read: the next reader goes on."""


def collect(scan: pl.LazyFrame, batch_rows: int | None) -> Iterator[pl.DataFrame]:
    """Yield the rows of a query in batches of about `batch_rows`, or in one if that is None.

    Raises:
        UnreadableRecord: the query fails.
    """
    try:
        if batch_rows is None:
            yield scan.collect(engine="streaming")
        else:
            yield from scan.collect_batches(chunk_size=batch_rows, maintain_order=True)
    except pl.exceptions.PolarsError:
        raise UnreadableRecord from None


def first_that_reads(readers: Sequence[Callable[[], Iterator[pl.DataFrame]]]) -> Iterator[pl.DataFrame]:
    """Yield the rows of the first reader; after an `UnreadableRecord`, those that the next one has beyond."""
    num_rows = 0
    for reader in readers:
        num_skipped = num_rows
        try:
            for frame in reader():
                rest = frame[num_skipped:]
                num_skipped -= len(frame) - len(rest)
                num_rows += len(rest)
                yield rest
        except UnreadableRecord:
            continue
        return


def row_frames(rows: Iterator[list[str | None]], names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield rows of text as data frames."""
    schema = dict.fromkeys(names, pl.String)
    while chunk := list(islice(rows, ROWS_PER_CHUNK)):
        yield pl.DataFrame(chunk, schema=schema, orient="row")


def text_batches(
    frames: Iterator[pl.DataFrame], names: Sequence[str], batch_rows: int | None
) -> Iterator[pl.DataFrame]:
    """Yield columns of text in batches of at least `batch_rows`, at least one; in one if that is None."""
    empty = pl.DataFrame(schema=dict.fromkeys(names, pl.String))
    parts, num_rows, num_batches = [empty], 0, 0
    for frame in frames:
        parts.append(frame)
        num_rows += len(frame)
        if batch_rows is not None and num_rows >= batch_rows:
            yield pl.concat(parts)
            parts, num_rows, num_batches = [empty], 0, num_batches + 1
    if num_rows or not num_batches:
        yield pl.concat(parts)


def slices(frame: pl.DataFrame, batch_rows: int | None) -> Iterator[pl.DataFrame]:
    """Yield a data frame in batches, at least one; in one if `batch_rows` is None."""
    return frame.iter_slices(batch_rows) if batch_rows and len(frame) else iter([frame])
