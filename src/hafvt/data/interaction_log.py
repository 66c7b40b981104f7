"""Users and items of tables as numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from shlex import quote
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.attributes import CONTENT_COLUMNS, ITEM_COLUMNS
from hafvt.data.dataset import Bool, Float32, Int32, Int64
from hafvt.data.ids import visible_text
from hafvt.data.order import sort_histories
from hafvt.data.origin import Origin
from hafvt.data.schema import Table
from hafvt.errors import HafvtError, warn

CHUNK_IDS = 2**16  # ids that are compared with their visible text at a time
DEFAULT_DOMAIN = "all"  # name of the only domain if no table has a column of domains


@dataclass(frozen=True)
class InteractionLog:
    """Interactions with users and items as numbers.

    Attributes:
        users: (interactions,) row number in `user_ids`.
        items: (interactions,) row number in `item_table`.
        times: (interactions,) Int64 or Float64, in `1 / ticks_per_second` seconds or the unit of the input.
        user_ids: ids of the users.
        item_table: item_id, domain, title, image and attributes, domain by domain.
        item_domains: (items,) index in `domains`.
        domains: names of the domains.
        weights: (interactions,) weights as training targets; None if all have the same.
    """

    users: Int32
    items: Int32
    times: npt.NDArray[Any]
    user_ids: pl.Series
    item_table: pl.DataFrame
    item_domains: Int32
    domains: list[str]
    ticks_per_second: int = 1
    weights: Float32 | None = None

    def select(self, rows: Bool | Int64) -> InteractionLog:
        """Return the log with the interactions that a mask or row numbers select, in that order."""
        weights = None if self.weights is None else self.weights[rows]
        users, items, times = self.users[rows], self.items[rows], self.times[rows]
        return replace(self, users=users, items=items, times=times, weights=weights)


def number_ids(interactions: Table, items: Table | None, domains: list[str] | None) -> InteractionLog:
    """Number users by id and items by domain and id, so that the order of the rows has no influence.

    Args:
        interactions: a checked table.
        items: a checked table; None uses the items of the interactions.
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
    _warn_of_lookalikes({"user_id": user_ids, "item_id": table["item_id"], "domain": pl.Series(all_domains)})
    user_codes = _codes(interactions.frame["user_id"].cast(pl.Enum(user_ids)))
    times = interactions.frame["timestamp"].to_numpy()
    weights = interactions.frame["weight"].to_numpy() if "weight" in interactions.names else None
    if len(names) < len(all_domains):
        is_kept = item_domains[item_codes] < len(names)
        user_codes, item_codes, times = user_codes[is_kept], item_codes[is_kept], times[is_kept]
        weights = None if weights is None else weights[is_kept]
        table = table.filter(item_domains < len(names))
        item_domains = item_domains[: len(table)]
    counts = np.bincount(item_domains[item_codes], minlength=len(names))
    if not counts.all():
        empty = names[int(counts.argmin())]
        others = " ".join(quote(name) for name, count in zip(names, counts, strict=True) if count)
        raise HafvtError(
            f"domain {empty!r} has items but no interactions: keep the others by --domains {others}"
        )
    table = table.with_columns(pl.col("domain").cast(pl.String))
    ticks = interactions.ticks_per_second
    return InteractionLog(user_codes, item_codes, times, user_ids, table, item_domains, names, ticks, weights)


def _warn_of_lookalikes(columns: dict[str, pl.Series]) -> None:
    """Warn of distinct ids that only differ by what cannot be seen; `columns` has distinct ids by name."""
    for name, ids in columns.items():
        parts = (ids[start : start + CHUNK_IDS] for start in range(0, len(ids), CHUNK_IDS))
        if not any((visible_text(part) != part).any() for part in parts):
            continue  # each id is its own visible text, so no two look alike
        visible = visible_text(ids)
        if (is_repeated := visible.is_duplicated()).any():
            examples = ids.filter(visible == visible.filter(is_repeated)[0]).sort()
            warn(
                f"{name}: {is_repeated.sum():,} values only differ by outer blanks or invisible characters, "
                f"such as {examples[0][:40]!r} and {examples[1][:40]!r}: use --strip to make them one"
            )


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
    """Return item_id, domain, title, image and attributes, one row per item in no particular order."""
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
    return table.select(*ITEM_COLUMNS, pl.exclude(ITEM_COLUMNS))


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
        remedy = "Add the items, or leave out their interactions by --unknown-items drop"
        unknown = visible_text(interactions.frame["item_id"].filter(codes.is_null()).unique())
        if unknown.is_in(visible_text(table["item_id"]).implode()).any():
            remedy = "Some only differ by outer blanks or invisible characters: use --strip"
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


def shuffle_ids(log: InteractionLog, seed: int) -> InteractionLog:
    """Number the users, and the items of each domain, in a random order."""
    random = np.random.default_rng([seed, 0])
    sizes = np.bincount(log.item_domains, minlength=len(log.domains))
    starts = sizes.cumsum() - sizes
    item_order = np.concatenate(
        [start + random.permutation(size) for start, size in zip(starts, sizes, strict=True)]
    )
    user_order = np.random.default_rng([seed, 1]).permutation(len(log.user_ids))
    return replace(
        log,
        users=np.argsort(user_order).astype(np.int32)[log.users],
        items=np.argsort(item_order).astype(np.int32)[log.items],
        user_ids=log.user_ids.gather(user_order),
        item_table=log.item_table[item_order],
    )


def warn_of_time_scales(log: InteractionLog) -> None:
    """Warn if the times of two domains differ by about 10**3, 10**6 or 10**9, as those of two units do."""
    domains = log.item_domains[log.items]  # of each interaction
    medians = [np.median(log.times[domains == n]) / log.ticks_per_second for n in range(len(log.domains))]
    early, late = int(np.argmin(medians)), int(np.argmax(medians))
    ratio = medians[late] / medians[early] if medians[early] > 0 else 1.0
    if any(0.5 < ratio / factor < 2 for factor in (1e3, 1e6, 1e9)):
        warn(
            f"the times of domain {log.domains[late]!r} are about {ratio:,.0f} times those of domain "
            f"{log.domains[early]!r}, which puts all of one before the other: give them in one unit"
        )


def sort_log(log: InteractionLog, tie_order: Literal["random", "input"], seed: int) -> InteractionLog:
    """Return the log sorted by user and time, with ties in the order `tie_order`."""
    random = np.random.default_rng([seed, 2])
    order = sort_histories(
        log.users, log.items, log.times, tie_order=tie_order, random=random, weights=log.weights
    )
    return log.select(order)
