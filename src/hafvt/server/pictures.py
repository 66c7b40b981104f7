"""Pictures of items for the page: small JPEGs, made from the pixels of the original, cached in memory."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor

from hafvt.features.images import PictureError, thumbnail
from hafvt.inference.catalog import ItemCatalog
from hafvt.server.batching import BusyError

CACHE_BYTES = 64 * 2**20  # the least recently used pictures go first
ENTRY_BYTES = 500  # memory that an entry of the cache takes beside its picture
MAX_WAITING = 256  # requests whose picture is not in the cache


class PictureCache:
    """Makes pictures of the catalog's items in a thread, so that no recommendation waits, and caches them."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self.catalog = catalog
        self.num_bytes = 0  # size of the cache
        self._waiting = 0
        self._cache: OrderedDict[tuple[int, int], bytes] = OrderedDict()  # least recently used first
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def get(self, item: int, side: int) -> bytes:
        """Return a JPEG of the item with an index, empty where it has no picture that can be opened.

        Args:
            item: the index of the item.
            side: the longest side of the JPEG in pixels.

        Raises:
            BusyError: MAX_WAITING requests are waiting.
        """
        key = item, side
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key]
        if self._waiting >= MAX_WAITING:
            raise BusyError
        self._waiting += 1
        try:
            jpeg = await asyncio.get_running_loop().run_in_executor(self._thread, self._make, item, side)
        finally:
            self._waiting -= 1
        if key not in self._cache:
            self._cache[key] = jpeg
            self.num_bytes += ENTRY_BYTES + len(jpeg)
            while self.num_bytes > CACHE_BYTES:
                self.num_bytes -= ENTRY_BYTES + len(self._cache.popitem(last=False)[1])
        return jpeg

    def _make(self, item: int, side: int) -> bytes:
        """Open, check and scale a picture."""
        path = self.catalog.item(item).image
        try:
            return thumbnail(self.catalog.image_folder(item), path, side) if path else b""
        except PictureError:
            return b""
