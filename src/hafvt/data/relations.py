"""Directed links between items, from training histories and from the item table."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hafvt.data.attributes import RELATION_COLUMNS
from hafvt.data.dataset import Dataset, Int64
from hafvt.files import explained_read_errors

TRANSITION = "transition"
WITHIN_DOMAIN = "transition-within"
RELATIONS = "relations.npz"
"""File with the links in the catalog of a run."""


def read_relations(data: Dataset) -> dict[str, Tensor]:
    """Return directed links between items, (n, 2) int64 each, by name of the relation.

    "transition" links each training item to the next one of its user, as often as it occurs.
    "transition-within" does the same in the histories of each domain alone. Each column of
    `RELATION_COLUMNS` that the item table has links an item to the listed items of the catalog. Validation
    and test targets contribute no link.
    """
    if data.is_catalog:
        path = data.folder / RELATIONS
        with explained_read_errors(path, "train the model again"), np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(links.astype(np.int64)) for name, links in file.items()}
    positions = data.train_positions()
    users, items = data.users_at(positions), np.asarray(data.items)[positions].astype(np.int64)
    domains = data.domains_of(items)
    by_domain = np.lexsort((np.arange(len(items)), domains, users))
    return {
        TRANSITION: _transitions(items, users),
        WITHIN_DOMAIN: _transitions(items[by_domain], (users * len(data.domains) + domains)[by_domain]),
        **{name: _listed_links(data, name) for name in RELATION_COLUMNS if _has_lists(data, name)},
    }


def _transitions(items: Int64, groups: Int64) -> Tensor:
    """Return the pairs of adjacent items of the same group, (n, 2)."""
    same_group = groups[1:] == groups[:-1]
    return torch.from_numpy(np.stack([items[:-1][same_group], items[1:][same_group]], axis=1))


def _has_lists(data: Dataset, name: str) -> bool:
    """Return whether the item table has a column of lists of ids with at least one list."""
    table = data.item_table
    return name in table.columns and table.schema[name] == pl.List(pl.String) and table[name].count() > 0


def _listed_links(data: Dataset, name: str) -> Tensor:
    """Return the links of a column of lists of item ids, (n, 2)."""
    table = data.item_table.with_row_index("source").select("source", "item_id", name)
    numbers = table.select("item_id", target="source")
    links = table.select("source", item_id=name).explode("item_id").join(numbers, on="item_id", how="inner")
    links = links.filter(pl.col("source") != pl.col("target")).sort("source", "target")
    return torch.from_numpy(links.select("source", "target").cast(pl.Int64).to_numpy().copy())
