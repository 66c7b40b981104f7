"""Parquet files: columns as a data frame, unless they are damaged or too large for the memory."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from hafvt.data.attributes import stored_type
from hafvt.data.lines import check_memory, hidden_panics
from hafvt.errors import InputError

MAX_BATCH_BYTES = 2**28


def read_parquet(path: Path) -> pl.DataFrame:
    """Return the table in a Parquet file that `hafvt` wrote.

    Polars maps files into memory, and a process with a memory map dies if the file is cut short.
    """
    return pl.read_parquet(BytesIO(path.read_bytes()))


def open_parquet(
    path: Path, names: Sequence[str], *, with_others: bool = False, batch_rows: int | None = None
) -> tuple[Iterator[pl.DataFrame], list[str]]:
    """Return those of the named columns that a Parquet file has, and the names of all its columns.

    With `with_others` its other columns follow, if they are attributes. The rows come in batches; in one if
    `batch_rows` is None.

    Raises:
        InputError: a batch does not fit into memory, or the counts of rows in the file disagree.
        PolarsError, PanicException: the file is damaged.
    """
    with hidden_panics():
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        schema = scan.collect_schema()
        columns = schema.names()
        if with_others:
            others = [name for name in columns if name not in names and stored_type(schema[name])]
            names = [*names, *others]
        num_rows, num_bytes = scan.select(pl.len()).collect().item(), 0
        row_counts = {num_rows}
        with suppress(LookupError, TypeError, AttributeError, OverflowError, RecursionError):
            counts, num_bytes, _ = _read_footer(path, names)
            row_counts |= counts
        if batch_rows is not None:
            batch_rows = max(min(batch_rows, MAX_BATCH_BYTES * num_rows // max(num_bytes, 1)), 1)
        share = min(batch_rows or num_rows, num_rows) / max(num_rows, 1)
        check_memory(path, int(num_bytes * share), int(num_rows * share))
    return _read_batches(
        path, scan.select(name for name in names if name in columns), batch_rows, row_counts
    ), columns


def _read_batches(
    path: Path, scan: pl.LazyFrame, batch_rows: int | None, row_counts: set[int]
) -> Iterator[pl.DataFrame]:
    """Yield the rows of a Parquet file, at least one batch; see `open_parquet`."""
    schema, num_rows = scan.collect_schema(), 0
    with hidden_panics():
        frames = (
            iter([scan.collect(engine="streaming")])
            if batch_rows is None or len(schema) == 0
            else scan.collect_batches(chunk_size=batch_rows, maintain_order=True)
        )
    while True:
        with hidden_panics():
            frame = next(frames, None)
        if frame is None:
            break
        num_rows += len(frame)
        if batch_rows is None:
            _check_counts(path, row_counts | ({num_rows} if frame.width else set()))
        yield frame
    _check_counts(path, row_counts | ({num_rows} if len(schema) else set()))
    if not num_rows and batch_rows is not None and len(schema):
        yield pl.DataFrame(schema=schema)


def _check_counts(path: Path, row_counts: set[int]) -> None:
    """Raise InputError if counts of the rows in a Parquet file disagree."""
    if len(row_counts) > 1:
        problem = f"it is damaged (its counts of rows are {' and '.join(map(str, sorted(row_counts)))})"
        raise InputError(problem, "Download or write it again", file=path)


def count_values(path: Path, name: str) -> int:
    """Return how many values a column of a Parquet file has, those within lists each; 0 if damaged."""
    with suppress(LookupError, TypeError, AttributeError, OverflowError, RecursionError):
        return _read_footer(path, (name,))[2]
    return 0


def _read_footer(path: Path, names: Container[str]) -> tuple[set[int], int, int]:
    """Return counts of rows in the footer of a Parquet file, and unpacked size and values of named columns.

    The counts are that of the file, the sum of its row groups, and the sum of each named column that is flat.

    Raises:
        LookupError, TypeError, AttributeError, OverflowError, RecursionError: the footer is damaged.
    """
    with path.open("rb") as file:
        file.seek(-8, os.SEEK_END)
        footer_bytes = int.from_bytes(file.read(4), "little")
        file.seek(-min(footer_bytes + 8, path.stat().st_size), os.SEEK_END)
        footer = BytesIO(file.read(footer_bytes))
    metadata = _thrift_value(footer, THRIFT_STRUCT)
    counts, num_bytes, num_values = Counter[bytes](), 0, 0
    for group in metadata[4]:
        counts[b""] += group[3]
        for column in (chunk[3] for chunk in group[1]):
            if column[3][0].decode(errors="replace") in names:
                num_bytes, num_values = num_bytes + column[6], num_values + column[5]
                if len(column[3]) == 1:
                    counts[column[3][0]] += column[5]
    return {metadata[3], *counts.values()}, num_bytes, num_values


THRIFT_BINARY, THRIFT_LISTS, THRIFT_MAP, THRIFT_STRUCT = 8, (9, 10), 11, 12
THRIFT_BOOLEANS, THRIFT_FIXED_BYTES = (1, 2), {3: 1, 7: 8, 13: 16}


def _thrift_value(file: BytesIO, kind: int) -> Any:
    """Read a value of Thrift's compact protocol, as footers have it; a struct is a dict by field number.

    Raises:
        IndexError: the file ends within the value.
    """

    def byte() -> int:
        return file.read(1)[0]

    def number() -> int:
        value, shift = 0, 0
        while (part := byte()) >= 128:
            value, shift = value | (part & 127) << shift, shift + 7
        return value | part << shift

    if kind == THRIFT_STRUCT:
        fields, field = {}, 0
        while header := byte():
            field = field + (header >> 4) if header >> 4 else number() // 2
            is_boolean = header & 15 in THRIFT_BOOLEANS
            fields[field] = None if is_boolean else _thrift_value(file, header & 15)
        return fields
    if kind in THRIFT_LISTS:
        header = byte()
        size = header >> 4 if header >> 4 < 15 else number()
        return [_thrift_value(file, header & 15) for _ in range(size)]
    if kind == THRIFT_MAP:
        size = number()
        kinds = byte() if size else 0
        return [(_thrift_value(file, kinds >> 4), _thrift_value(file, kinds & 15)) for _ in range(size)]
    if kind == THRIFT_BINARY:
        return file.read(number())
    if kind in (*THRIFT_BOOLEANS, *THRIFT_FIXED_BYTES):
        return file.read(THRIFT_FIXED_BYTES.get(kind, 1))
    value = number()
    return value >> 1 ^ -(value & 1)
