"""Pictures: small JPEGs of files in the picture folder only, in a cache of limited size."""

from __future__ import annotations

import asyncio
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hafvt.data.dataset import Domain
from hafvt.inference.catalog import ItemCatalog
from hafvt.server.batching import BusyError
from hafvt.server.pictures import PictureCache

PATHS = [
    "a.png",
    "b.png",
    "added.png",
    "../secret.png",
    "{root}/../secret.png",
    "text.png",
    "none.png",
    "",
    ".",
]


@pytest.fixture
def catalog(tmp_path):
    folder, added_folder = tmp_path / "pictures", tmp_path / "added"
    for path in (folder / "a.png", folder / "b.png", added_folder / "added.png"):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (400, 600), "red").save(path)
    Image.new("RGB", (4, 6)).save(tmp_path / "secret.png")
    (folder / "text.png").write_text("text")
    images = [*(path.format(root=folder) for path in PATHS), None]
    table = pl.DataFrame({"item_id": [f"i{n}" for n in range(len(images))], "domain": "d", "image": images})
    table = table.with_columns(title=pl.lit(None, pl.String))
    domains = (Domain("d", 0, len(images)),)
    return ItemCatalog(table, domains, np.zeros(len(images), np.int64), folder, {2: added_folder})


def test_picture_cache_returns_small_jpeg_again_without_its_file(catalog):
    pictures = PictureCache(catalog)
    picture = asyncio.run(pictures.get(0, 160))
    with Image.open(BytesIO(picture)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 160)
    (catalog.image_root / "a.png").unlink()
    assert asyncio.run(pictures.get(0, 160)) == picture


def test_picture_cache_added_item_reads_its_own_folder(catalog):
    assert asyncio.run(PictureCache(catalog).get(2, 160))


@pytest.mark.parametrize("item", range(3, len(PATHS) + 1))
def test_picture_cache_path_without_picture_in_folder_returns_none(catalog, item):
    assert asyncio.run(PictureCache(catalog).get(item, 160)) == b""


def test_picture_cache_full_forgets_least_recently_used(catalog, monkeypatch):
    size = len(asyncio.run(PictureCache(catalog).get(0, 320)))
    monkeypatch.setattr("hafvt.server.pictures.CACHE_BYTES", size + 900)
    pictures = PictureCache(catalog)
    for item in (0, 1):
        asyncio.run(pictures.get(item, 320))
    assert size < pictures.num_bytes <= size + 900
    for name in ("a.png", "b.png"):
        (catalog.image_root / name).unlink()
    assert asyncio.run(pictures.get(1, 320))
    assert asyncio.run(pictures.get(0, 320)) == b""


def test_picture_cache_too_many_waiting_refuses(catalog, monkeypatch):
    monkeypatch.setattr("hafvt.server.pictures.MAX_WAITING", 1)
    pictures = PictureCache(catalog)

    async def get_two():
        return await asyncio.gather(pictures.get(0, 160), pictures.get(1, 160), return_exceptions=True)

    picture, refusal = asyncio.run(get_two())
    assert picture
    assert isinstance(refusal, BusyError)
