"""Pictures at addresses: read with the guard of downloads; what is wrong with one is its problem."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from PIL import Image

from hafvt.data.http_client import HttpClient
from hafvt.errors import HafvtError
from hafvt.features import remote_images
from hafvt.features.encode import encode
from hafvt.features.images import PictureError
from hafvt.features.modalities import load_picture

from .conftest import write_catalog, write_pictures


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The address of a server of the folder `site`."""
    (tmp_path / "site").mkdir()
    handler = partial(QuietHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


@pytest.fixture
def private_client(monkeypatch: pytest.MonkeyPatch) -> None:
    client = HttpClient(allow_private=True, max_bytes=100_000, requests_per_second=1000, sleep=lambda _: None)
    monkeypatch.setattr(remote_images, "http_client", lambda: client)


def test_load_picture_of_a_private_address_is_refused(site: str) -> None:
    with pytest.raises(PictureError, match=r"127\.0\.0\.1 is 127\.0\.0\.1, not a public address$"):
        load_picture(f"{site}/a.jpg", None)
    with pytest.raises(PictureError, match="a user name or a password"):
        load_picture("https://me:secret@example.org/a.jpg", None)


@pytest.mark.usefixtures("private_client")
def test_load_picture_of_a_server_reads_it_or_names_the_problem(site: str, tmp_path: Path) -> None:
    write_pictures(tmp_path / "site", ["a.jpg"])
    (tmp_path / "site" / "large.jpg").write_bytes(bytes(100_001))
    (tmp_path / "site" / "page.jpg").write_text("<html>")
    with Image.open(tmp_path / "site" / "a.jpg") as picture:
        assert load_picture(f"{site}/a.jpg", None).tobytes() == picture.convert("RGB").tobytes()
    for name, problem in (
        ("no.jpg", "status 404"),
        ("page.jpg", "not a picture"),
        ("large.jpg", "larger than"),
    ):
        with pytest.raises(PictureError, match=problem):
            load_picture(f"{site}/{name}", None)


@pytest.mark.usefixtures("private_client")
def test_encode_of_addresses_equals_encode_of_their_files(site: str, tmp_path: Path) -> None:
    names = [f"{n}.jpg" for n in range(6)]
    write_pictures(tmp_path / "site", names[:5])
    by_path = write_catalog(tmp_path / "a", [None] * 6, [*names], tmp_path / "site")
    by_address = write_catalog(tmp_path / "b", [None] * 6, [f"{site}/{name}" for name in names], None)
    tables = [encode(data, image="classic")["image"] for data in (by_path, by_address)]
    assert (tables[0].rows == tables[1].rows).all()
    assert tables[1].present.tolist() == [True] * 5 + [False]
    assert "the server responded with status 404" in (tables[1].folder / "problems.csv").read_text()


def test_load_picture_of_an_object_store_reads_it_with_fsspec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsspec = pytest.importorskip("fsspec")
    write_pictures(tmp_path, ["a.jpg"])
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/bucket/a.jpg", (tmp_path / "a.jpg").read_bytes())
    monkeypatch.setattr(remote_images, "file_system", lambda protocol: memory)
    monkeypatch.setattr(memory, "_strip_protocol", lambda path: "/" + path.split("://")[-1].lstrip("/"))
    assert load_picture("s3://bucket/a.jpg", None).size == (40, 40)
    with pytest.raises(PictureError, match="no such file"):
        load_picture("gs://bucket/b.jpg", None)


def test_load_picture_without_fsspec_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    remote_images.file_system.cache_clear()
    with pytest.raises(HafvtError, match=r"pip install 'hafvt\[cluster\]'"):
        load_picture("s3://bucket/a.jpg", None)
