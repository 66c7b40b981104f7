"""Added items, indexes and exports survive a kill, two processes at once, and other files in their place."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hafvt import catalog, export, index, recommend, train
from hafvt.errors import HafvtError
from hafvt.files import read_json, write_json
from hafvt.folders import FolderKind, atomic_folder, folder_lock, read_folder
from hafvt.inference import ann, index_files
from hafvt.inference.recommender import Recommender
from tests.conftest import write_small
from tests.crash import crash_before_each_operation

ADD = "catalog('add', root / 'run', root / 'new.csv', precomputed={'title': root / 'title.npz'})"


def write_items(folder: Path, name: str) -> dict[str, Path]:
    """Writes a table of one new item, and its vector; returns the files of vectors."""
    (folder / "new.csv").write_text(f"item_id,domain\n{name},d0\n")
    np.savez(folder / "title.npz", ids=np.array([name]), embeddings=np.ones((1, 8), np.float32))
    return {"title": folder / "title.npz"}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two domains with an added item `n0` and an index; tests must not change it."""
    folder = tmp_path_factory.mktemp("saved")
    data = write_small(folder / "data", users=60, sizes=(200, 150))
    shutil.rmtree(data.folder / "features" / "image")
    about = data.folder / "features" / "title" / "about.json"
    write_json(about, read_json(about) | {"encoder": "precomputed", "settings": {}}, checksum=True)
    params = {"id_width": 8, "modalities": ("id", "title")}
    train("hafvt", data, folder / "run", params=params, epochs=1, test=False)
    train("popularity", data, folder / "popularity", test=False)
    vectors = write_items(folder, "n0")
    catalog("add", folder / "run", folder / "new.csv", precomputed=vectors)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
        index(folder / "run", histories=3)
    return folder


@pytest.fixture
def root(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of the run."""
    monkeypatch.setattr(ann, "MIN_ITEMS_TO_BUILD", 100)
    monkeypatch.setattr(index_files, "MIN_ITEMS_TO_USE", 100)
    shutil.copytree(saved / "run", tmp_path / "run")
    return tmp_path


def added_ids(run: Path) -> set[str]:
    """Returns the ids of the items that were added to a run."""
    shutil.rmtree(run / "index", ignore_errors=True)  # it is out of date after an addition
    table = Recommender.open(run).catalog.table
    return set(table.filter(pl.col("item_id").str.starts_with("n"))["item_id"])


def restore(saved: Path, root: Path, name: str = "run") -> None:
    """Puts back what the run holds in `saved`."""
    shutil.rmtree(root / name, ignore_errors=True)
    shutil.copytree(saved / name, root / name)


def names(folder: Path) -> set[str]:
    """Returns the names in a folder, those of hidden files included."""
    return {path.name for path in folder.iterdir()}


def test_catalog_add_killed_anywhere_keeps_added_items(saved: Path, root: Path) -> None:
    vectors = write_items(root, "n1")

    def check(step: int) -> None:
        present = added_ids(root / "run")
        assert present in ({"n0"}, {"n0", "n1"}), step
        catalog("add", root / "run", root / "new.csv", precomputed=vectors, overwrite="n1" in present)
        assert added_ids(root / "run") == {"n0", "n1"}, step
        assert names(root / "run") == names(saved / "run") - {"index"}, step

    imports = "from hafvt.inference.catalog_add import catalog"
    reset = lambda: restore(saved, root)  # noqa: E731
    assert crash_before_each_operation(root, ADD, imports=imports, reset=reset, check=check) > 5


@pytest.mark.slow
def test_index_killed_anywhere_keeps_an_index(saved: Path, root: Path) -> None:
    def check(step: int) -> None:
        assert Recommender.open(root / "run").candidate_generator is not None, step
        index(root / "run", histories=2)
        assert Recommender.open(root / "run").candidate_generator is not None, step
        assert names(root / "run") == names(saved / "run"), step

    imports = "from hafvt.inference import ann\nann.MIN_ITEMS_TO_BUILD = 100"
    reset = lambda: restore(saved, root)  # noqa: E731
    action = "ann.index(root / 'run', histories=2)"
    assert crash_before_each_operation(root, action, imports=imports, reset=reset, check=check, stride=3) > 3


@pytest.mark.slow
def test_export_killed_anywhere_keeps_an_export(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    restore(saved, tmp_path, "popularity")
    export(tmp_path / "popularity", out=tmp_path / "first")

    def check(step: int) -> None:
        assert len(Recommender.open(tmp_path / "out").recommend([["i3"]], "d0")[0].items) == 10, step
        assert names(tmp_path / "out") == names(tmp_path / "first"), step

    def reset() -> None:
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        shutil.copytree(tmp_path / "first", tmp_path / "out")

    action = "onnx_export.export(root / 'popularity', out=root / 'out', overwrite=True)"
    imports = "from hafvt.inference import onnx_export"
    crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check, stride=4)
    assert names(tmp_path) == {"popularity", "first", "out"}


@pytest.mark.slow
def test_recommend_killed_anywhere_keeps_the_file(saved: Path, tmp_path: Path) -> None:
    restore(saved, tmp_path, "popularity")
    out = tmp_path / "out"
    (tmp_path / "h.jsonl").write_text('{"history": ["i3"]}\n' * 5)
    for name in ("top.jsonl", "top.parquet"):

        def reset(name: str = name) -> None:
            shutil.rmtree(out, ignore_errors=True)
            out.mkdir()
            (out / name).write_text("before")

        def check(step: int, name: str = name) -> None:
            assert (out / name).read_bytes()[:6] in (
                b"before",
                b'{"hist',
                b"PAR1" + (out / name).read_bytes()[4:6],
            )
            recommend(tmp_path / "popularity", histories=tmp_path / "h.jsonl", domain="d0", out=out / name)
            assert names(out) == {name}, step
            assert (out / name).stat().st_size > 100

        imports = "from hafvt.inference import batch, request_batches\nrequest_batches.MAX_BATCH_SIZE = 2"
        options = f"histories=root / 'h.jsonl', domain='d0', out=root / 'out' / '{name}'"
        action = f"batch.recommend(root / 'popularity', {options})"
        crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check)


def test_read_folder_that_is_replaced_meanwhile_is_read_again(tmp_path: Path) -> None:
    folder, kind, results = tmp_path / "out", FolderKind("a test", "about.json"), []

    def replace(number: int) -> None:
        with atomic_folder(folder, kind, overwrite=True) as temporary:
            write_json(temporary / "about.json", {"format": 1, "number": number})

    def read() -> int:
        results.append(read_json(folder / "about.json")["number"])
        if len(results) < 3:
            replace(len(results))
        if len(results) == 1:
            raise HafvtError("half of the old files, half of the new ones")
        return results[-1]

    replace(0)
    assert read_folder(folder, read) == 2
    assert results == [0, 1, 2]


def test_catalog_add_twice_at_once_is_refused(root: Path) -> None:
    vectors = write_items(root, "n1")
    with folder_lock(root / "run" / "added_items"):
        errors: list[Exception] = []

        def add() -> None:
            try:
                catalog("add", root / "run", root / "new.csv", precomputed=vectors)
            except HafvtError as error:
                errors.append(error)

        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
    assert [str(error) for error in errors] == [
        f"{root}/run/added_items is in use by another process: wait, end that one, or choose another folder"
    ]
    assert added_ids(root / "run") == {"n0"}


def test_export_overwrite_replaces_exports_only(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    out = tmp_path / "hm"
    out.mkdir()
    (out / "thesis.txt").write_text("x")
    with pytest.raises(HafvtError, match=r"hm exists and is not an export: choose another folder"):
        export(saved / "popularity", out=out, overwrite=True)
    with pytest.raises(HafvtError, match=r"hm exists already: .* or replace it with --overwrite"):
        export(saved / "popularity", out=out)
    with pytest.raises(HafvtError, match="exists and is not an export"):
        export(saved / "popularity", out=saved / "run", overwrite=True)
    (out / "thesis.txt").unlink()
    export(saved / "popularity", out=out)
    export(saved / "popularity", out=out, overwrite=True)
    (out / "thesis.txt").write_text("x")
    with pytest.raises(HafvtError, match=r"holds thesis.txt, which is not of an export and would be lost"):
        export(saved / "popularity", out=out, overwrite=True)
    assert (out / "thesis.txt").read_text() == "x"


def test_index_and_catalog_add_keep_other_files(root: Path) -> None:
    vectors = write_items(root, "n1")
    for name in ("index", "added_items"):
        (root / "run" / name / "thesis.txt").write_text("x")
    with pytest.raises(HafvtError, match=r"index holds thesis.txt, which is not of an index"):
        index(root / "run", histories=2)
    with pytest.raises(HafvtError, match=r"added_items holds thesis.txt, which is not of a folder of added"):
        catalog("add", root / "run", root / "new.csv", precomputed=vectors)
    for name in ("index", "added_items"):
        assert (root / "run" / name / "thesis.txt").read_text() == "x"


FULL_DISK = """
import os, resource, sys
from pathlib import Path
from hafvt import catalog, index, recommend
from hafvt.errors import HafvtError
from hafvt.inference import ann
ann.MIN_ITEMS_TO_BUILD = 100
root = Path(sys.argv[1])
new = (root / "run", root / "new.csv")
commands = [
    lambda: catalog("add", *new, precomputed={"title": root / "title.npz"}),
    lambda: index(root / "run", histories=2),
    *(lambda n=n: recommend(root / "popularity", histories=root / "h.jsonl", domain="d0", out=root / n)
      for n in ("o.jsonl", "o.csv", "o.parquet")),
]
for number, command in enumerate(commands):
    for size in (1, 100, 700, 1500):
        if os.fork() == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            try:
                command()
            except HafvtError as error:
                print(f"{number} {size} {error}", flush=True)
            os._exit(0)
        os.wait()
"""


@pytest.mark.slow
def test_full_disk_is_one_line_and_keeps_what_was_there(saved: Path, root: Path) -> None:
    restore(saved, root, "popularity")
    write_items(root, "n1")
    (root / "h.jsonl").write_text('{"history": ["i3"]}\n' * 500)
    for name in ("o.jsonl", "o.csv", "o.parquet"):
        (root / name).write_text("before")
    command = [sys.executable, "-c", FULL_DISK, str(root)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) >= 18, result
    assert all("cannot be written (No space left on device)" in line for line in lines), lines
    assert "Traceback" not in result.stderr
    assert Recommender.open(root / "run").candidate_generator is not None
    assert added_ids(root / "run") == {"n0"}
    for name in ("o.jsonl", "o.csv", "o.parquet"):
        assert (root / name).read_text() == "before"
    assert not [path.name for path in (*root.iterdir(), *(root / "run").iterdir()) if path.name[0] == "."]
