"""Checked tables -> integers: every id becomes a number, every item gets its domain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Int32
from hafvt.data.schema import Table
from hafvt.errors import HafvtError

ONLY_DOMAIN = "all"  # the name of the domain where no table names any


@dataclass(frozen=True)
class InteractionLog:
    """Interactions in numbers.

    The numbers depend on which users and items there are, not on the order of their rows.

    Attributes:
        users: (interactions,) row of `user_ids`.
        items: (interactions,) row of `item_table`.
        times: (interactions,) Int64 or Float64.
        user_ids: sorted.
        item_table: item_id, domain, title, image; sorted by domain, in the order of `domains`, and item_id.
        item_domains: (items,) row of `domains`.
        domains: their names.
    """

    users: Int32
    items: Int32
    times: npt.NDArray[Any]
    user_ids: pl.Series
    item_table: pl.DataFrame
    item_domains: Int32
    domains: list[str]


def code(log: Table, items: Table | None, domains: list[str] | None) -> InteractionLog:
    """Turns tables into numbers.

    Args:
        log: the interactions.
        items: the items, or None: those of the interactions.
        domains: names of the domains to keep, in the order of the catalog; None keeps all, sorted by name.

    Raises:
        InputError: an item is unknown, listed twice, in two domains or in none.
        HafvtError: a domain of `domains` does not exist or has no interactions.
    """
    table = _item_table(log, items)
    found = table["domain"].unique().sort().to_list()
    names = found if domains is None else list(dict.fromkeys(domains))
    unknown = [name for name in names if name not in found]
    if unknown or not names:
        wrong = f"no item is of domain {unknown[0]!r}" if unknown else "no domain given"
        raise HafvtError(f"--domains: {wrong}: choose from {', '.join(found)}")

    # All domains are coded first: an item of a domain that is not kept is not an unknown item.
    everything = names + [name for name in found if name not in names]
    table = table.with_columns(pl.col("domain").cast(pl.Enum(everything))).sort("domain", "item_id")
    item_domains = _codes(table["domain"])
    item_codes = _item_codes(log, table)
    _check_domains(log, item_codes, item_domains, everything)

    user_ids = log.frame["user_id"].unique().sort()
    user_codes = _codes(log.frame["user_id"].cast(pl.Enum(user_ids)))
    times = log.frame["timestamp"].to_numpy()
    if len(names) < len(everything):
        kept = item_domains[item_codes] < len(names)
        user_codes, item_codes, times = user_codes[kept], item_codes[kept], times[kept]
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


def _codes(column: pl.Series) -> Int32:
    """Returns the numbers of an Enum column."""
    return column.to_physical().cast(pl.Int32).to_numpy()


def _item_table(log: Table, items: Table | None) -> pl.DataFrame:
    """Returns item_id, domain, title, image, one row per item in no particular order."""
    table = _listed_items(items) if items else log.frame.select("item_id").unique()
    if "domain" not in table.columns and "domain" in log.frame.columns:
        _check_one_domain(log)
        pairs = log.frame.select("item_id", "domain").unique()
        table = table.join(pairs, on="item_id", how="left", maintain_order="left")
        missing = table["domain"].is_null()
        if items and missing.any():
            remedy = "Remove it, or give the items a column of domains"
            raise items.error(missing, "item_id", "no interaction tells the domain of this item", remedy)
    absent = [name for name in ("title", "image") if name not in table.columns]
    table = table.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
    if "domain" not in table.columns:
        table = table.with_columns(pl.lit(ONLY_DOMAIN).alias("domain"))
    return table.select("item_id", "domain", "title", "image")


def _listed_items(items: Table) -> pl.DataFrame:
    """Returns the items, each listed once."""
    again = ~items.frame["item_id"].is_first_distinct()
    if again.any():
        if "domain" in items.frame.columns:
            _check_one_domain(items)
        raise items.error(again, "item_id", "this item is listed before", "Keep one row per item")
    return items.frame


def _check_one_domain(table: Table) -> None:
    """Raises InputError where a row puts an item into another domain than a row before."""
    pairs = table.frame.select("item_id", "domain").unique()
    if pairs["item_id"].is_duplicated().any():
        other = pl.col("domain") != pl.col("domain").first().over("item_id")
        remedy = "Give the item of each domain an id of its own"
        torn = table.frame.select(other.alias("torn"))["torn"]
        raise table.error(torn, "item_id", "this item is in two domains", remedy)


def _item_codes(log: Table, table: pl.DataFrame) -> Int32:
    """Returns the row of `table` of each interaction's item."""
    codes = log.frame["item_id"].cast(pl.Enum(table["item_id"]), strict=False)
    if count := codes.null_count():
        problem = f"unknown item; {count:,} of {len(codes):,} interactions have items that the table lacks"
        raise log.error(codes.is_null(), "item_id", problem, "Add the items or remove their interactions")
    return _codes(codes)


def _check_domains(log: Table, items: Int32, item_domains: Int32, domains: list[str]) -> None:
    """Raises InputError where an interaction names another domain than its item has."""
    if "domain" not in log.frame.columns:
        return
    said = log.frame["domain"].cast(pl.Enum(domains), strict=False)
    wrong = said.is_null().to_numpy() | (_codes(said.fill_null(domains[0])) != item_domains[items])
    if wrong.any():
        right = domains[item_domains[items[wrong.argmax()]]]
        problem = f"the items table says {right!r}"
        raise log.error(pl.Series(wrong), "domain", problem, "Make the two tables agree")
