"""Pictures of items for the page: small JPEGs, made from the pixels of the original, cached in memory."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hafvt.features.images import PictureError, thumbnail
from hafvt.inference.catalog import ItemCatalog
from hafvt.server.batching import BusyError

CACHE_BYTES = 64 * 2**20
MAX_WAITING = 256  # requests whose picture is not in the cache


class Picture(NamedTuple):
    """A JPEG and its entity tag."""

    jpeg: bytes
    etag: str


class PictureCache:
    """Makes pictures in a thread of its own, so that they delay no recommendation, and caches them.

    Args:
        catalog: the items; it names the folders that no picture path may leave.
        cache_bytes: the largest size of the cache; the least recently used pictures go first.
        max_waiting: the largest number of requests that wait for a picture to be made.
    """

    def __init__(
        self, catalog: ItemCatalog, *, cache_bytes: int = CACHE_BYTES, max_waiting: int = MAX_WAITING
    ) -> None:
        self.catalog, self.cache_bytes, self.max_waiting = catalog, cache_bytes, max_waiting
        self.num_bytes = 0  # size of the cache
        self._waiting = 0
        self._cache: OrderedDict[tuple[int, int], Picture | None] = OrderedDict()  # least recently used first
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def get(self, item: int, side: int) -> Picture | None:
        """Return the picture of an item; None where it has none that can be opened.

        Args:
            item: the index of the item.
            side: the longest side in pixels.

        Raises:
            BusyError: `max_waiting` requests are waiting.
        """
        key = item, side
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if self._waiting >= self.max_waiting:
            raise BusyError
        self._waiting += 1
        try:
            picture = await asyncio.get_running_loop().run_in_executor(self._thread, self._make, item, side)
        finally:
            self._waiting -= 1
        if key not in self._cache:
            self._cache[key] = picture
            self.num_bytes += _size(picture)
            while self.num_bytes > self.cache_bytes:
                self.num_bytes -= _size(self._cache.popitem(last=False)[1])
        return picture

    def _make(self, item: int, side: int) -> Picture | None:
        """Opens, checks and scales a picture."""
        path = self.catalog.item(item).image
        if not path:
            return None
        try:
            jpeg = thumbnail(self.catalog.image_folder(item), path, side)
        except PictureError:
            return None
        return Picture(jpeg, f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"')


def _size(picture: Picture | None) -> int:
    """Return the bytes of memory that a cache entry takes, the entry itself included."""
    return 500 + (len(picture.jpeg) if picture else 0)
