from __future__ import annotations

import base64
import gc
import os
import struct
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from hafvt.features import images
from hafvt.features.images import PictureError, open_picture, thumbnail_data_uri


def encoded(kind: str, mode: str = "RGB", size: tuple[int, int] = (32, 24), **options: object) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(width: int, height: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")


def refusal(root: Path | None, value: str) -> str:
    with pytest.raises(PictureError) as caught:
        open_picture(root, value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_open_picture_recognizes_formats_by_content(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.txt").write_bytes(encoded(kind))
    picture = open_picture(tmp_path, "x.txt")
    assert (picture.mode, picture.size) == ("RGB", (32, 24))


@pytest.mark.parametrize("kind", ["TIFF", "ICO", "PPM"])
def test_open_picture_of_other_formats_is_refused(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded(kind))
    assert "not a picture" in refusal(tmp_path, "x.jpg")


def test_open_picture_of_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    assert "not a picture" in refusal(tmp_path, "text.jpg")
    assert "not a picture" in refusal(tmp_path, "empty.jpg")
    assert refusal(tmp_path, "folder.jpg") == refusal(tmp_path, "pipe.jpg") == "not a regular file"
    assert refusal(tmp_path, "nowhere.jpg") == refusal(tmp_path, "text.jpg/x.jpg") == "no such file"
    assert refusal(None, "text.jpg") == "the dataset has no picture folder"
    assert "not fetched yet" in refusal(tmp_path, "HTTPS://example.org/x.jpg")


@pytest.mark.parametrize("value", ["a\0b", "x" * 5000, "\ud800.jpg", "", ".", "~", "file:///etc/passwd"])
def test_open_picture_with_an_odd_path_is_refused(tmp_path: Path, value: str) -> None:
    refusal(tmp_path, value)


def test_open_picture_outside_the_folder_is_refused(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside.png"
    root.mkdir()
    outside.write_bytes(encoded("PNG"))
    (root / "inside.png").write_bytes(encoded("PNG"))
    (root / "leaves.png").symlink_to(outside)
    (root / "stays.png").symlink_to(root / "inside.png")
    (root / "loop.png").symlink_to(root / "loop.png")
    (root / "folder").symlink_to(tmp_path)
    for value in ("leaves.png", "folder/outside.png", str(root / "leaves.png")):
        assert refusal(root, value).startswith("a link leads outside the picture folder: put the item table")
    for value in ("../outside.png", str(outside), "../root/inside.png"):
        assert refusal(root, value) == "leads outside the picture folder"
    assert "cannot be read" in refusal(root, "loop.png")
    assert (
        open_picture(root, "stays.png").size == open_picture(root, str(root / "inside.png")).size == (32, 24)
    )
    (tmp_path / "link").symlink_to(root)
    assert open_picture(tmp_path / "link", "inside.png").size == (32, 24)


@pytest.mark.parametrize("size", [(40_000, 40_000), (20_001, 1), (10_000, 6_000)])
def test_open_picture_with_too_many_pixels_is_refused_from_its_header(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    (tmp_path / "x.png").write_bytes(huge_png(*size))
    assert "too many" in refusal(tmp_path, "x.png")


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "BMP"])
def test_open_picture_with_a_false_size_is_refused_from_its_header(tmp_path: Path, kind: str) -> None:
    data = bytearray(encoded(kind, lossless=True) if kind == "WEBP" else encoded(kind))
    if kind == "GIF":
        data[6:10] = struct.pack("<HH", 65535, 65535)
    elif kind == "WEBP":  # VP8L: 14 bits of width, 14 of height
        data[21:25] = struct.pack("<I", 0x0FFFFFFF)
    else:
        data[18:26] = struct.pack("<ii", 40_000, 40_000)
    (tmp_path / "x").write_bytes(data)
    assert "too many" in refusal(tmp_path, "x")


def test_open_picture_with_too_many_bytes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    monkeypatch.setattr(images, "MAX_BYTES", 1000)
    assert "larger than" in refusal(tmp_path, "x.png")


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP", "AVIF"])
def test_open_picture_of_a_truncated_file_is_refused(tmp_path: Path, kind: str) -> None:
    data = encoded(kind)
    (tmp_path / "x").write_bytes(data[: len(data) // 2])
    assert "picture" in refusal(tmp_path, "x")


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("share", [0.5, 0.9, 1.0])
def test_open_picture_of_a_jpeg_without_its_end_gives_the_rest(
    tmp_path: Path, progressive: bool, share: float
) -> None:
    data = encoded("JPEG", size=(320, 240), progressive=progressive)
    (tmp_path / "whole").write_bytes(data)
    (tmp_path / "cut").write_bytes(data[: int(share * len(data)) - 1])
    with pytest.raises(PictureError, match="its end is missing") as caught:
        open_picture(tmp_path, "cut")
    difference = np.asarray(caught.value.content).astype(int) - np.asarray(open_picture(tmp_path, "whole"))
    assert progressive or (np.abs(difference[: int(share * 200)]) < 3).all()
    assert thumbnail_data_uri(tmp_path, "cut", 60) is not None


def test_open_picture_of_a_jpeg_with_endless_scans_is_refused_undecoded(tmp_path: Path) -> None:
    content = encoded("JPEG", size=(1000, 800), progressive=True)
    scan = content[content.rindex(b"\xff\xda") : -2]
    (tmp_path / "x.jpg").write_bytes(content[:-2] + 3 * scan + content[-2:])
    assert open_picture(tmp_path, "x.jpg").size == (640, 512)
    (tmp_path / "x.jpg").write_bytes(content[:-2] + 2000 * scan[:200] + content[-2:])
    assert refusal(tmp_path, "x.jpg") == "too many scans"


def test_open_picture_of_a_jpeg_without_any_pixel_is_refused(tmp_path: Path) -> None:
    data = encoded("JPEG", size=(320, 240))
    for size in range(3, data.index(b"\xff\xda") + 14):
        (tmp_path / "x").write_bytes(data[:size])
        assert "picture (" in refusal(tmp_path, "x")


def test_open_picture_where_pillow_lacks_avif_lists_what_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.avif").write_bytes(encoded("AVIF"))
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    assert refusal(tmp_path, "x.avif") == "not a picture (JPEG, PNG, WEBP, GIF, BMP are read)"


def test_open_picture_applies_exif_orientation(tmp_path: Path) -> None:
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:20, :30] = 255  # the upper left quarter is white
    exif = Image.Exif()
    expected = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}
    for orientation, (down, right) in expected.items():
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(tmp_path / "x.png", exif=exif)
        picture = np.asarray(open_picture(tmp_path, "x.png"))[..., 0]
        assert picture.shape == ((40, 60) if orientation < 5 else (60, 40))
        rows, columns = np.nonzero(picture)
        middle = picture.shape[0] / 2, picture.shape[1] / 2
        assert (rows.mean() > middle[0], columns.mean() > middle[1]) == (bool(down), bool(right))


def test_open_picture_with_damaged_exif_opens(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"))
    assert open_picture(tmp_path, "x.jpg").size == (32, 24)


def test_open_picture_with_transparency_has_a_white_background(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    clear.save(tmp_path / "rgba.png")
    clear.convert("LA").save(tmp_path / "la.png")
    clear.save(tmp_path / "rgba.webp", lossless=True, exact=True)
    palette = Image.new("RGB", (8, 8), (255, 0, 0)).convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))
    palette.save(tmp_path / "palette.gif", transparency=palette.getpixel((0, 0)))
    Image.new("L", (8, 8), 7).save(tmp_path / "gray.png", transparency=7)
    for path in sorted(tmp_path.iterdir()):
        assert (np.asarray(open_picture(tmp_path, path.name)) == 255).all(), path.name


def test_open_picture_in_16_bit_gray_or_cmyk_is_converted(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    picture = np.asarray(open_picture(tmp_path, "deep.png"))[..., 0]
    np.testing.assert_allclose(picture, ramp / 257, atol=1)
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = np.asarray(open_picture(tmp_path, "cmyk.jpg")).reshape(-1, 3).mean(axis=0)
    assert red[0] > 200
    assert red[1:].max() < 60


def test_open_picture_reduces_large_pictures_only(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(encoded("JPEG", size=(1200, 800)))
    (tmp_path / "x.png").write_bytes(encoded("PNG", size=(1200, 801)))
    (tmp_path / "thin.png").write_bytes(encoded("PNG", size=(3000, 1)))
    assert open_picture(tmp_path, "x.jpg", 100).size == (150, 100)
    assert open_picture(tmp_path, "x.png", 100).size == (150, 100)
    assert open_picture(tmp_path, "x.jpg", 900).size == (1200, 800)
    assert open_picture(tmp_path, "thin.png", 100).size == (3000, 1)


def test_thumbnail_data_uri_is_a_small_jpeg_or_none(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded("PNG", "RGBA", size=(600, 400)))
    (tmp_path / "broken.png").write_text("x")
    uri = thumbnail_data_uri(tmp_path, "x.png", 60)
    assert uri is not None
    head, _, body = uri.partition(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(BytesIO(base64.b64decode(body))) as thumbnail:
        assert (thumbnail.format, thumbnail.size) == ("JPEG", (60, 40))
    assert thumbnail_data_uri(tmp_path, "broken.png", 60) is None
    assert thumbnail_data_uri(None, "x.png", 60) is None


ORIGINALS = [
    encoded("JPEG"),
    encoded(
        "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0"
    ),
    encoded("PNG"),
    encoded("PNG", "P"),
    encoded("GIF"),
    encoded("WEBP"),
    encoded("BMP"),
    encoded("AVIF"),
]


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_open_picture_of_random_bytes_opens_or_is_refused(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from(ORIGINALS)))
    # The header is at the start of a file, so half of the changes go there.
    places = st.integers(0, len(raw) - 1) | st.integers(0, min(100, len(raw) - 1))
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=12)):
        raw[place] = byte
    raw = raw[: data.draw(st.just(len(raw)) | st.integers(0, len(raw)))]
    raw += data.draw(st.binary(max_size=20))
    (tmp_path / "x").write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(PictureError):
            assert open_picture(tmp_path, "x").mode == "RGB"


def test_open_picture_in_threads_restores_warning_filters(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    before = list(warnings.filters)
    gate = threading.Barrier(4)

    def work(_: int) -> None:
        gate.wait()
        for _ in range(50):
            open_picture(tmp_path, "x.png")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert warnings.filters == before


def test_open_picture_closes_its_files(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(encoded("PNG"))
    (tmp_path / "text.png").write_text("x")
    (tmp_path / "folder").mkdir()
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    pictures = []
    for _ in range(5):
        pictures.append(open_picture(tmp_path, "x.png"))
        for value in ("text.png", "folder"):
            refusal(tmp_path, value)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
