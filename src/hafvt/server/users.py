"""Histories of a dataset's users, for the page and `/users`."""

from __future__ import annotations

import os

import numpy as np
from starlette.exceptions import HTTPException

from hafvt.data.dataset import ARRAYS, Dataset
from hafvt.inference.catalog import Item, ItemCatalog


class UserHistories:
    """Reads the histories of a dataset's users as items of a catalog; items that it lacks are left out.

    Histories are read from the open file: with a memory map, the process would die if the file is cut short.
    """

    def __init__(self, dataset: Dataset, catalog: ItemCatalog) -> None:
        self.catalog, self.user_ids = catalog, dataset.user_ids
        self._by_id = self.user_ids.arg_sort()  # found by bisection: a dictionary would take more memory
        self._sorted_ids = self.user_ids.gather(self._by_id)
        self._item_ids, self._offsets = dataset.item_table["item_id"], np.array(dataset.offsets)
        self._file = (dataset.folder / "items.npy").open("rb")
        np.lib.format.read_magic(self._file)
        np.lib.format.read_array_header_1_0(self._file)
        self._first_byte = self._file.tell()

    def __len__(self) -> int:
        """The number of users."""
        return len(self.user_ids)

    def index_of(self, user_id: str) -> int | None:
        """Return the index of a user, None where there is no such user."""
        place = int(self._sorted_ids.search_sorted(user_id))
        is_match = place < len(self._sorted_ids) and self._sorted_ids[place] == user_id
        return int(self._by_id[place]) if is_match else None

    def last_items(self, user: int, limit: int) -> list[Item]:
        """Return the last items, at most `limit`, of the history of the user with an index, oldest first.

        Raises:
            HTTPException: see `last_ids`.
        """
        known, _ = self.catalog.indices(self.last_ids(user, limit))
        return [self.catalog.item(item) for item in known.tolist()]

    def last_ids(self, user: int, limit: int) -> list[str]:
        """Return the ids of the last items of a history, also those that the catalog lacks, oldest first.

        Raises:
            HTTPException: the file of histories was cut short or overwritten.
        """
        stop = int(self._offsets[user + 1])
        start = max(int(self._offsets[user]), stop - limit)
        dtype = np.dtype(ARRAYS["items"])
        first_byte, num_bytes = self._first_byte + start * dtype.itemsize, (stop - start) * dtype.itemsize
        data = os.pread(self._file.fileno(), num_bytes, first_byte)
        items = np.frombuffer(data, dtype) if len(data) == num_bytes else np.array([-1])
        if len(items) and not 0 <= items.min() <= items.max() < len(self._item_ids):
            message = (
                "the dataset was damaged after the model was loaded: restore it, then restart the server"
            )
            raise HTTPException(503, message)
        ids: list[str] = self._item_ids.gather(items).to_list()
        return ids
