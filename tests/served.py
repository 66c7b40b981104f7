"""Fixtures and helpers of tests over HTTP: small trained runs, and servers of them."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl
import pytest
from PIL import Image

from hafvt import train
from hafvt.data.dataset import Dataset, replace_item_table
from hafvt.server.connections import make_server
from tests.conftest import write_small

SIZES = {"id_width": 8}
ODD_ID = "../a b/<i>&?é"  # of an item


@pytest.fixture(scope="session")
def served_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The small dataset with odd ids, titles and pictures; those of i0 and i5 alone may be shown."""
    folder = tmp_path_factory.mktemp("served")
    pictures = folder / "pictures"
    pictures.mkdir()
    Image.new("RGB", (400, 600), "red").save(pictures / "red.png")
    Image.new("RGB", (40, 60), "blue").save(folder / "secret.png")
    (pictures / "broken.jpg").write_bytes(b"\xff\xd8\xff nothing")
    (pictures / "link.png").symlink_to(folder / "secret.png")
    images = ["red.png", "../secret.png", str(folder / "secret.png"), "link.png", "broken.jpg", "red.png"]
    titles = ["Amélie (2001)", "<script>alert(1)</script>", None, "Star Wars", "Star Trek", "Wars of stars"]
    data = write_small(folder / "data")
    table = data.item_table.with_columns(
        pl.Series("image", images + [None] * 44),
        pl.Series("title", titles + data.item_table["title"].to_list()[6:]),
        pl.col("item_id").replace("i7", ODD_ID),
        pl.Series("brand", [["acme", "zeta", None][n % 3] for n in range(50)]),
        pl.Series("price", [float(n) for n in range(50)]),
    )
    replace_item_table(data.folder, table, image_root=str(pictures))
    return Dataset.open(data.folder)


@pytest.fixture(scope="session")
def served_run(served_data: Dataset) -> Path:
    """A run of HAF-VT; tests must not change it."""
    params = SIZES | {"use_request_date": True}
    return train("hafvt", served_data, served_data.folder.with_name("run"), params=params, epochs=1).folder


@pytest.fixture(scope="session")
def sasrec_run(served_data: Dataset) -> Path:
    """A run of SASRec on the same data; tests must not change it."""
    params = {"width": 8}
    return train("sasrec", served_data, served_data.folder.with_name("sas"), params=params, epochs=1).folder


@pytest.fixture
def writable_run(served_run: Path, tmp_path: Path) -> Path:
    """A copy of `served_run` that a test may change."""
    return shutil.copytree(served_run, tmp_path / "run")


def replace_model(run: Path, source: Path) -> None:
    """Replaces the model of a run by that of another run, model.json last."""
    for path in [*source.glob("model*.safetensors"), source / "model.json"]:
        shutil.copyfile(path, run / f".{path.name}.tmp")
        (run / f".{path.name}.tmp").replace(run / path.name)


def wait_until(condition: Callable[[], object], timeout: float = 60.0) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"the condition does not hold after {timeout:g} s"
        time.sleep(0.02)


@contextmanager
def run_in_thread(app: object) -> Iterator[int]:
    """Runs an application in a thread, on a real socket; yields its port."""
    server, listener = make_server(app, stop_timeout=15), socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(20)
