"""Histories of a dataset's users, for the page and `/users`."""

from __future__ import annotations

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.inference.catalog import Item, ItemCatalog


class UserHistories:
    """Reads the histories of a dataset's users as items of the catalog.

    Args:
        dataset: its users and their histories.
        catalog: the items of the served model; items that it lacks are left out.
    """

    def __init__(self, dataset: Dataset, catalog: ItemCatalog) -> None:
        self.catalog = catalog
        self.user_ids, self._offsets, self._items = dataset.user_ids, dataset.offsets, dataset.items
        self._item_ids = dataset.item_table["item_id"]

    def __len__(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    def index_of(self, user_id: str) -> int | None:
        """Returns the index of a user, None where there is no such user."""
        matches = (self.user_ids == user_id).arg_true()
        return int(matches[0]) if len(matches) else None

    def last_items(self, user: int, limit: int) -> list[Item]:
        """Returns the last items, at most `limit`, of the history of the user with an index, oldest first."""
        start, stop = self._offsets[user], self._offsets[user + 1]
        items = np.asarray(self._items[max(start, stop - limit) : stop], dtype=np.int64)
        known, _ = self.catalog.indices(self._item_ids.gather(items))
        return [self.catalog.item(item) for item in known.tolist()]
