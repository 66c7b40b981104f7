"""Attributes: categories and numbers in columns of the items table become one vector per item.

The vector of an item is the concatenation of one part of unit length for each column that has a value:

* Categories: a weight for each value of the item, the logarithm of its inverse frequency. Values of columns
  with few of them have a dimension each. Those of other columns share `HASH_WIDTH` dimensions, in which a
  value is a vector of signs, the bits of its hash.
* Numbers, also dates: weights of the two nearest of `NUM_KNOTS` quantiles, so that items with similar numbers
  have similar parts, whatever the unit. If training items lack a number, another dimension marks its absence.

All statistics are those of items with training interactions. Values of fewer than `MIN_ITEMS` of these items
are left out: no vector can tell which item it belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.attribute_values import attribute_pairs
from hafvt.data.attributes import attribute_names
from hafvt.data.dataset import Bool
from hafvt.errors import ArgumentError, HafvtError
from hafvt.features.encoders.base import Float32
from hafvt.features.table import CHUNK_ROWS, EncodedItems, normalize_rows, pack_texts, unpack_texts
from hafvt.progress import report

ATTRIBUTES = "attributes"
"""Name of the modality, and of its encoder in about.json."""
NUM_SLOTS = 256  # dimensions for the values of columns with few values, of all these columns together
HASH_WIDTH = 256
NUM_KNOTS = 8
MIN_ITEMS = 2
KINDS = ("category", "number")


@dataclass(frozen=True)
class CategoryColumn:
    """A column of categories; an item has none, one or several.

    Attributes:
        name: of the column.
        values: the values that training items share.
        weights: (values,) logarithms of inverse frequencies.
        is_hashed: whether the values share `HASH_WIDTH` dimensions with those of other columns.
    """

    name: str
    values: list[str]
    weights: Float32
    is_hashed: bool = False

    @property
    def width(self) -> int:
        """Return the number of dimensions."""
        return HASH_WIDTH if self.is_hashed else len(self.values)

    @cached_property
    def vocabulary(self) -> pl.DataFrame:
        """The values with their numbers."""
        return pl.DataFrame({"value": self.values}, schema={"value": pl.String}).with_row_index("code")

    @cached_property
    def signs(self) -> npt.NDArray[np.int8]:
        """(values, HASH_WIDTH) 1 or -1: the bits of the hash of column and value."""
        texts = (f"{self.name}\0{value}".encode() for value in self.values)
        digests = b"".join(blake2b(text, digest_size=HASH_WIDTH // 8).digest() for text in texts)
        bits = np.unpackbits(np.frombuffer(digests, dtype=np.uint8)).reshape(-1, HASH_WIDTH)
        return 2 * bits.astype(np.int8) - 1

    def encode(self, cells: pl.Series) -> tuple[Float32, Bool]:
        """Return parts of vectors, (items, width) of unit length or zero, and which items have one."""
        pairs = attribute_pairs(cells).join(self.vocabulary, on="value", maintain_order="left")
        rows, codes = pairs["row"].to_numpy(), pairs["code"].to_numpy()
        parts = np.zeros((len(cells), self.width), dtype=np.float32)
        if self.is_hashed:
            turns = pairs.select(pl.int_range(pl.len()).over("row")).to_series().to_numpy()
            for turn in range(turns.max(initial=-1) + 1):  # one value of each item at a time
                item, code = rows[turns == turn], codes[turns == turn]
                parts[item] += self.signs[code] * self.weights[code, None]
        else:
            parts[rows, codes] = self.weights[codes]
        norms = np.linalg.norm(parts, axis=1)
        has_value = norms > 0
        parts[has_value] /= norms[has_value, None]
        return parts, has_value


@dataclass(frozen=True)
class NumberColumn:
    """A column of numbers.

    Attributes:
        name: of the column.
        knots: (k,) distinct quantiles, ascending; at least two.
        marks_missing: whether one dimension more marks items without a number.
    """

    name: str
    knots: npt.NDArray[np.float64]
    marks_missing: bool
    is_hashed: ClassVar[bool] = False

    @property
    def width(self) -> int:
        """Return the number of dimensions."""
        return len(self.knots) + self.marks_missing

    def encode(self, cells: pl.Series) -> tuple[Float32, Bool]:
        """Return the parts of the vectors, (items, width) of unit length, and which items have a number."""
        numbers = as_numbers(cells).to_numpy()
        has_value = np.isfinite(numbers)
        items = np.flatnonzero(has_value)
        places = np.interp(numbers[items], self.knots, np.arange(len(self.knots)))
        lower = np.minimum(places.astype(np.int64), len(self.knots) - 2)
        parts = np.zeros((len(cells), self.width), dtype=np.float32)
        parts[items, lower] = np.sqrt(1 - (places - lower))
        parts[items, lower + 1] = np.sqrt(places - lower)
        if self.marks_missing:
            parts[~has_value, -1] = 1
        return parts, has_value


Column = CategoryColumn | NumberColumn


class ColumnChoice(NamedTuple):
    """A column that is to be encoded, and its kind, one of `KINDS`."""

    name: str
    kind: str


def choose_columns(table: pl.DataFrame, specs: Sequence[str]) -> list[ColumnChoice]:
    """Return the columns that "NAME", "NAME:category" and "NAME:number" name, each once.

    Without a kind, columns of numbers and dates are numbers, others are categories.

    Raises:
        HafvtError: a column is none of the attributes of the items, or cannot hold numbers.
    """
    names, choices = attribute_names(table), dict[str, ColumnChoice]()
    for spec in specs:
        name, _, kind = (spec, "", "") if spec in names else spec.rpartition(":")
        if spec not in names and kind not in KINDS:
            name = spec
        if name not in names:
            listed = ", ".join(names[:50]) or "no other columns: prepare the dataset with an items table"
            raise ArgumentError(
                f"--attributes: {name[:80]!r} is no attribute of the items: they have {listed}"
            )
        dtype = table.schema[name]
        kind = kind or (KINDS[1] if dtype.is_numeric() or dtype.is_temporal() else KINDS[0])
        if kind == "number" and dtype in (pl.List, pl.Boolean):
            raise ArgumentError(f"--attributes: {name} has no numbers but {dtype}: write {name}:category")
        if choices.setdefault(name, ColumnChoice(name, kind)).kind != kind:
            raise ArgumentError(f"--attributes: {name} is there twice: keep one kind")
    return list(choices.values())


def fit_columns(table: pl.DataFrame, choices: Sequence[ColumnChoice], is_trained: Bool) -> list[Column]:
    """Return columns with the statistics of the training items; report columns that are of no use.

    Args:
        table: the items.
        choices: see `choose_columns`.
        is_trained: (items,) whether an item has training interactions.

    Raises:
        HafvtError: no column is of use.
    """
    trained = table.filter(pl.Series(is_trained)) if is_trained.any() else table
    columns, reasons = list[Column](), list[str]()
    for name, kind in choices:
        fit = _fit_numbers if kind == "number" else _fit_categories
        column = fit(table[name], trained[name])
        if isinstance(column, str):
            reasons.append(f"{name}: {column}")
        else:
            columns.append(column)
    if not columns:
        raise HafvtError(f"--attributes: {'; '.join(reasons)}: choose other columns")
    for reason in reasons:
        report(f"attributes: {reason}: left out")
    num_slots = 0
    for position in sorted(range(len(columns)), key=lambda position: columns[position].width):
        if isinstance(column := columns[position], CategoryColumn):
            num_slots += column.width
            columns[position] = replace(column, is_hashed=num_slots > NUM_SLOTS)
    return columns


def _fit_categories(cells: pl.Series, trained: pl.Series) -> CategoryColumn | str:
    """Return a column of categories, or why it is of no use."""
    if cells.dtype == pl.String:
        numbers = as_numbers(cells)
        others = cells.filter(numbers.is_null() & cells.is_not_null())
        if 2 * numbers.count() > cells.count() and len(others):
            report(
                f"attributes: {cells.name}: {len(others):,} of {cells.count():,} values are no numbers, such "
                f"as {others[0][:40]!r}, so all are categories; {cells.name}:number reads the others"
            )
    counts = attribute_pairs(trained).group_by("value").len().sort("value")
    if not len(counts):
        return "no training item has a value"
    shared = counts.filter(pl.col("len").is_between(MIN_ITEMS, len(trained) - 1))
    if not len(shared):
        return f"no value of {len(counts):,} is that of two training items or more, but not of all"
    weights = np.log(len(trained) / shared["len"].to_numpy()).astype(np.float32)
    return CategoryColumn(cells.name, shared["value"].to_list(), weights)


def _fit_numbers(cells: pl.Series, trained: pl.Series) -> NumberColumn | str:
    """Return a column of numbers, or why it is of no use."""
    others = cells.filter(as_numbers(cells).is_null() & cells.is_not_null())
    numbers = as_numbers(trained)
    values = numbers.drop_nulls().to_numpy()
    if not len(values):
        return "no training item has a number"
    if len(others):
        report(
            f"attributes: {cells.name}: {len(others):,} values are no numbers, such as "
            f"{str(others[0])[:40]!r}: they count as missing"
        )
    knots = np.unique(np.quantile(values, np.linspace(0, 1, NUM_KNOTS)))
    if len(knots) < 2:
        return "all training items have the same number"
    return NumberColumn(cells.name, knots, bool(numbers.null_count()))


def as_numbers(cells: pl.Series) -> pl.Series:
    """Return cells as Float64; null where they hold no finite number. Dates become microseconds."""
    if cells.dtype.is_temporal():
        cells = cells.dt.epoch("us")
    if cells.dtype == pl.String:
        cells = cells.str.strip_chars()
    if cells.dtype == pl.List:
        return pl.repeat(None, len(cells), dtype=pl.Float64, eager=True)
    numbers = cells.cast(pl.Float64, strict=False)
    return numbers.set(~numbers.is_finite(), None)


def encode_attributes(table: pl.DataFrame, columns: Sequence[Column]) -> EncodedItems:
    """Return the vectors of items; see the module's docstring.

    Args:
        table: the items; a column that it lacks has no values.
        columns: see `fit_columns`.
    """
    names = [column.name for column in columns]
    missing = [pl.lit(None, pl.String).alias(name) for name in names if name not in table.columns]
    table = table.with_columns(missing).select(names)
    hash_width = HASH_WIDTH * any(column.is_hashed for column in columns)
    widths = [0 if column.is_hashed else column.width for column in columns]
    starts = [0 if c.is_hashed else hash_width + sum(widths[:n]) for n, c in enumerate(columns)]
    rows = np.zeros((len(table), hash_width + sum(widths)), dtype=np.float16)
    present = np.zeros(len(table), dtype=np.bool_)
    for first in range(0, len(table), CHUNK_ROWS):
        items = slice(first, first + CHUNK_ROWS)
        for column, start in zip(columns, starts, strict=True):
            parts, has_value = column.encode(table[column.name][items])
            rows[items, start : start + column.width] += parts.astype(np.float16)
            present[items] |= has_value
    is_empty = table.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()
    problems = {
        item: f"no {' or '.join(names)} given" if is_empty[item] else "no value that training items share"
        for item in np.flatnonzero(~present).tolist()
    }
    return normalize_rows(rows, present, problems)


def dump_columns(columns: Sequence[Column]) -> tuple[list[dict[str, Any]], dict[str, npt.NDArray[Any]]]:
    """Return columns as JSON values and arrays by name, which `load_columns` reads."""
    settings, arrays = list[dict[str, Any]](), dict[str, npt.NDArray[Any]]()
    for number, column in enumerate(columns):
        if isinstance(column, CategoryColumn):
            arrays |= {f"values_{number}": pack_texts(column.values), f"weights_{number}": column.weights}
            settings.append({"name": column.name, "kind": "category", "is_hashed": column.is_hashed})
        else:
            arrays[f"knots_{number}"] = column.knots
            settings.append({"name": column.name, "kind": "number", "marks_missing": column.marks_missing})
    return settings, arrays


def load_columns(settings: list[dict[str, Any]], arrays: dict[str, npt.NDArray[Any]]) -> list[Column]:
    """Return the columns that `dump_columns` was given."""
    return [
        CategoryColumn(
            one["name"],
            unpack_texts(arrays[f"values_{number}"]),
            arrays[f"weights_{number}"],
            one["is_hashed"],
        )
        if one["kind"] == "category"
        else NumberColumn(one["name"], arrays[f"knots_{number}"], one["marks_missing"])
        for number, one in enumerate(settings)
    ]
