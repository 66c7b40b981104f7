from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encode import encode
from hafvt.features.encoders.classic import ClassicPictures
from hafvt.files import read_json

from .conftest import write_catalog, write_pictures


def problems(data: Dataset, name: str) -> list[dict[str, str]]:
    with (data.folder / "features" / name / "problems.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files of a table that must not depend on interruptions."""
    return {name: (folder / name).read_bytes() for name in ("rows.npy", "present.npy", "problems.csv")}


def test_encode_writes_unit_rows_mask_provenance_and_problems(pictured: Dataset) -> None:
    tables = encode(pictured, image="classic", title="classic", batch_size=5)
    image, title = tables["image"], tables["title"]
    assert image.present.tolist() == [n not in (3, 5, 7) for n in range(12)]
    assert title.present.tolist() == [n != 3 for n in range(12)]
    for table in tables.values():
        assert table.rows.dtype == np.float16
        norms = np.linalg.norm(table.rows.astype(np.float32), axis=1)
        np.testing.assert_allclose(norms, table.present, atol=2e-3)
    assert problems(pictured, "image") == [
        {"item_id": "a3", "value": "", "problem": "no image given"},
        {
            "item_id": "a5",
            "value": "5.jpg",
            "problem": "not a picture (JPEG, PNG, WEBP, GIF, BMP, AVIF are read)",
        },
        {"item_id": "a7", "value": "7.jpg", "problem": "no such file"},
    ]
    assert problems(pictured, "title") == [{"item_id": "a3", "value": "", "problem": "no title given"}]
    assert image.metadata["counts"] == {"items": 12, "encoded": 9, "missing": 1, "broken": 2, "incomplete": 0}
    assert image.metadata["encoder"] == "classic"
    assert {"pillow", "scikit-image", "python"} <= image.metadata["versions"].keys()
    assert len(image.metadata["source"]["sha256"]) == 64
    assert sorted(p.name for p in (pictured.folder / "features").iterdir()) == ["image", "title"]


def test_encode_repeated_with_the_same_seed_gives_the_same_bytes(pictured: Dataset) -> None:
    encode(pictured, image="classic", title="classic")
    features = pictured.folder / "features"
    first = {name: contents(features / name) for name in ("image", "title")}
    encode(pictured.folder, image="classic", title="classic")
    assert {name: contents(features / name) for name in ("image", "title")} == first


@pytest.mark.parametrize("batch_size", [1, 2])
def test_encode_with_batches_without_any_content_leaves_gaps(pictured: Dataset, batch_size: int) -> None:
    (pictured.folder.parent / "pictures" / "0.jpg").unlink()  # so that the first batch has none, either
    (pictured.folder.parent / "pictures" / "1.jpg").unlink()
    table = encode(pictured, image="classic", batch_size=batch_size)["image"]
    assert table.present.tolist() == [n not in (0, 1, 3, 5, 7) for n in range(12)]
    in_one_batch = encode(pictured, image="classic")["image"]
    np.testing.assert_array_equal(table.rows, in_one_batch.rows)


SLOW_RUN = """
import sys, time
from hafvt.features.encode import encode
from hafvt.features.encoders.classic import ClassicPictures

original, calls = ClassicPictures.encode, 0

def slow(self, values):
    global calls
    calls += 1
    if calls == 6:
        print("stuck", flush=True)
        time.sleep(60)
    return original(self, values)

ClassicPictures.encode = slow
encode(sys.argv[1], image="classic", batch_size=2)
"""


def kill_in_the_sixth_batch(folder: Path) -> None:
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", SLOW_RUN, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": paths}) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == b"stuck\n"
        run.send_signal(signal.SIGKILL)


@pytest.mark.slow
def test_encode_after_a_kill_continues_and_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{n}.jpg" for n in range(22)]
    write_pictures(tmp_path / "pictures", names)
    (tmp_path / "pictures" / "2.jpg").write_text("broken early")
    (tmp_path / "pictures" / "20.jpg").write_text("broken late")
    uninterrupted, killed = (
        write_catalog(tmp_path / name, [None] * 22, [*names], tmp_path / "pictures")
        for name in ("uninterrupted", "killed")
    )
    encode(uninterrupted, image="classic", batch_size=2)
    kill_in_the_sixth_batch(killed.folder)
    features = killed.folder / "features"
    assert {path.name for path in features.iterdir()} == {".image.lock", ".image.partial"}
    (features / ".image.partial" / ".000001.npz.1.tmp").write_text("half a file")

    num_encoded = 0
    original = ClassicPictures.encode

    def counting(self: ClassicPictures, values: list[Any]) -> Any:
        nonlocal num_encoded
        num_encoded += len(values)
        return original(self, values)

    monkeypatch.setattr(ClassicPictures, "encode", counting)
    encode(killed, image="classic", batch_size=2)
    assert (
        num_encoded == 22 - 8 - 1
    )  # a part of four batches was finished, one of the other pictures is broken
    assert contents(features / "image") == contents(uninterrupted.folder / "features" / "image")
    metadata = [read_json(d.folder / "features" / "image" / "about.json") for d in (uninterrupted, killed)]
    assert (
        metadata[0]["counts"]
        == metadata[1]["counts"]
        == {"items": 22, "encoded": 20, "missing": 0, "broken": 2, "incomplete": 0}
    )
    assert [path.name for path in features.iterdir()] == ["image"]


@pytest.mark.parametrize("changed", [{"seed": 1}, {"batch_size": 3}])
def test_encode_with_changed_settings_discards_the_interrupted_run(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch, changed: dict[str, int]
) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ClassicPictures, "finish", fail)
        with pytest.raises(KeyboardInterrupt):
            encode(pictured, image="classic", batch_size=4)
    num_encoded = 0
    original = ClassicPictures.encode

    def counting(self: ClassicPictures, values: list[Any]) -> Any:
        nonlocal num_encoded
        num_encoded += len(values)
        return original(self, values)

    monkeypatch.setattr(ClassicPictures, "encode", counting)
    encode(pictured, image="classic", **{"batch_size": 4, **changed})  # type: ignore[arg-type]
    assert num_encoded == 9


def test_encode_when_interrupted_keeps_the_older_table(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pictured.folder / "features" / "image"
    encode(pictured, image="classic")
    before = contents(table)

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassicPictures, "finish", fail)
    with pytest.raises(KeyboardInterrupt):
        encode(pictured, image="classic", seed=5)
    assert contents(table) == before


def test_encode_with_zero_or_infinite_rows_reports_them(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode_with_bad_rows(self: ClassicPictures, values: list[Any]) -> Any:
        rows = np.ones((len(values), 4), dtype=np.float32)
        rows[0], rows[1, 0], rows[2] = 0, np.nan, 1e30  # the last row is large, but finite
        return rows

    monkeypatch.setattr(ClassicPictures, "encode", encode_with_bad_rows)
    monkeypatch.setattr(ClassicPictures, "finish", lambda self, rows, present: rows)
    table = encode(pictured, image="classic")["image"]
    assert not table.present[:2].any()
    assert table.present[2]
    assert not np.asarray(table.rows[:2]).any()
    np.testing.assert_allclose(table.rows[2].astype(np.float32), 0.5, atol=1e-3)
    assert [row["item_id"] for row in problems(pictured, "image")] == ["a0", "a1", "a3", "a5", "a7"]
    assert "zero or not finite" in problems(pictured, "image")[0]["problem"]


def test_encode_when_finish_returns_a_zero_row_reports_it(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(self: ClassicPictures, rows: Any, present: Any) -> Any:
        out = np.array(rows[:, :8])
        out[4] = 0
        return out

    monkeypatch.setattr(ClassicPictures, "finish", finish)
    table = encode(pictured, image="classic")["image"]
    assert not table.present[4]
    assert problems(pictured, "image")[-1]["item_id"] == "a4"
    assert table.metadata["counts"] == {"items": 12, "encoded": 8, "missing": 1, "broken": 3, "incomplete": 0}


def test_encode_of_a_jpeg_without_its_end_uses_the_rest_and_lists_it(pictured: Dataset) -> None:
    path = pictured.folder.parent / "pictures" / "2.jpg"
    path.write_bytes(path.read_bytes()[:-20])
    table = encode(pictured, image="classic")["image"]
    assert table.present[2]
    assert problems(pictured, "image")[0] == {
        "item_id": "a2",
        "value": "2.jpg",
        "problem": "its end is missing, the rest is used",
    }
    assert table.metadata["counts"] == {
        "items": 12,
        "encoded": 9,
        "missing": 1,
        "broken": 2,
        "incomplete": 1,
    }


@pytest.mark.parametrize(("wrong", "place"), [("2", "item 'a2'"), ("", "items 'a0' to 'a11' together")])
def test_encode_when_the_encoder_fails_names_the_item(
    pictured: Dataset, monkeypatch: pytest.MonkeyPatch, wrong: str, place: str
) -> None:
    def fail(self: ClassicPictures, values: list[Any]) -> Any:
        if len(values) > 1 or values[0].size == (2, 2):
            raise ValueError("too\nsmall")
        return np.ones((1, 4), np.float32)

    if wrong:
        Image.new("RGB", (2, 2), "red").save(pictured.folder.parent / "pictures" / f"{wrong}.jpg")
    monkeypatch.setattr(ClassicPictures, "encode", fail)
    with pytest.raises(HafvtError, match=rf"^the encoder failed at {place} \(ValueError: too\): correct"):
        encode(pictured, image="classic")


def test_encode_without_any_content_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    data = write_catalog(tmp_path / "data", ["", "  ", None], ["a.jpg", "b.jpg", "c.jpg"], None)
    with pytest.raises(
        HafvtError, match=r"image: none of the 3 items .* 'a0', .*: the dataset has no picture folder"
    ):
        encode(data, image="classic")
    with pytest.raises(HafvtError, match=r"title: none of the 3 items .*: no title given"):
        encode(data, title="classic")
    assert list((data.folder / "features").iterdir()) == []


def test_encode_with_wrong_arguments_is_refused_before_any_work(pictured: Dataset, tmp_path: Path) -> None:
    with pytest.raises(HafvtError, match="nothing to encode"):
        encode(pictured)
    with pytest.raises(HafvtError, match="--batch-size is 0"):
        encode(pictured, title="classic", batch_size=0)
    with pytest.raises(HafvtError, match=r"modality '\.\./x'"):
        encode(pictured, precomputed={"../x": tmp_path / "x.npz"})
    with pytest.raises(HafvtError, match="both an encoder and a precomputed file"):
        encode(pictured, title="classic", precomputed={"title": tmp_path / "x.npz"})
    with pytest.raises(HafvtError, match="no title encoder 'nonsense'"):
        encode(pictured, image="classic", title="nonsense")
    assert not (pictured.folder / "features").exists()


def test_encode_of_many_items_reports_progress_on_stderr(
    pictured: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.monotonic()
    ticks = iter(range(10_000))
    monkeypatch.setattr("hafvt.progress.time.monotonic", lambda: now + 20 * next(ticks))
    encode(pictured, image="classic", batch_size=1)
    captured = capsys.readouterr()
    assert "image classic: 4/12 items" in captured.err
    assert captured.out == ""
