"""`ItemAttribute`: the values of items in a column of the items table, as numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Int64

Float64 = npt.NDArray[np.float64]
VALUE_SEPARATOR = "|"  # between the values of an item in text


@dataclass(frozen=True)
class ItemAttribute:
    """The values of the items in one column, such as genres: none, one or several.

    Attributes:
        name: of the column.
        offsets: (items + 1,) where the values of each item start.
        values: (n,) numbers of values, item after item.
        num_values: number of distinct values.
    """

    name: str
    offsets: Int64
    values: Int64
    num_values: int

    def shares(self, rows: Int64, items: Int64, num_rows: int) -> Float64:
        """Return the share of each value in each of several groups of items, (num_rows, values).

        An item with several values counts as a fraction of each. Without any value, a row is zero.

        Args:
            rows: (m,) number of the group of each item.
            items: (m,) item indices.
            num_rows: number of groups.
        """
        counts = (self.offsets[1:] - self.offsets[:-1])[items]
        places = np.arange(counts.sum()) + np.repeat(self.offsets[items] - counts.cumsum() + counts, counts)
        cells = np.repeat(rows, counts) * self.num_values + self.values[places]
        weights = np.repeat(1 / np.maximum(counts, 1), counts)
        sums = np.bincount(cells, weights, minlength=num_rows * self.num_values)
        sums = sums.reshape(num_rows, self.num_values)
        shares: Float64 = sums / np.maximum(sums.sum(1, keepdims=True), 1e-12)
        return shares

    def of_item(self, item: int) -> list[int]:
        """Return the numbers of the values of an item; none where its value is unknown."""
        values: list[int] = self.values[self.offsets[item] : self.offsets[item + 1]].tolist()
        return values


def attribute_pairs(column: pl.Series) -> pl.DataFrame:
    """Return the distinct values of each item in a column of the items table, as text: row and value.

    All elements of a list are values, and all parts of a text between bars, such as Drama|Comedy.
    """
    lists = column.str.split(VALUE_SEPARATOR) if column.dtype == pl.String else column
    pairs = pl.DataFrame({"row": pl.int_range(len(lists), eager=True), "value": lists})
    if lists.dtype == pl.List:
        pairs = pairs.explode("value")
    text = pl.col("value").cast(pl.String).str.strip_chars().replace("", None)
    return pairs.with_columns(text).drop_nulls().unique(maintain_order=True)


def read_attribute(column: pl.Series) -> ItemAttribute:
    """Return the values of items in a column of the items table, see `attribute_pairs`."""
    pairs = attribute_pairs(column)
    codes = pairs["value"].rank("dense").cast(pl.Int64).to_numpy() - 1
    counts = np.bincount(pairs["row"].to_numpy(), minlength=len(column))
    offsets = np.concatenate([[0], counts.cumsum()]).astype(np.int64)
    return ItemAttribute(column.name, offsets, codes, int(codes.max(initial=-1)) + 1)


def cast_attribute(column: pl.Series, dtype: pl.DataType) -> pl.Series:
    """Return a column of an items table in the type that a dataset has; null where a value does not fit.

    Text becomes a list of its parts between bars.
    """
    if column.dtype == pl.String and isinstance(dtype, pl.List):
        column = column.str.split(VALUE_SEPARATOR).list.eval(pl.element().str.strip_chars())
    try:
        return column.cast(dtype, strict=False)
    except pl.exceptions.PolarsError:  # such as a list for a number
        return pl.Series(column.name, [None] * len(column), dtype=dtype)
