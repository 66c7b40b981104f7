"""What is on disk after kills, full disks, two calls at once, and damage."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encode import encode
from hafvt.features.item_features import load_item_features
from hafvt.features.new_items import encode_new_items
from hafvt.features.table import EncodedItems, FeatureTable
from hafvt.folders import folder_lock
from tests.crash import crash_before_each_operation


def contents(features: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}/{path.name}": path.read_bytes() for path in features.glob("[!.]*/*.[nc]*")}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "is_repeated"), [("image", False), ("title", True)])
def test_encode_killed_anywhere_continues_to_the_same_table(
    pictured: Dataset, name: str, is_repeated: bool
) -> None:
    root, options = pictured.folder.parent, {name: "classic", "batch_size": 2}
    features, before = pictured.folder / "features", root / "before"
    before.mkdir()
    if is_repeated:  # an older table must stay until the new one is complete
        encode(pictured, **{**options, "seed": 7})  # type: ignore[arg-type]
        shutil.move(features / name, before)
    encode(pictured, **options)  # type: ignore[arg-type]
    expected, old = contents(features), contents(before)

    def reset() -> None:
        shutil.rmtree(features)
        shutil.copytree(before, features)

    def check(step: int) -> None:
        if is_repeated:
            assert len(FeatureTable.open(features / name).rows) == 12
            assert contents(features) in (old, expected)
        encode(pictured.folder, **options)  # type: ignore[arg-type]
        assert contents(features) == expected
        assert [path.name for path in features.iterdir()] == [name]

    action = f"encode(root / 'data', **{options!r})"
    imports = "from hafvt.features.encode import encode; import skimage.color, skimage.feature, sklearn.utils"
    kills = crash_before_each_operation(root, action, imports=imports, reset=reset, check=check)
    assert kills > 30


def test_encode_continues_from_another_modality_of_an_earlier_version(pictured: Dataset) -> None:
    partial = pictured.folder / "features" / ".title.partial"
    partial.mkdir(parents=True)
    (partial / "old").mkdir()
    (partial / "state.json").write_text('{"metadata": {}, "num_done": 12, "width": 8, "num_missing": 0}')
    encode(pictured, title="classic")
    assert sorted(path.name for path in partial.parent.iterdir()) == ["title"]


@pytest.mark.parametrize("name", ["rows.f32", "000000.npz", "job.json"])
def test_encode_of_an_interrupted_run_without_a_file_starts_anew(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("hafvt.features.encode.normalize_rows", fail)
        with pytest.raises(KeyboardInterrupt):
            encode(pictured, image="classic")
    (pictured.folder / "features" / ".image.partial" / name).unlink()
    encode(pictured, image="classic")
    assert [path.name for path in (pictured.folder / "features").iterdir()] == ["image"]


def test_encode_twice_at_once_is_refused_in_one_line(pictured: Dataset) -> None:
    hold = (
        "import sys; from hafvt.folders import folder_lock\n"
        "with folder_lock(sys.argv[1]): print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(pictured.folder / "features" / "image")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(
            HafvtError, match=r"features/image is in use by another process: wait, .*"
        ) as caught:
            encode(pictured, title="classic", image="classic")
        assert "\n" not in str(caught.value)
        assert not list((pictured.folder / "features").glob("[!.]*"))
        encode(pictured, title="classic")  # another modality may be encoded meanwhile
        other.communicate()
    encode(pictured, image="classic")


def full_disk(function: Callable[..., Any], calls_before: int) -> Callable[..., Any]:
    """Return a function that fails for want of space after a number of calls."""
    remaining = iter(range(calls_before))

    def call(*arguments: Any) -> Any:
        if next(remaining, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return function(*arguments)

    return call


@pytest.mark.parametrize("name", ["image", "title"])
def test_encode_on_a_full_disk_ends_in_one_line_and_continues(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    features, options = pictured.folder / "features", {name: "classic", "batch_size": 2}
    encode(pictured, **options)  # type: ignore[arg-type]
    expected = contents(features)
    shutil.rmtree(features)
    for calls_before in range(40):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full_disk(os.fsync, calls_before))
            try:
                encode(pictured, **options)  # type: ignore[arg-type]
            except HafvtError as error:
                message = str(error)
            else:
                break
        assert "No space left on device" in message
        assert "\n" not in message
    assert calls_before
    assert contents(features) == expected


def damaged_copies(content: bytes) -> dict[str, bytes]:
    middle = len(content) // 2
    return {
        "empty": b"",
        "cut": content[:middle],
        "cut by a byte": content[:-1],
        "zero": bytes(len(content)),
        "zero at the end": content[:-40] + bytes(40),
        "other byte": content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :],
        "swapped": content[:8] + content[9:] + content[8:9],
        "text": b"hello",
    }


@pytest.mark.parametrize("name", ["rows.npy", "present.npy", "about.json", "fitted_arrays.npz"])
def test_open_damaged_table_names_file_and_remedy(pictured: Dataset, name: str) -> None:
    path = encode(pictured, image="classic", title="classic")["title"].folder / name
    original = path.read_bytes()
    for damage, content in [*damaged_copies(original).items(), ("missing", None)]:
        if name == "about.json" and damage == "cut by a byte":
            continue  # only the line end is missing
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        for use in uses(pictured):
            with pytest.raises(
                HafvtError, match=rf"title/{name} .*: run hafvt encode for title again"
            ) as caught:
                use()
            assert "\n" not in str(caught.value), damage
    encode(pictured, title="classic")
    for use in uses(pictured):
        use()
    assert path.read_bytes() == original


def uses(data: Dataset) -> list[Callable[[], object]]:
    """Return functions that read the features of a dataset."""
    new = pl.DataFrame({"item_id": ["new"], "title": ["red lamp"]})
    return [lambda: load_item_features(data), lambda: encode_new_items(data, "title", new, None)]


def test_load_item_features_of_a_table_of_another_version_is_refused(pictured: Dataset) -> None:
    table = encode(pictured, title="classic")["title"]
    about = table.folder / "about.json"
    about.write_text(about.read_text().replace('"format": 2', '"format": 1'))
    with pytest.raises(
        HafvtError, match=r"format 1, but .* reads format 2: run hafvt encode for title again"
    ):
        load_item_features(pictured)


def test_encode_does_not_replace_a_folder_with_other_files(pictured: Dataset) -> None:
    folder = encode(pictured, title="classic")["title"].folder
    (folder / "thesis.txt").write_text("x")
    with pytest.raises(HafvtError, match=r"title holds thesis\.txt, which is not of a feature table"):
        encode(pictured, title="classic", seed=1)
    assert (folder / "thesis.txt").read_text() == "x"


def test_encode_with_a_lock_in_this_process_is_refused(pictured: Dataset) -> None:
    with folder_lock(pictured.folder / "features" / "title"), pytest.raises(HafvtError, match="in use"):
        encode(pictured, title="classic")


def test_encode_while_the_dataset_is_prepared_again_is_refused(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare_again(raw: Any, present: Any, problems: dict[int, str]) -> EncodedItems:
        path = pictured.folder / "items.parquet"
        pl.read_parquet(path).reverse().write_parquet(path)
        return EncodedItems(np.zeros(raw.shape, dtype=np.float16), present, problems)

    monkeypatch.setattr("hafvt.features.encode.normalize_rows", prepare_again)
    with pytest.raises(HafvtError, match="was prepared again meanwhile: start the command again"):
        encode(pictured, title="classic")
