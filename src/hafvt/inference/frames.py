"""Data frames of the caller's own kind: pandas, Polars, PyArrow and others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import narwhals as nw
import polars as pl


def is_frame(source: Any) -> bool:
    """Return whether `source` is a data frame, and not a path, a series or a list."""
    if isinstance(source, str | Path):
        return False
    try:
        return nw.from_native(source, pass_through=True) is not source
    except nw.exceptions.DuplicateError:  # a frame with repeated columns, which readers may leave out
        return True


def frame_like(source: Any, table: pl.DataFrame) -> Any:
    """Return a table as a data frame of the kind of `source`, or of Polars where that kind is lazy."""
    if hasattr(source, "column_names"):  # without columns, as some may be repeated
        source = source.select([])
    elif hasattr(source, "loc"):
        source = source[[]]
    backend = nw.from_native(source).implementation
    if not (backend.is_pandas_like() or backend.is_pyarrow()):
        return table
    return nw.from_dict({name: table[name].to_list() for name in table.columns}, backend=backend).to_native()
