"""Columns of the input tables: checks that name file, row, column and remedy."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from hafvt.data.attributes import CONTENT_COLUMNS, ITEM_COLUMNS, parse_attributes
from hafvt.data.conditions import condition_columns, rows_that_meet
from hafvt.data.ids import id_column, visible_text
from hafvt.data.origin import Origin
from hafvt.data.raw_frames import RawTable
from hafvt.data.readers import read_columns
from hafvt.data.table_options import DEFAULT_OPTIONS, TableOptions, parse_numbers
from hafvt.data.times import UNIX_SECONDS, is_imprecise, is_placeholder, other_unit, parse_times
from hafvt.data.titles import normalize_titles
from hafvt.errors import ArgumentError, HafvtError, InputError
from hafvt.progress import report

COLUMNS = {"interactions": ("user_id", "item_id", "timestamp", "domain"), "items": ITEM_COLUMNS}
REQUIRED = {"interactions": ("user_id", "item_id", "timestamp"), "items": ("item_id",)}
OWN_COLUMNS = (*ITEM_COLUMNS, "image_root")  # no attributes of an items table have these names
DECIMAL_COMMA = r"^\d+,\d+$"


@dataclass(frozen=True)
class Table:
    """A checked table of interactions or items.

    Attributes:
        frame: columns under the names of `COLUMNS`, and the attributes of items. Ids and domains are text,
            never empty; titles and images text or null; timestamps Int64, or Float64 if any has a fraction.
        names: name of `COLUMNS` -> name in the input.
        origin: the file or data frame.
        ticks_per_second: see `Times`.
        rows: index in the input of each row of `frame`; None if `frame` has all rows.
        input_counts: the number of interactions or items in the input and, before rows are left out by
            `TableOptions.keep`, of users and items: "users", "items", "interactions".
    """

    frame: pl.DataFrame
    names: dict[str, str]
    origin: Origin
    ticks_per_second: int = 1
    rows: pl.Series | None = None
    input_counts: dict[str, int] = field(default_factory=dict)

    def error(self, is_wrong: pl.Series, column: str, problem: str, remedy: str) -> InputError:
        """Return the error for the first row where the mask `is_wrong` is true."""
        index = is_wrong.arg_true()[0]
        row = self.origin.row(index if self.rows is None else self.rows[index])
        name, value = self.names.get(column, column), self.frame[column][index]
        return InputError(problem, remedy, file=self.origin.file, row=row, column=name, value=value)

    def filter(self, mask: pl.Series) -> Table:
        """Return the table with the rows of a mask."""
        rows = mask.arg_true()
        rows = rows if self.rows is None else self.rows[rows]
        return replace(self, frame=self.frame.filter(mask), rows=rows)


def read_tables(
    interactions: Any,
    items: Any,
    columns: dict[str, str],
    options: TableOptions = DEFAULT_OPTIONS,
    weight: str | None = None,
) -> tuple[Table, Table | None]:
    """Read and check interactions and, unless None, items.

    Args:
        interactions: a path or data frame with user_id, item_id, timestamp and, optionally, domain.
        items: a path or data frame with item_id and, optionally, domain, title and image; or None.
        columns: name of `COLUMNS` -> name in the input, for both tables; a table without a column of the
            second name may have one of the first.
        options: how the tables are read.
        weight: the column of the interactions' weights in the input; None for none.

    Raises:
        InputError: a table or a value in it is wrong.
        HafvtError: `columns` has a name that is not in `COLUMNS`, or one that no table has.
    """
    _check_column_names(columns)
    interaction_table = _read_table(interactions, "interactions", columns, options, weight)
    item_table = None if items is None else _read_table(items, "items", columns, options)
    _check_mapped_columns(columns, [table for table in (interaction_table, item_table) if table])
    return interaction_table, item_table


def read_interactions(interactions: Any, columns: dict[str, str], options: TableOptions) -> Table:
    """Read and check a table of interactions alone; `columns` may name those of items, too."""
    _check_column_names(columns)
    table = _read_table(interactions, "interactions", columns, options)
    num_rows = table.input_counts["interactions"]
    if num_removed := num_rows - len(table.frame):
        report(f"removed by keep={options.keep}: {num_removed:,} of {num_rows:,} interactions")
    return table


def read_items(items: Any, columns: dict[str, str], options: TableOptions = DEFAULT_OPTIONS) -> Table:
    """Read and check a table of items alone, and normalize its titles; `columns` may name others, too."""
    _check_column_names(columns)
    table = _read_table(items, "items", columns, options)
    _check_mapped_columns({name: columns[name] for name in columns if name in COLUMNS["items"]}, [table])
    titles = [normalize_titles(table.frame["title"])] if "title" in table.names else []
    return replace(table, frame=table.frame.with_columns(titles))


def _check_column_names(columns: dict[str, str]) -> None:
    """Raise HafvtError if `columns` maps a name that is not in `COLUMNS`."""
    known = tuple(dict.fromkeys(COLUMNS["interactions"] + COLUMNS["items"]))
    if unknown := [name for name in columns if name not in known]:
        raise ArgumentError(f"--columns: {unknown[0]!r} is not a column of hafvt: use {', '.join(known)}")


def _check_mapped_columns(columns: dict[str, str], tables: list[Table]) -> None:
    """Raise HafvtError if `columns` maps a name to a column that no table has."""
    for name, input_name in columns.items():
        if not any(table.names.get(name) == input_name for table in tables):
            raise HafvtError(
                f"--columns: no table has a column {input_name!r} for {name}: correct it or leave it out"
            )


def _read_table(
    source: Any, role: str, columns: dict[str, str], options: TableOptions, weight: str | None = None
) -> Table:
    """Read and check a table; `role` is "interactions" or "items"."""
    candidates = {name: (columns.get(name, name), name) for name in COLUMNS[role]}
    input_names = list(dict.fromkeys(name for pair in candidates.values() for name in pair))
    condition = options.keep if role == "interactions" else None
    others = condition_columns(condition) + ([] if weight is None else [weight])
    wanted, numeric = list(dict.fromkeys(input_names + others)), [*candidates.get("timestamp", ()), *others]
    try:
        raw = read_columns(source, wanted, numeric=numeric, options=options, with_others=role == "items")
    except InputError as error:
        raw = read_columns(source, wanted, numeric=numeric, options=options)
        report(f"columns besides {', '.join(raw.frame.columns)} are left out: {error}")
    file = raw.origin.file
    if raw.frame.is_empty() and set(raw.frame.columns).issuperset(REQUIRED[role]):
        raise InputError(f"no {role} in it", "Use a table with rows", file=file)
    names = {}
    for name, pair in candidates.items():
        input_name = next((column for column in pair if column in raw.frame.columns), None)
        if input_name is not None:
            names[name] = input_name
        elif name in REQUIRED[role]:
            columns_seen = [name if name == " ".join(name.split()) else repr(name) for name in raw.columns]
            present = ", ".join(columns_seen[:50]) or "none"
            problem = f"no column {pair[0]!r} among {present}"
            raise InputError(problem, f"Say which column it is: --columns {name}=NAME", file=file)
    if role == "interactions" and names["user_id"] == names["item_id"]:
        raise InputError(
            "it is both user_id and item_id", "Name two by --columns", file=file, column=names["user_id"]
        )
    frame = raw.frame.select(pl.col(input_name).alias(name) for name, input_name in names.items())
    if weight is not None:
        if weight not in raw.frame.columns:
            problem = f"no column {weight!r} among {', '.join(raw.columns[:50])}"
            raise InputError(problem, "Correct --weight", file=file)
        names, frame = names | {"weight": weight}, frame.with_columns(raw.frame[weight].alias("weight"))
    table = Table(frame, names, raw.origin, input_counts={role: len(frame)})
    if condition:
        table = _keep_rows(table, raw, condition, options)
    text_names = [name for name in names if name not in ("timestamp", "weight")]
    text_columns = [_text(table, name, options.strip) for name in text_names]
    if "timestamp" in names:
        table = _with_times(table, options)
    if weight is not None:
        table = _with_weights(table, options)
    attributes = [raw.frame[name] for name in raw.frame.columns if name not in (*input_names, *OWN_COLUMNS)]
    attributes = parse_attributes(attributes, options.decimal) if role == "items" else []
    return replace(table, frame=table.frame.with_columns(text_columns + attributes))


def _keep_rows(table: Table, raw: RawTable, condition: str, options: TableOptions) -> Table:
    """Return the interactions that meet a condition.

    Raises:
        HafvtError: the condition is wrong, or no interaction meets it.
    """
    mask = rows_that_meet(raw, condition, options)
    if not mask.any():
        raise HafvtError(f"--keep {condition}: no interaction meets it: correct the condition")
    counts = table.input_counts | {
        key: table.frame[f"{key[:-1]}_id"].n_unique() for key in ("users", "items")
    }
    return replace(table.filter(mask), input_counts=counts)


def _text(table: Table, name: str, strip: bool) -> pl.Series:
    """Return a column as text, null where it is empty.

    Raises:
        InputError: the column has another type, or an id is empty.
    """
    try:
        text = id_column(table.frame[name])
    except HafvtError as error:
        problem, remedy = str(error).rsplit(": ", 1)
        remedy = remedy[0].upper() + remedy[1:]
        raise InputError(problem, remedy, file=table.origin.file, column=table.names[name]) from None
    if name in CONTENT_COLUMNS:
        return text
    if text.null_count():
        raise table.error(text.is_null(), name, f"an empty {name}", "Fill it in or remove the row")
    return visible_text(text) if strip else text


def _with_weights(table: Table, options: TableOptions) -> Table:
    """Return a table of interactions with weights as numbers.

    Raises:
        InputError: a weight is empty, negative or no finite number, or all are 0.
    """
    column = table.frame["weight"]
    numbers = parse_numbers(column, options.decimal) if column.dtype == pl.String else column
    weights = (column if numbers is None else numbers).cast(pl.Float32, strict=False)
    is_wrong = ~((weights >= 0) & weights.is_finite()).fill_null(False)
    if is_wrong.any():
        raise table.error(is_wrong, "weight", "not a weight", "Give a number from 0 on, or filter by --keep")
    if not (weights > 0).any():
        raise InputError(
            "all weights are 0",
            "Name another column by --weight",
            file=table.origin.file,
            column=table.names["weight"],
        )
    return replace(table, frame=table.frame.with_columns(weights.alias("weight")))


def _with_times(table: Table, options: TableOptions) -> Table:
    """Return a table of interactions with parsed times.

    Raises:
        InputError: a value is not a time, has lost digits, or is of another unit than most.
    """
    column = table.frame["timestamp"]
    if column.dtype == pl.String and options.decimal != "." and column.str.contains(DECIMAL_COMMA).all():
        column = column.str.replace(",", ".", literal=True)
    column = column.alias(table.names["timestamp"])
    times, ticks_per_second, time_format = parse_times(column, options.time_format, options.time_zone)
    times = times.alias("timestamp")
    if time_format:
        report(
            f"column {table.names['timestamp']!r}: times such as {column[0]!r} are read as {time_format}, in "
            f"{options.time_zone}: if they are others, give --time-format and --time-zone"
        )
    if (is_wrong := times.is_null()).any():
        value = column.filter(is_wrong)[0]
        problem = "an empty timestamp" if value is None or str(value) == "" else "not a time"
        remedy = "Give numbers, or times as 2024-12-31T23:59:59Z; name other forms by --time-format"
        if options.time_format:
            problem, remedy = f"{problem} of the form {options.time_format}", "Correct it, or --time-format"
        raise table.error(is_wrong, "timestamp", problem, remedy)
    if (is_wrong := is_imprecise(column, times)).any():
        dtype = column.dtype if column.dtype.is_float() else times.dtype
        problem = f"numbers of this size lose digits as {dtype}, and with them their order"
        raise table.error(is_wrong, "timestamp", problem, "Give whole numbers, or seconds as Float64")
    if mixed := other_unit(times // ticks_per_second):
        is_wrong, rare, common = mixed
        problem = f"this time seems to be in {rare} and most in {common}"
        remedy = "Give all times in one unit, and correct false dates"
        if is_placeholder(column.filter(is_wrong), times.filter(is_wrong) // ticks_per_second, common):
            problem = "this date seems to be a placeholder"
            remedy = "Give the time of the interaction, or remove the row"
        raise table.error(is_wrong, "timestamp", problem, remedy)
    first, last = (limit * ticks_per_second for limit in UNIX_SECONDS)
    outside = column.filter(~times.is_between(first, last))
    if 0 < len(outside) < len(times) / 2:
        report(
            f"column {table.names['timestamp']!r}: {len(outside):,} of {len(times):,} times, such as "
            f"{outside[0]!r}, are before March 1973 or after 2096, so no model uses the dates: remove these "
            "rows or correct them"
        )
    return replace(table, frame=table.frame.with_columns(times), ticks_per_second=ticks_per_second)
