"""What the tests of tables and of prepare share."""

from __future__ import annotations

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
