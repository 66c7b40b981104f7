"""`ItemCatalog`: item ids, titles, pictures and training counts, looked up by item index."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from hafvt.data.attributes import attribute_names
from hafvt.data.dataset import Domain, Int64
from hafvt.errors import HafvtError


@dataclass(frozen=True)
class Item:
    """An item of the catalog.

    Attributes:
        item_id: the user's own id of the item.
        domain: name of its domain.
        title: its title; None without one.
        image: path of its picture, relative to `image_folder`; None without one.
        train_count: its number of training interactions; 0 for a cold item.
        image_folder: the folder that the path of its picture starts from.
        attributes: its values in the other columns of the items table, without unknown ones.
    """

    item_id: str
    domain: str
    title: str | None
    image: str | None
    train_count: int
    image_folder: Path | None = field(default=None, repr=False, compare=False)
    attributes: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class ItemIndices(NamedTuple):
    """The items of a list of ids, as indices into the catalog."""

    indices: Int64
    """Of the known ids, in the order of the list."""
    unknown_ids: tuple[str, ...]
    """The ids that are not in the catalog."""


@dataclass(frozen=True)
class ItemCatalog:
    """All items that a model recommends. The index of an item is its row number in `table`.

    Attributes:
        table: one row per item, with the columns item_id, domain, title, image and attributes.
        domains: contiguous slices of the rows.
        train_counts: (items,) training interactions of each item.
        image_root: the folder that relative picture paths start from; None without pictures.
        added_image_roots: by item index, the picture folder of items that were added after training.
    """

    table: pl.DataFrame
    domains: tuple[Domain, ...]
    train_counts: Int64
    image_root: Path | None
    added_image_roots: dict[int, Path] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of items over all domains."""
        return len(self.table)

    @cached_property
    def _index_by_id(self) -> dict[str, int]:
        return {item_id: index for index, item_id in enumerate(self.table["item_id"].to_list())}

    @cached_property
    def _columns(self) -> tuple[pl.Series, ...]:
        """The fields of `Item`: reading single values from series is 100 times faster than reading rows."""
        return tuple(self.table[name] for name in ("item_id", "domain", "title", "image"))

    @cached_property
    def _attributes(self) -> tuple[pl.Series, ...]:
        return tuple(self.table[name] for name in attribute_names(self.table))

    def item(self, index: int) -> Item:
        """Return the item with an index."""
        item_id, domain, title, image = (column[int(index)] for column in self._columns)
        train_count = int(self.train_counts[index])
        values = ((column.name, column[int(index)]) for column in self._attributes)
        attributes = {
            name: value.to_list() if isinstance(value, pl.Series) else value
            for name, value in values
            if value is not None
        }
        return Item(item_id, domain, title, image, train_count, self.image_folder(int(index)), attributes)

    def image_folder(self, index: int) -> Path | None:
        """Return the folder that the picture path of an item starts from."""
        return self.added_image_roots.get(index, self.image_root)

    def index_of(self, item_id: str) -> int | None:
        """Return the index of an item; None if the catalog does not have its id."""
        return self._index_by_id.get(item_id)

    def indices(self, item_ids: Iterable[str]) -> ItemIndices:
        """Return the indices of item ids, in their order."""
        by_id = [(item_id, self._index_by_id.get(item_id)) for item_id in item_ids]
        indices = np.array([index for _, index in by_id if index is not None], dtype=np.int64)
        return ItemIndices(indices, tuple(item_id for item_id, index in by_id if index is None))

    def domain_index(self, name: str) -> int:
        """Return the position of a domain in `domains`.

        Raises:
            HafvtError: there is no such domain.
        """
        names = [domain.name for domain in self.domains]
        if name not in names:
            raise HafvtError(f"no domain {name!r}: choose one of {', '.join(names)}")
        return names.index(name)
