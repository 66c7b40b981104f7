"""Columns of the input tables: checks that name file, row and remedy, and ids as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import CONTENT_COLUMNS, ITEM_COLUMNS, Bool, Int32, Int64
from hafvt.data.readers import Origin, read_columns
from hafvt.errors import HafvtError, InputError

COLUMNS = {
    "interactions": ("user_id", "item_id", "timestamp", "domain"),
    "items": ITEM_COLUMNS,
}
RELATION_COLUMNS = ("also_bought", "also_viewed", "bought_together", "buy_after_viewing")
"""Further columns that the items of a data source may have: lists of the ids of related items."""
REQUIRED = {"interactions": ("user_id", "item_id", "timestamp"), "items": ("item_id",)}
DEFAULT_DOMAIN = "all"  # name of the only domain if no table has a column of domains

DATE = r"^(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d)(:\d\d)?(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?$"
MAX_SECONDS = 9e18  # so that times fit 64 bits


@dataclass(frozen=True)
class Table:
    """A checked table of interactions or items.

    Attributes:
        frame: columns under the names of `COLUMNS`. Ids and domains are text, never empty; titles and images
            text or null; timestamps Int64, or Float64 if any has a fraction.
        names: name of `COLUMNS` -> name in the input.
        origin: the file or data frame.
    """

    frame: pl.DataFrame
    names: dict[str, str]
    origin: Origin

    def error(self, is_wrong: pl.Series, column: str, problem: str, remedy: str) -> InputError:
        """Return the error for the first row where the mask `is_wrong` is true."""
        index = is_wrong.arg_true()[0]
        row, name, value = self.origin.row(index), self.names.get(column, column), self.frame[column][index]
        return InputError(problem, remedy, file=self.origin.file, row=row, column=name, value=value)


def read_tables(interactions: Any, items: Any, columns: dict[str, str]) -> tuple[Table, Table | None]:
    """Read and check interactions and, unless None, items.

    Args:
        interactions: a path or data frame with user_id, item_id, timestamp and, optionally, domain.
        items: a path or data frame with item_id and, optionally, domain, title and image; or None.
        columns: name of `COLUMNS` -> name in the input, for both tables; a table without a column of the
            second name may have one of the first.

    Raises:
        InputError: a table or a value in it is wrong.
        HafvtError: `columns` has a name that is not in `COLUMNS`, or one that no table has.
    """
    _check_column_names(columns, tuple(dict.fromkeys(COLUMNS["interactions"] + COLUMNS["items"])))
    interaction_table = _read_table(interactions, "interactions", columns)
    item_table = None if items is None else _read_table(items, "items", columns)
    for name, input_name in columns.items():
        if not any(t and t.names.get(name) == input_name for t in (interaction_table, item_table)):
            raise HafvtError(
                f"--columns: no table has a column {input_name!r} for {name}: correct it or leave it out"
            )
    return interaction_table, item_table


def read_items(items: Any, columns: dict[str, str]) -> Table:
    """Read and check a table of items without interactions.

    Args:
        items: a path or data frame with item_id and, optionally, domain, title and image.
        columns: name of `COLUMNS` -> name in the input.

    Raises:
        InputError: the table or a value in it is wrong.
        HafvtError: `columns` has a name that is not in `COLUMNS`, or one that the table lacks.
    """
    _check_column_names(columns, COLUMNS["items"])
    table = _read_table(items, "items", columns)
    for name, input_name in columns.items():
        if table.names.get(name) != input_name:
            raise HafvtError(
                f"--columns: the table has no column {input_name!r} for {name}: correct the name"
            )
    return table


def _check_column_names(columns: dict[str, str], known: tuple[str, ...]) -> None:
    """Raise HafvtError if `columns` maps a name that is not in `known`."""
    if unknown := [name for name in columns if name not in known]:
        raise HafvtError(f"--columns: {unknown[0]!r} is not a column of hafvt: use {', '.join(known)}")


def _read_table(source: Any, role: str, columns: dict[str, str]) -> Table:
    """Read and check a table; `role` is "interactions" or "items"."""
    candidates = {name: (columns.get(name, name), name) for name in COLUMNS[role]}
    raw = read_columns(source, list(dict.fromkeys(name for pair in candidates.values() for name in pair)))
    file = raw.origin.file
    if raw.frame.is_empty() and set(raw.frame.columns).issuperset(REQUIRED[role]):
        raise InputError(f"no {role} in it", "Use a table with rows", file=file)
    names = {}
    for name, pair in candidates.items():
        input_name = next((column for column in pair if column in raw.frame.columns), None)
        if input_name is not None:
            names[name] = input_name
        elif name in REQUIRED[role]:
            present = ", ".join(raw.columns) or "none"
            problem = f"no column {pair[0]!r} among the columns of the {role}: {present}"
            raise InputError(problem, f"Say which column it is: --columns {name}=NAME", file=file)
    frame = raw.frame.select(pl.col(input_name).alias(name) for name, input_name in names.items())
    table = Table(frame, names, raw.origin)
    return replace(table, frame=frame.with_columns(_checked_column(table, name) for name in names))


def _checked_column(table: Table, name: str) -> pl.Series:
    """Return a column with the type that `Table` promises.

    Raises:
        InputError: a value is empty or not a time.
    """
    column = table.frame[name]
    if name == "timestamp":
        parsed, problem = _seconds(column), "not a time"
        remedy = "Give numbers, or times as 2024-12-31 or 2024-12-31T23:59:59Z, one kind in all rows"
    else:
        parsed, problem, remedy = _text(table, name), f"an empty {name}", "Fill it in or remove the row"
    if name in CONTENT_COLUMNS:
        return parsed
    is_wrong = parsed.is_null()
    if is_wrong.any():
        is_empty = column.filter(is_wrong)[0] in (None, "")
        raise table.error(is_wrong, name, f"an empty {name}" if is_empty else problem, remedy)
    return parsed


def _text(table: Table, name: str) -> pl.Series:
    """Return a column as text, null where it is empty."""
    column = table.frame[name]
    if column.dtype.is_float():
        column = column.fill_nan(None)
    is_id_type = column.dtype in (pl.String, pl.Categorical, pl.Enum) or column.dtype.is_integer()
    if not is_id_type and column.null_count() < len(column):
        # Pandas turns whole numbers with a gap into floats, and then 7 would become "7.0".
        remedy = "Give text or whole numbers, without empty cells"
        problem = f"a {name} cannot be of type {column.dtype}"
        raise InputError(problem, remedy, file=table.origin.file, column=table.names[name])
    text = column.cast(pl.String) if is_id_type else _nulls(column, pl.String)
    return text.replace("", None) if (text == "").any() else text


def _seconds(column: pl.Series) -> pl.Series:
    """Return times as Int64, or Float64 if any has a fraction; null where a value is not a time.

    Numbers keep their unit. Dates and times become seconds since 1970, UTC unless they name a zone.
    """
    if column.dtype == pl.String:
        # A column has one kind of time: the one that fits most rows, so that an odd row is the error.
        integers = column.cast(pl.Int64, strict=False)
        if integers.null_count() == 0:
            return integers
        kinds = [integers, _finite(column.cast(pl.Float64, strict=False)), _seconds(_datetimes(column))]
        return min(kinds, key=pl.Series.null_count)
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype.is_float() or column.dtype.is_decimal():
        return _finite(column.cast(pl.Float64))
    if column.dtype in (pl.Date, pl.Datetime):
        times = column.cast(pl.Datetime("us")) if column.dtype == pl.Date else column
        microseconds = times.dt.timestamp("us")
        has_fraction = not (microseconds % 1_000_000 == 0).all()
        return microseconds / 1_000_000 if has_fraction else microseconds // 1_000_000
    return _nulls(column, pl.Int64)


def _nulls(column: pl.Series, dtype: type[pl.DataType]) -> pl.Series:
    """Return a column of nulls of the same name and length."""
    return pl.repeat(None, len(column), dtype=dtype, eager=True).alias(column.name)


def _finite(column: pl.Series) -> pl.Series:
    """Return floats with nulls for NaN, infinities and values beyond 64-bit integers."""
    return column.set(~(column.abs() < MAX_SECONDS).fill_null(False), None)


def _datetimes(column: pl.Series) -> pl.Series:
    """Return ISO 8601 text as UTC datetimes, null where it is not ISO 8601."""
    parts = pl.col(column.name).str.extract_groups(DATE)
    day, minute, second, fraction, zone = (parts.struct.field(str(n)) for n in range(1, 6))
    full = pl.concat_str(
        day,
        pl.lit("T"),
        minute.fill_null("00:00"),
        second.fill_null(":00"),
        fraction.fill_null(".0"),
        zone.replace("Z", "+00:00").fill_null("+00:00"),
    )
    parsed = full.str.to_datetime("%Y-%m-%dT%H:%M:%S%.f%#z", time_unit="us", strict=False)
    return column.to_frame().select(parsed.alias(column.name))[column.name]


@dataclass(frozen=True)
class InteractionLog:
    """Interactions with users and items as numbers.

    Attributes:
        users: (interactions,) row number in `user_ids`.
        items: (interactions,) row number in `item_table`.
        times: (interactions,) Int64 or Float64.
        user_ids: ids of the users.
        item_table: item_id, domain, title, image, domain by domain.
        item_domains: (items,) index in `domains`.
        domains: names of the domains.
    """

    users: Int32
    items: Int32
    times: npt.NDArray[Any]
    user_ids: pl.Series
    item_table: pl.DataFrame
    item_domains: Int32
    domains: list[str]

    def select(self, rows: Bool | Int64) -> InteractionLog:
        """Return the log with the interactions that a mask or row numbers select, in that order."""
        return replace(self, users=self.users[rows], items=self.items[rows], times=self.times[rows])


def number_ids(interactions: Table, items: Table | None, domains: list[str] | None) -> InteractionLog:
    """Number users by id and items by domain and id, so that the order of the rows has no influence.

    Args:
        interactions: the interactions.
        items: the items; None uses those of the interactions.
        domains: names of the domains to keep, in the order of the catalog; None keeps all, sorted by name.

    Raises:
        InputError: an item is unknown, listed twice, in two domains or in none.
        HafvtError: a domain of `domains` does not exist or has no interactions.
    """
    table = _item_table(interactions, items)
    all_domains = table["domain"].unique().sort().to_list()
    names = all_domains if domains is None else list(dict.fromkeys(domains))
    unknown = [name for name in names if name not in all_domains]
    if unknown or not names:
        problem = f"no item is of domain {unknown[0]!r}" if unknown else "the list of domains is empty"
        raise HafvtError(f"--domains: {problem}: choose from {', '.join(all_domains)}")

    # All domains are numbered first: an item of a domain that is not kept is not an unknown item.
    all_domains = names + [name for name in all_domains if name not in names]
    table = table.with_columns(pl.col("domain").cast(pl.Enum(all_domains))).sort("domain", "item_id")
    item_domains = _codes(table["domain"])
    item_codes = _item_codes(interactions, table)
    _check_domains(interactions, item_codes, item_domains, all_domains)

    user_ids = interactions.frame["user_id"].unique().sort()
    user_codes = _codes(interactions.frame["user_id"].cast(pl.Enum(user_ids)))
    times = interactions.frame["timestamp"].to_numpy()
    if len(names) < len(all_domains):
        is_kept = item_domains[item_codes] < len(names)
        user_codes, item_codes, times = user_codes[is_kept], item_codes[is_kept], times[is_kept]
        table = table.filter(item_domains < len(names))
        item_domains = item_domains[: len(table)]
    counts = np.bincount(item_domains[item_codes], minlength=len(names))
    if not counts.all():
        empty = names[int(counts.argmin())]
        raise HafvtError(
            f"domain {empty!r} has items but no interactions: name the domains to keep with --domains"
        )
    table = table.with_columns(pl.col("domain").cast(pl.String))
    return InteractionLog(user_codes, item_codes, times, user_ids, table, item_domains, names)


def number_ids_in_order(interactions: pl.DataFrame, items: pl.DataFrame) -> InteractionLog:
    """Number users in the order of their interactions, and items in the order of their table.

    Args:
        interactions: user_id, item_id, timestamp.
        items: item_id, domain and other columns; the items of a domain are adjacent.

    Raises:
        InputError: an item is unknown or listed twice.
    """
    user_ids = interactions["user_id"].unique(maintain_order=True)
    domains = items["domain"].unique(maintain_order=True)
    listed, table = (Table(frame, {}, Origin(None, "frame")) for frame in (items, interactions))
    return InteractionLog(
        users=_codes(interactions["user_id"].cast(pl.Enum(user_ids))),
        items=_item_codes(table, _distinct_items(listed)),
        times=interactions["timestamp"].to_numpy(),
        user_ids=user_ids,
        item_table=items,
        item_domains=_codes(items["domain"].cast(pl.Enum(domains))),
        domains=domains.to_list(),
    )


def _codes(column: pl.Series) -> Int32:
    """Return the numbers of an Enum column."""
    return column.to_physical().cast(pl.Int32).to_numpy()


def _item_table(interactions: Table, items: Table | None) -> pl.DataFrame:
    """Return item_id, domain, title, image, one row per item in no particular order."""
    table = _distinct_items(items) if items else interactions.frame.select("item_id").unique()
    if "domain" not in table.columns and "domain" in interactions.frame.columns:
        _check_one_domain(interactions)
        pairs = interactions.frame.select("item_id", "domain").unique()
        table = table.join(pairs, on="item_id", how="left", maintain_order="left")
        has_no_domain = table["domain"].is_null()
        if items and has_no_domain.any():
            problem = "this item has no interaction, which could give its domain"
            remedy = "Remove it, or give the items a column of domains"
            raise items.error(has_no_domain, "item_id", problem, remedy)
    absent = [name for name in CONTENT_COLUMNS if name not in table.columns]
    table = table.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
    if "domain" not in table.columns:
        table = table.with_columns(pl.lit(DEFAULT_DOMAIN).alias("domain"))
    return table.select(ITEM_COLUMNS)


def _distinct_items(items: Table) -> pl.DataFrame:
    """Return the items; raise InputError if one is listed twice."""
    is_repeated = ~items.frame["item_id"].is_first_distinct()
    if is_repeated.any():
        if "domain" in items.frame.columns:
            _check_one_domain(items)
        raise items.error(is_repeated, "item_id", "this item is listed before", "Keep one row per item")
    return items.frame


def _check_one_domain(table: Table) -> None:
    """Raise InputError if two rows give an item different domains."""
    pairs = table.frame.select("item_id", "domain").unique()
    if pairs["item_id"].is_duplicated().any():
        differs = pl.col("domain") != pl.col("domain").first().over("item_id")
        remedy = "Give the item of each domain an id of its own"
        is_wrong = table.frame.select(differs.alias("differs"))["differs"]
        raise table.error(is_wrong, "item_id", "this item is in two domains", remedy)


def _item_codes(interactions: Table, table: pl.DataFrame) -> Int32:
    """Return the row number in `table` of each interaction's item."""
    codes = interactions.frame["item_id"].cast(pl.Enum(table["item_id"]), strict=False)
    if count := codes.null_count():
        problem = f"unknown item; {count:,} of {len(codes):,} interactions have items that the table lacks"
        remedy = "Add the items or remove their interactions"
        raise interactions.error(codes.is_null(), "item_id", problem, remedy)
    return _codes(codes)


def _check_domains(interactions: Table, items: Int32, item_domains: Int32, domains: list[str]) -> None:
    """Raise InputError if an interaction names another domain than its item has."""
    if "domain" not in interactions.frame.columns:
        return
    named = interactions.frame["domain"].cast(pl.Enum(domains), strict=False)
    is_wrong = named.is_null().to_numpy() | (_codes(named.fill_null(domains[0])) != item_domains[items])
    if is_wrong.any():
        expected = domains[item_domains[items[is_wrong.argmax()]]]
        problem, remedy = f"the items table says {expected!r}", "Make the two tables agree"
        raise interactions.error(pl.Series(is_wrong), "domain", problem, remedy)
