"""The items as people know them: by their own ids, titles and pictures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from hafvt.data.dataset import Domain, Int64
from hafvt.errors import HafvtError


@dataclass(frozen=True)
class Item:
    """An item.

    Attributes:
        item_id: its own id.
        domain: name of its domain.
        title: None where it has none.
        image: path of its picture below `ItemCatalog.root` of its number, None where it has none.
        train_count: its number of training interactions; 0 for one added later.
    """

    item_id: str
    domain: str
    title: str | None
    image: str | None
    train_count: int


@dataclass(frozen=True)
class ItemCatalog:
    """All items of a catalog, in its order.

    Attributes:
        table: item_id, domain, title, image.
        domains: contiguous slices.
        train_counts: (items,) training interactions of each.
        image_root: the folder that relative picture paths start from.
        roots: another such folder, by the number of the item: of items that were added.
    """

    table: pl.DataFrame
    domains: tuple[Domain, ...]
    train_counts: Int64
    image_root: Path | None
    roots: dict[int, Path] = field(default_factory=dict)

    @cached_property
    def numbers(self) -> dict[str, int]:
        """The number of each item by its own id."""
        return {item_id: number for number, item_id in enumerate(self.table["item_id"].to_list())}

    @cached_property
    def columns(self) -> tuple[pl.Series, ...]:
        """What `item` tells: reading a value of a series is a hundred times quicker than a row."""
        return tuple(self.table[name] for name in ("item_id", "domain", "title", "image"))

    def item(self, number: int) -> Item:
        """Returns the item with a number."""
        item_id, domain, title, image = (column[int(number)] for column in self.columns)
        return Item(item_id, domain, title, image, int(self.train_counts[number]))

    def root(self, number: int) -> Path | None:
        """Returns the folder that an item's picture path starts from."""
        return self.roots.get(number, self.image_root)

    def find(self, item_ids: Iterable[str]) -> tuple[Int64, list[str]]:
        """Returns the numbers of the known ids, in their order, and the ids that are unknown."""
        numbers, unknown = [], []
        for item_id in item_ids:
            number = self.numbers.get(item_id)
            if number is None:
                unknown.append(item_id)
            else:
                numbers.append(number)
        return np.array(numbers, dtype=np.int64), unknown

    def domain_number(self, name: str) -> int:
        """Returns the number of a domain.

        Raises:
            HafvtError: there is no such domain.
        """
        for number, domain in enumerate(self.domains):
            if domain.name == name:
                return number
        raise HafvtError(f"no domain {name!r}: choose one of {', '.join(d.name for d in self.domains)}")
