"""Columns of an items table: those that hafvt reads, and its attributes, such as brand and price."""

from __future__ import annotations

import polars as pl

from hafvt.data.table_options import Decimal, parse_numbers
from hafvt.errors import ArgumentError

CONTENT_COLUMNS = ("title", "image")
"""Optional text columns of the item table, which `hafvt.features.modalities` turns into vectors."""
ITEM_COLUMNS = ("item_id", "domain", *CONTENT_COLUMNS)
LEADING_ZERO = r"^\s*[+-]?0\d"  # of a code such as 007, which is no number
JSON_LIST = r"^\s*\["
MAX_WHOLE = 2**53  # whole numbers up to it are exact as Float64


RELATION_COLUMNS = ("also_bought", "also_viewed", "bought_together", "buy_after_viewing")
"""Columns that the items of a data source may have: lists of the ids of related items. No attributes."""


def attribute_names(table: pl.DataFrame) -> list[str]:
    """Return the names of the attributes in an items table."""
    return [name for name in table.columns if name not in (*ITEM_COLUMNS, *RELATION_COLUMNS)]


def stored_type(dtype: pl.DataType) -> pl.DataType | None:
    """Return the type that a dataset stores for attributes of a type; None for a type that is not kept."""
    if isinstance(dtype, pl.List):
        inner = pl.Series(dtype=dtype.inner).dtype
        stored = None if isinstance(inner, pl.List) else stored_type(inner)
        return None if stored is None else pl.List(stored)
    if dtype in (pl.String, pl.Categorical, pl.Enum):
        return pl.String()
    if dtype.is_numeric():
        is_large = dtype in (pl.UInt64, pl.Int128, pl.UInt128)  # may hold what Int64 cannot
        return pl.Int64() if dtype.is_integer() and not is_large else pl.Float64()
    return dtype if dtype in (pl.Boolean, pl.Date, pl.Datetime) else None


def parse_attributes(columns: list[pl.Series], decimal: Decimal) -> list[pl.Series]:
    """Return columns of attributes in the types that a dataset stores, without those of other types.

    Text becomes numbers if all values are numbers without leading zeros, and lists if all values are lists in
    JSON. Empty text becomes null. Numbers are Int64 if all are whole, else Float64.
    """
    types = [stored_type(column.dtype) for column in columns]
    return [
        _parse(column.cast(dtype, strict=False), decimal)
        for column, dtype in zip(columns, types, strict=True)
        if dtype is not None
    ]


def _parse(column: pl.Series, decimal: Decimal) -> pl.Series:
    """Return a column of a stored type with the content that `parse_attributes` describes."""
    if column.dtype == pl.String:
        column = column.set(column.str.strip_chars() == "", None)
        values = column.drop_nulls()
        if len(values) and values.str.contains(JSON_LIST).all():
            return _parse_lists(column)
        numbers = _parse_numbers(column, decimal)
        column = column if numbers is None else numbers
    if column.dtype == pl.Float64:
        column = column.set(~column.is_finite(), None)
        values = column.drop_nulls()
        if len(values) and (values == values.floor()).all() and (values.abs() <= MAX_WHOLE).all():
            return column.cast(pl.Int64)
    return column


def _parse_numbers(text: pl.Series, decimal: Decimal) -> pl.Series | None:
    """Return text as numbers; None if a value is none, or if all values are empty."""
    values = text.drop_nulls()
    if not len(values) or values.str.contains(LEADING_ZERO).any():
        return None
    try:
        return parse_numbers(text, decimal)
    except ArgumentError:  # its commas may be decimal or stand between thousands
        return None


def _parse_lists(text: pl.Series) -> pl.Series:
    """Return text that holds lists in JSON as lists of text; the text itself if it holds something else."""
    try:
        return text.str.json_decode(pl.List(pl.String))
    except pl.exceptions.PolarsError:
        return text
