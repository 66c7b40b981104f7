"""Histories of a dataset's users, for the page and `/users`."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import polars as pl
from starlette.exceptions import HTTPException

from hafvt.data.dataset import ARRAYS, Dataset, Int64
from hafvt.inference.catalog import Item, ItemCatalog


class TestTarget(NamedTuple):
    """An item that a user chose and that the training did not see.

    Attributes:
        item: the item.
        num_before: number of known items of the listed history before it.
        time: at which it is to be predicted, in seconds since 1970; None without dates.
    """

    item: Item
    num_before: int
    time: int | None


class UserHistories:
    """Reads the histories of a dataset's users as items of a catalog; items that it lacks are left out.

    Histories are read from the open file: with a memory map, the process would die if the file is cut short.
    """

    def __init__(self, dataset: Dataset, catalog: ItemCatalog) -> None:
        self.catalog, self.user_ids = catalog, dataset.user_ids
        self._by_id = self.user_ids.arg_sort()  # found by bisection: a dictionary would take more memory
        self._sorted_ids = self.user_ids.gather(self._by_id)
        self._item_ids, self._offsets = dataset.item_table["item_id"], np.array(dataset.offsets)
        self._test = np.array(dataset.test)
        lasts = np.maximum(self._offsets[1:] - 1, 0)
        self._last_times = None if dataset.seconds is None else dataset.seconds[lasts]
        self._test_times = dataset.request_times(self._test)
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

    def last_time(self, user: int) -> int | None:
        """Return the time of a user's last interaction, in seconds since 1970; None without dates or any."""
        is_empty = self._offsets[user] == self._offsets[user + 1]
        return None if self._last_times is None or is_empty else int(self._last_times[user])

    def search(self, query: str) -> Int64:
        """Return the indices of users whose id contains a text, without regard to case; all for "".

        The user with exactly this id comes first, then those whose id begins with it.
        """
        if not query:
            return np.arange(len(self), dtype=np.int64)
        folded = self.user_ids.str.to_lowercase()
        text = query.lower()
        place = (
            pl.when(self.user_ids == query).then(0).when(folded.str.starts_with(text)).then(1).otherwise(2)
        )
        table = pl.select(
            user=pl.int_range(len(self)), place=place, found=folded.str.contains(text, literal=True)
        )
        matches: Int64 = table.filter("found").sort("place", maintain_order=True)["user"].to_numpy()
        return matches

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

    def targets(self, user: int, limit: int) -> list[TestTarget]:
        """Return the test targets among the last items of a user, at most `limit`, oldest first."""
        item_ids = self.last_ids(user, limit)
        start = int(self._offsets[user + 1]) - len(item_ids)
        indices = [self.catalog.index_of(item_id) for item_id in item_ids]
        first, last = np.searchsorted(self._test, [start, start + len(item_ids)]).tolist()
        targets = []
        for number in range(first, last):
            place = int(self._test[number]) - start
            if (index := indices[place]) is not None:
                num_before = sum(other is not None for other in indices[:place])
                time = None if self._test_times is None else int(self._test_times[number])
                targets.append(TestTarget(self.catalog.item(index), num_before, time))
        return targets
