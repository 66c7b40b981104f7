"""What the tests of tables and of prepare share."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from hafvt.data.schema import Table, read_tables
from hafvt.errors import InputError

HEADER = "user_id,item_id,timestamp\n"
ROWS = [("007", "a", 3), ("8", "b,c", 1), ("ü", "d", 2)]
FRAME = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def interactions(source: Any, **columns: str) -> Table:
    return read_tables(source, None, columns)[0]


def fails(source: Any, *parts: str, items: Any = None, **columns: str) -> InputError:
    """Reads what is wrong; returns the error, which is one line with all of `parts`."""
    with pytest.raises(InputError) as caught:
        read_tables(source, items, columns)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return caught.value


def log_of(*rows: tuple[str, str, int]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def items_of(**domains: str) -> pl.DataFrame:
    """Items by domain, one letter each: items_of(tea="ab", cups="xy")."""
    rows = [(item, domain) for domain, items in domains.items() for item in items]
    return pl.DataFrame(rows, schema=["item_id", "domain"], orient="row")


def csv_of(frame: pl.DataFrame, separator: str = ",") -> bytes:
    return frame.write_csv(separator=separator).encode()


WRITERS: dict[str, Callable[[pl.DataFrame], bytes]] = {
    "log.csv": csv_of,
    "log.tsv": lambda frame: csv_of(frame, "\t"),
    "semicolons.csv": lambda frame: csv_of(frame, ";"),
    "windows.csv": lambda frame: b"\xef\xbb\xbf" + csv_of(frame).replace(b"\n", b"\r\n"),
    "quoted.csv": lambda frame: frame.write_csv(quote_style="always").encode(),
    "blank.csv": lambda frame: csv_of(frame).replace(b"\n", b"\n\n") + b",,\n",
    "log.csv.gz": lambda frame: gzip.compress(csv_of(frame)),
    "members.csv.gz": lambda frame: b"".join(
        gzip.compress(line) for line in csv_of(frame).splitlines(keepends=True)
    ),
    "log.csv.zst": lambda frame: zstd(csv_of(frame)),
    "log.jsonl": lambda frame: frame.write_ndjson().encode(),
    "blank.ndjson": lambda frame: b"\xef\xbb\xbf" + frame.write_ndjson().replace("\n", "\r\n\r\n").encode(),
    "log.jsonl.gz": lambda frame: gzip.compress(frame.write_ndjson().encode()),
    "bom.jsonl.gz": lambda frame: gzip.compress(b"\xef\xbb\xbf" + frame.write_ndjson().encode()),
    "log.jsonl.zst": lambda frame: zstd(frame.write_ndjson().encode()),
    "g[lo*b].csv": csv_of,
    "g[lo*b].jsonl": lambda frame: frame.write_ndjson().encode(),
}


PACKERS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gz": gzip.compress, "zst": zstd}
