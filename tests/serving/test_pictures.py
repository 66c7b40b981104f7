"""Pictures are made anew, from the picture folder alone, and kept within a bound."""

from __future__ import annotations

import asyncio
from io import BytesIO

import pytest
from PIL import Image

from hafvt.serving import pictures as module
from hafvt.serving.batching import BusyError
from hafvt.serving.pictures import Pictures


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (400, 600), "red").save(folder / name)
    Image.new("RGB", (4, 6)).save(tmp_path / "secret.png")
    (folder / "text.png").write_text("text")
    return Pictures(folder)


def test_a_picture_is_a_small_jpeg_without_what_the_file_held(pictures):
    made = asyncio.run(pictures.get("a.png", 160))
    with Image.open(BytesIO(made.jpeg)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 160)
    (pictures.root / "a.png").unlink()
    assert asyncio.run(pictures.get("a.png", 160)) == made


@pytest.mark.parametrize("path", ["../secret.png", "{root}/../secret.png", "text.png", "none.png", "", "."])
def test_what_is_no_picture_of_the_folder_is_none(pictures, path):
    assert asyncio.run(pictures.get(path.format(root=pictures.root), 160)) is None


def test_only_so_much_is_kept(pictures, monkeypatch):
    one = asyncio.run(pictures.get("a.png", 320))
    monkeypatch.setattr(module, "MEMORY", len(one.jpeg) + 900)
    asyncio.run(pictures.get("b.png", 320))
    assert [path for path, _ in pictures.kept] == ["b.png"]
    assert pictures.size <= module.MEMORY


def test_only_so_many_wait(pictures, monkeypatch):
    monkeypatch.setattr(module, "WAITING", 1)

    async def both():
        return await asyncio.gather(
            pictures.get("a.png", 160), pictures.get("b.png", 160), return_exceptions=True
        )

    made, refused = asyncio.run(both())
    assert made.jpeg
    assert isinstance(refused, BusyError)
