"""A dataset seen with the items of another catalog, such as that of a model that was trained earlier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl

from hafvt.data.dataset import Bool, Dataset, Domain, Int64


@dataclass(frozen=True, kw_only=True)
class MappedDataset(Dataset):
    """The histories of a dataset in the item indices of a catalog, without interactions with other items.

    Validation and test targets whose item the catalog lacks are at positions after all histories, where their
    item is the first one of their domain. Targets of domains that the catalog lacks are left out.

    Attributes:
        source: the dataset that the histories come from.
        source_positions: (interactions,) the position of each interaction in the arrays of `source`.
        catalog_table: see `item_table`.
        num_left_out: how many targets belong to domains that the catalog lacks.
    """

    source: Dataset = field(repr=False)
    source_positions: Int64 = field(repr=False)
    catalog_table: pl.DataFrame = field(repr=False)
    num_left_out: int = 0

    @property
    def item_table(self) -> pl.DataFrame:
        """One row per item of the catalog."""
        return self.catalog_table

    @property
    def user_ids(self) -> pl.Series:
        """The user ids of the source."""
        return self.source.user_ids

    @property
    def feature_names(self) -> list[str]:
        """The modalities with a vector for each item of the catalog: none after items were added to it."""
        return super().feature_names if self.num_items == self.manifest["domains"][-1]["stop"] else []

    def item_ids_at(self, positions: Int64) -> pl.Series:
        """Return the id of the item at each position, also where the catalog lacks the item."""
        return self.source.item_ids_at(self.source_positions[positions])

    def request_times(self, positions: Int64) -> Int64 | None:
        """Return the time at which each target is to be predicted, see `Dataset.request_times`."""
        return self.source.request_times(self.source_positions[positions])

    def is_known(self, positions: Int64) -> Bool:
        """Return whether the catalog has the item at each position."""
        is_known: Bool = positions < self.offsets[-1]
        return is_known

    def has_history(self, positions: Int64) -> Bool:
        """Return whether an item of the catalog comes before each position in its history."""
        return ~np.isin(positions, self.offsets)


def map_dataset(
    source: Dataset, catalog: Dataset, table: pl.DataFrame, domains: Sequence[Domain], train_counts: Int64
) -> MappedDataset:
    """Return a dataset in the item indices of a catalog, matched by the ids of the items.

    Args:
        source: the dataset with the histories and targets.
        catalog: the dataset of the model, whose rule for items of the history counts.
        table: item_id and others, one row per item of the catalog, with the items that were added to it.
        domains: the domains of the rows.
        train_counts: (items,) training interactions of each row.
    """
    ids = table.select("item_id").with_row_index("row")
    joined = source.item_table.select("item_id").join(ids, on="item_id", how="left", maintain_order="left")
    rows = joined["row"].cast(pl.Int64).fill_null(-1).to_numpy()  # of each item of the source, -1 for none
    names = [domain.name for domain in domains]
    first_rows = np.array(
        [domains[names.index(d.name)].start if d.name in names else -1 for d in source.domains]
    )
    source_items = np.asarray(source.items)
    items, is_target = rows[source_items], np.zeros(len(source_items), dtype=np.bool_)
    is_target[np.concatenate([source.valid, source.test])] = True
    positions = np.flatnonzero(items >= 0)
    missing = np.flatnonzero((items < 0) & is_target)
    missing_rows = first_rows[source.domains_of(source_items[missing])]
    source_positions = np.concatenate([positions, missing[missing_rows >= 0]])
    new_positions = np.full(len(source_items), -1)
    new_positions[source_positions] = np.arange(len(source_positions))
    known_before = np.concatenate([[0], np.cumsum(items >= 0)])  # (interactions + 1,)
    offsets = np.asarray(source.offsets)
    valid, test = (new_positions[np.asarray(part)] for part in (source.valid, source.test))
    return MappedDataset(
        folder=catalog.folder,
        manifest=catalog.manifest,
        domains=tuple(domains),
        items=np.concatenate([items[positions], missing_rows[missing_rows >= 0]]).astype(np.int32),
        times=np.asarray(source.times)[source_positions],
        offsets=known_before[offsets],
        train_lengths=known_before[offsets[:-1] + source.train_lengths] - known_before[offsets[:-1]],
        valid=np.sort(valid[valid >= 0]),
        test=np.sort(test[test >= 0]),
        item_counts=train_counts,
        source=source,
        source_positions=source_positions,
        catalog_table=table,
        num_left_out=int((missing_rows < 0).sum()),
    )
