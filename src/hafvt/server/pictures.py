"""Pictures of items for the page: made anew, small, kept in memory within a bound."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from hafvt.features.images import PictureError, thumbnail
from hafvt.inference.catalog import ItemCatalog
from hafvt.server.batching import BusyError

MEMORY = 64 * 2**20  # bytes of pictures kept
WAITING = 256  # pictures being made or waiting for it


class Picture(NamedTuple):
    """A JPEG and its entity tag."""

    jpeg: bytes
    etag: str


class Pictures:
    """Makes pictures in a thread of its own, so that they hold up no recommendation.

    Args:
        shelf: the items; it names the folders that no picture path may leave.
    """

    def __init__(self, catalog: ItemCatalog) -> None:
        self.catalog = catalog
        self.kept: OrderedDict[tuple[int, int], Picture | None] = OrderedDict()  # least recently asked first
        self.size = self.waiting = 0
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="pictures")

    async def get(self, number: int, side: int) -> Picture | None:
        """Returns the picture of an item.

        Args:
            number: of the item.
            side: its longest side in pixels.

        Returns:
            None where there is none that can be opened.

        Raises:
            BusyError: too many are being made.
        """
        key = number, side
        if key in self.kept:
            self.kept.move_to_end(key)
            return self.kept[key]
        if self.waiting >= WAITING:
            raise BusyError
        self.waiting += 1
        try:
            made = await asyncio.get_running_loop().run_in_executor(self.thread, self.make, number, side)
        finally:
            self.waiting -= 1
        if key not in self.kept:
            self.kept[key] = made
            self.size += _bytes(made)
            while self.size > MEMORY:
                self.size -= _bytes(self.kept.popitem(last=False)[1])
        return made

    def make(self, number: int, side: int) -> Picture | None:
        """Opens, checks and reduces a picture."""
        path = self.catalog.item(number).image
        if not path:
            return None
        try:
            jpeg = thumbnail(self.catalog.image_folder(number), path, side)
        except PictureError:
            return None
        return Picture(jpeg, f'"{hashlib.sha256(jpeg).hexdigest()[:32]}"')


def _bytes(picture: Picture | None) -> int:
    """Returns the memory that a kept picture takes, its place in the table included."""
    return 500 + (len(picture.jpeg) if picture else 0)
