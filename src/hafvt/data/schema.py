"""CSV, JSONL, Parquet and data frames -> checked tables under our names; errors name row and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from hafvt.data.readers import Origin, read_columns
from hafvt.errors import HafvtError, InputError

COLUMNS = {
    "interactions": ("user_id", "item_id", "timestamp", "domain"),
    "items": ("item_id", "domain", "title", "image"),
}
NEEDED = {"interactions": ("user_id", "item_id", "timestamp"), "items": ("item_id",)}
NAMES = tuple(dict.fromkeys(COLUMNS["interactions"] + COLUMNS["items"]))

DATE = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?$"
FAR = 9e18  # seconds must fit 64 bits


@dataclass(frozen=True)
class Table:
    """A checked table.

    Attributes:
        frame: the columns under our names. Ids and domains are text, never empty; titles and images text
            or null; timestamps Int64, or Float64 if any has a fraction.
        names: our name -> the input's.
        origin: where the rows came from.
    """

    frame: pl.DataFrame
    names: dict[str, str]
    origin: Origin

    def error(self, bad: pl.Series, column: str, problem: str, remedy: str) -> InputError:
        """Returns the error for our `column` in the first of the rows where `bad`, a mask, is true."""
        index = bad.arg_true()[0]
        row, name, value = self.origin.row(index), self.names[column], self.frame[column][index]
        return InputError(problem, remedy, file=self.origin.file, row=row, column=name, value=value)


def read_tables(interactions: Any, items: Any, columns: dict[str, str]) -> tuple[Table, Table | None]:
    """Reads and checks interactions and, unless None, items.

    Args:
        interactions: a path or data frame with user_id, item_id, timestamp and, optionally, domain.
        items: a path or data frame with item_id and, optionally, domain, title and image; or None.
        columns: our name -> the input's name, for both tables; a table without the input's name is
            looked through for ours.

    Raises:
        InputError: a table or a value in it is wrong.
        HafvtError: `columns` has a name that is not ours or an input's name that no table has.
    """
    unknown = [name for name in columns if name not in NAMES]
    if unknown:
        raise HafvtError(f"--columns: {unknown[0]!r} is none of our names: use {', '.join(NAMES)}")
    log = _read_table(interactions, "interactions", columns)
    catalog = None if items is None else _read_table(items, "items", columns)
    for ours, theirs in columns.items():
        if not any(table and table.names.get(ours) == theirs for table in (log, catalog)):
            raise HafvtError(
                f"--columns: no table has a column {theirs!r} for {ours}: correct the name or leave it out"
            )
    return log, catalog


def read_items(items: Any, columns: dict[str, str]) -> Table:
    """Reads and checks a table of items that comes without interactions.

    Args:
        items: a path or data frame with item_id and, optionally, domain, title and image.
        columns: our name -> the input's name.

    Raises:
        InputError: the table or a value in it is wrong.
        HafvtError: `columns` has a name that is not ours or an input's name that the table lacks.
    """
    known = COLUMNS["items"]
    if unknown := [name for name in columns if name not in known]:
        raise HafvtError(f"--columns: {unknown[0]!r} is none of our names: use {', '.join(known)}")
    table = _read_table(items, "items", columns)
    for ours, theirs in columns.items():
        if table.names.get(ours) != theirs:
            raise HafvtError(f"--columns: the table has no column {theirs!r} for {ours}: correct the name")
    return table


def _read_table(source: Any, role: str, columns: dict[str, str]) -> Table:
    candidates = {ours: (columns.get(ours, ours), ours) for ours in COLUMNS[role]}
    raw = read_columns(source, list(dict.fromkeys(name for pair in candidates.values() for name in pair)))
    file = raw.origin.file
    if raw.frame.is_empty() and set(raw.frame.columns).issuperset(NEEDED[role]):
        raise InputError(f"no {role} in it", "Give a table with rows", file=file)
    names = {}
    for ours, pair in candidates.items():
        found = [name for name in pair if name in raw.frame.columns]
        if found:
            names[ours] = found[0]
        elif ours in NEEDED[role]:
            has = ", ".join(raw.columns) or "none"
            remedy = f"Say which column it is: --columns {ours}=NAME"
            raise InputError(
                f"no column {pair[0]!r} among the columns of the {role}: {has}", remedy, file=file
            )
    frame = raw.frame.select(pl.col(theirs).alias(ours) for ours, theirs in names.items())
    table = Table(frame, names, raw.origin)
    return Table(frame.with_columns(_checked(table, name) for name in names), names, raw.origin)


def _checked(table: Table, name: str) -> pl.Series:
    """Returns a column in its type of `Table`."""
    column = table.frame[name]
    if name == "timestamp":
        parsed, problem = _seconds(column), "not a time"
        remedy = "Give numbers, or times as 2024-12-31 or 2024-12-31T23:59:59Z, one kind in all rows"
    else:
        parsed, problem, remedy = _text(table, name), f"an empty {name}", "Fill it in or remove the row"
    if name in ("title", "image"):
        return parsed
    bad = parsed.is_null()
    if bad.any():
        empty = column.filter(bad)[0] in (None, "")
        raise table.error(bad, name, f"an empty {name}" if empty else problem, remedy)
    return parsed


def _text(table: Table, name: str) -> pl.Series:
    """Returns a column as text, null where empty."""
    column = table.frame[name]
    if column.dtype.is_float():
        column = column.fill_nan(None)
    plain = column.dtype in (pl.String, pl.Categorical, pl.Enum) or column.dtype.is_integer()
    if not plain and column.null_count() < len(column):
        # Pandas turns whole numbers with a gap into floats, and then 7 would become "7.0".
        remedy = "Give text or whole numbers, without empty cells"
        problem = f"a {name} cannot be of type {column.dtype}"
        raise InputError(problem, remedy, file=table.origin.file, column=table.names[name])
    text = column.cast(pl.String) if plain else _nulls(column, pl.String)
    return text.replace("", None) if (text == "").any() else text


def _seconds(column: pl.Series) -> pl.Series:
    """Returns times as Int64, or Float64 where some have a fraction; null where they do not parse.

    Numbers stay in their own unit. Dates and times become seconds since 1970, UTC where no zone is given.
    """
    if column.dtype == pl.String:
        # One kind of time per column. What fits more rows comes first, so that the odd row out is the error.
        whole = column.cast(pl.Int64, strict=False)
        if whole.null_count() == 0:
            return whole
        tries = [whole, _finite(column.cast(pl.Float64, strict=False)), _seconds(_datetimes(column))]
        return min(tries, key=pl.Series.null_count)
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype.is_float() or column.dtype.is_decimal():
        return _finite(column.cast(pl.Float64))
    if column.dtype in (pl.Date, pl.Datetime):
        micros = column.cast(pl.Datetime("us")) if column.dtype == pl.Date else column
        ticks = micros.dt.timestamp("us")
        return ticks // 1_000_000 if (ticks % 1_000_000 == 0).all() else ticks / 1_000_000
    return _nulls(column, pl.Int64)


def _nulls(column: pl.Series, dtype: type[pl.DataType]) -> pl.Series:
    """Returns a column of nulls of the same name and length."""
    return pl.repeat(None, len(column), dtype=dtype, eager=True).alias(column.name)


def _finite(column: pl.Series) -> pl.Series:
    """Returns floats with nulls for NaN, infinities and what no Int64 can hold."""
    return column.set(~(column.abs() < FAR).fill_null(False), None)


def _datetimes(column: pl.Series) -> pl.Series:
    """Returns ISO 8601 text as UTC datetimes, null where it is none."""
    parts = pl.col(column.name).str.extract_groups(DATE)
    day, minute, second, fraction, zone = (parts.struct.field(str(n)) for n in range(1, 6))
    whole = pl.concat_str(
        day,
        pl.lit("T"),
        minute.fill_null("00:00"),
        second.fill_null(":00"),
        fraction.fill_null(".0"),
        zone.replace("Z", "+00:00").fill_null("+00:00"),
    )
    parsed = whole.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", strict=False)
    return column.to_frame().select(parsed.alias(column.name))[column.name]
