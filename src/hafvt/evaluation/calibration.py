"""Calibration of recommended lists: do they have the attribute shares of the histories?"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from hafvt.data.attribute_values import ItemAttribute, read_attribute
from hafvt.data.attributes import attribute_names
from hafvt.data.dataset import Dataset, Domain, Int64

MAX_VALUES = 1000
"""An attribute with more distinct values, such as a description, has no calibration."""
SMOOTHING = 0.01  # share of the history in the list's distribution, so that the divergence is finite
LISTS_PER_CHUNK = 1024  # lists that are in memory at a time with what belongs to them


def item_attributes(data: Dataset) -> list[ItemAttribute]:
    """Return the attributes in a dataset's item table that are text, or lists of text, with few values.

    A text such as "Drama|Comedy" is two values.
    """
    return list(_read_attributes(data.item_table.select(attribute_names(data.item_table))))


def _read_attributes(table: pl.DataFrame) -> Iterator[ItemAttribute]:
    for column in table.select(pl.col(pl.String, pl.List(pl.String))).iter_columns():
        attribute = read_attribute(column)
        if 2 <= attribute.num_values <= MAX_VALUES:
            yield attribute


def mean_divergence(
    attribute: ItemAttribute, data: Dataset, positions: Int64, lists: Int64, domain: Domain
) -> float | None:
    """Return the mean Kullback-Leibler divergence of lists from histories in attribute shares, in nats.

    This is the calibration metric of Steck (RecSys 2018): sum over values of p log(p / q'), where p are the
    shares in the history, q those in the list, and q' = 0.99 q + 0.01 p. 0 means equal shares. Histories are
    the items of the domain before the target. Targets whose history or list has no value are left out.

    Args:
        attribute: of the items.
        data: holds the histories.
        positions: (n,) of the targets.
        lists: (n, k) item indices, -1 for padding.
        domain: of the targets.
    """
    divergences = []
    for start in range(0, len(lists), LISTS_PER_CHUNK):
        part, part_positions = (
            lists[start : start + LISTS_PER_CHUNK],
            positions[start : start + LISTS_PER_CHUNK],
        )
        is_listed = part >= 0
        listed = attribute.shares(np.nonzero(is_listed)[0], part[is_listed], len(part))
        rows, items = domain_histories(data, part_positions, domain)
        chosen = attribute.shares(rows, items, len(part))
        is_defined = (listed.sum(1) > 0) & (chosen.sum(1) > 0)
        p, q = chosen[is_defined], listed[is_defined]
        smoothed = (1 - SMOOTHING) * q + SMOOTHING * p
        with np.errstate(divide="ignore", invalid="ignore"):
            terms = np.where(p > 0, p * np.log(p / smoothed), 0.0)
        divergences.append(terms.sum(1))
    values = np.concatenate(divergences)
    return float(values.mean()) if len(values) else None


def domain_histories(data: Dataset, positions: Int64, domain: Domain) -> tuple[Int64, Int64]:
    """Return the items of a domain before each target: row numbers of the targets (m,) and items (m,)."""
    starts = np.asarray(data.offsets)[data.users_at(positions)]
    lengths = positions - starts
    rows = np.repeat(np.arange(len(positions)), lengths)
    places = np.arange(len(rows)) + np.repeat(positions - lengths.cumsum(), lengths)
    items = np.asarray(data.items)[places].astype(np.int64)
    is_in_domain = (items >= domain.start) & (items < domain.stop)
    return rows[is_in_domain], items[is_in_domain]
