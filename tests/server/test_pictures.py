"""Pictures are made anew, from the picture folder alone, and kept within a bound."""

from __future__ import annotations

import asyncio
from io import BytesIO

import numpy as np
import polars as pl
import pytest
from PIL import Image

from hafvt.data.dataset import Domain
from hafvt.inference.catalog import ItemCatalog
from hafvt.server import pictures as module
from hafvt.server.batching import BusyError
from hafvt.server.pictures import Pictures

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
def pictures(tmp_path):
    folder, more = tmp_path / "pictures", tmp_path / "more"
    for path in (folder / "a.png", folder / "b.png", more / "added.png"):
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (400, 600), "red").save(path)
    Image.new("RGB", (4, 6)).save(tmp_path / "secret.png")
    (folder / "text.png").write_text("text")
    images = [*(path.format(root=folder) for path in PATHS), None]
    table = pl.DataFrame({"item_id": [f"i{n}" for n in range(len(images))], "domain": "d", "image": images})
    table = table.with_columns(title=pl.lit(None, pl.String))
    domains = (Domain("d", 0, len(images)),)
    return Pictures(ItemCatalog(table, domains, np.zeros(len(images), np.int64), folder, {2: more}))


def test_a_picture_is_a_small_jpeg_that_is_kept(pictures):
    made = asyncio.run(pictures.get(0, 160))
    with Image.open(BytesIO(made.jpeg)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 160)
    (pictures.catalog.image_root / "a.png").unlink()
    assert asyncio.run(pictures.get(0, 160)) == made


def test_an_added_item_has_a_folder_of_its_own(pictures):
    assert asyncio.run(pictures.get(2, 160)) is not None


@pytest.mark.parametrize("number", range(3, len(PATHS) + 1))
def test_what_is_no_picture_of_the_folder_is_none(pictures, number):
    assert asyncio.run(pictures.get(number, 160)) is None


def test_only_so_much_is_kept(pictures, monkeypatch):
    one = asyncio.run(pictures.get(0, 320))
    monkeypatch.setattr(module, "MEMORY", len(one.jpeg) + 900)
    asyncio.run(pictures.get(1, 320))
    assert [number for number, _ in pictures.kept] == [1]
    assert pictures.size <= module.MEMORY


def test_only_so_many_wait(pictures, monkeypatch):
    monkeypatch.setattr(module, "WAITING", 1)

    async def both():
        return await asyncio.gather(pictures.get(0, 160), pictures.get(1, 160), return_exceptions=True)

    made, refused = asyncio.run(both())
    assert made.jpeg
    assert isinstance(refused, BusyError)
