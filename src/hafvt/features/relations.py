"""Which items belong together: links between items, from training histories and from the items' table."""

from __future__ import annotations

import numpy as np
import polars as pl
import torch
from torch import Tensor

from hafvt.data.dataset import Dataset, Int64
from hafvt.data.sources.amazon_lines import RELATED

TRANSITION = "transition"
WITHIN = "transition-within"


def read_relations(data: Dataset) -> dict[str, Tensor]:
    """Returns directed links between items, (n, 2) int64 each, by name.

    "transition": each training item and the next one of its user, as often as it happens;
    "transition-within": likewise in the histories of each domain alone; and, where the items' table has such
    lists, also_bought and its kin: links to other items of the catalogue. Nothing of a target enters.
    """
    starts, ends = np.asarray(data.offsets[:-1]), np.asarray(data.train_ends)
    owner = np.repeat(np.arange(data.users), ends)
    slot = np.arange(len(owner)) - np.repeat(ends.cumsum() - ends, ends)
    items = np.asarray(data.items)[np.repeat(starts, ends) + slot].astype(np.int64)
    domain = np.searchsorted([d.start for d in data.domains], items, side="right")
    within = np.lexsort((np.arange(len(items)), domain, owner))
    return {
        TRANSITION: _steps(items, owner),
        WITHIN: _steps(items[within], (owner * (len(data.domains) + 1) + domain)[within]),
        **{name: _listed(data, name) for name in RELATED if _has(data, name)},
    }


def _steps(items: Int64, group: Int64) -> Tensor:
    """Returns neighbouring items of the same group."""
    same = group[1:] == group[:-1]
    return torch.from_numpy(np.stack([items[:-1][same], items[1:][same]], axis=1))


def _has(data: Dataset, name: str) -> bool:
    table = data.item_table
    return name in table.columns and table.schema[name] == pl.List(pl.String) and table[name].count() > 0


def _listed(data: Dataset, name: str) -> Tensor:
    """Returns the links of a column of lists of item ids."""
    table = data.item_table.with_row_index("source").select("source", "item_id", name)
    numbers = table.select("item_id", target="source")
    links = table.select("source", item_id=name).explode("item_id").join(numbers, on="item_id", how="inner")
    links = links.filter(pl.col("source") != pl.col("target")).sort("source", "target")
    return torch.from_numpy(links.select("source", "target").cast(pl.Int64).to_numpy().copy())
