"""Which items belong together: links between items, from training histories and from the items' table."""

from __future__ import annotations

from collections.abc import Mapping

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
    lists, also_bought and its kin: links to other items of the catalog. Nothing of a target enters.
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
    """Returns neighboring items of the same group."""
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


def link_tables(relations: Mapping[str, Tensor], counts: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Returns the `count` most frequent links of each item in each relation.

    Args:
        relations: (n, 2) directed edges by name; one that is given twice weighs more.
        counts: (items,) how often each item was met, which breaks ties; what is still tied across the limit
            is left out, as an item's number must not matter.
        count: K.

    Returns:
        Links (items, R, K), -1 where there are fewer; which of them a single training step made, same shape.
    """
    items = len(counts)
    links = torch.full((items, len(relations), count), -1)
    single = torch.zeros(links.shape, dtype=torch.bool)
    for r, (name, edges) in enumerate(relations.items()):
        edges = edges[edges[:, 0] != edges[:, 1]]
        pairs, times = torch.unique(edges[:, 0] * items + edges[:, 1], return_counts=True)
        source, target = pairs // items, pairs % items
        order = torch.from_numpy(np.lexsort((-counts[target].numpy(), -times.numpy(), source.numpy())))
        source, target, times = source[order], target[order], times[order]
        first = torch.searchsorted(source, source)
        rank = torch.arange(len(source)) - first
        tied = torch.stack([source, times, counts[target].long()])
        _, group, sizes = torch.unique_consecutive(tied, dim=1, return_inverse=True, return_counts=True)
        keep = sizes.cumsum(0)[group] - first <= count  # the last of its group is within the limit
        links[source[keep], r, rank[keep]] = target[keep]
        single[source[keep], r, rank[keep]] = (times[keep] == 1) & (name == TRANSITION)
    return links, single


def graph_relations(relations: Mapping[str, Tensor]) -> list[str]:
    """Returns the relations that make the graph: those of the items' table, or else training transitions."""
    listed = [name for name in relations if name not in (TRANSITION, WITHIN)]
    return listed or [name for name in relations if name == TRANSITION]
