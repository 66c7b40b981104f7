from __future__ import annotations

import csv
import zipfile
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encode import encode


def vectors(n: int, width: int = 6) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, width)).astype(np.float32)


def write_npz(path: Path, ids: object, embeddings: object) -> Path:
    np.savez(path, ids=np.asarray(ids), embeddings=np.asarray(embeddings))
    return path


def write(kind: str, folder: Path, ids: list[str], rows: np.ndarray) -> Path:
    if kind == "npz":
        return write_npz(folder / "x.npz", ids, rows)
    path = folder / "x.parquet"
    array = pl.Series(rows, dtype=pl.Array(pl.Float32, rows.shape[1]))
    name = "id" if kind == "parquet list" else "item_id"
    column = array if kind == "parquet array" else array.arr.to_list()
    pl.DataFrame({name: ids, "embedding": column}).write_parquet(path)
    return path


@pytest.mark.parametrize("kind", ["npz", "parquet list", "parquet array"])
def test_encode_precomputed_in_any_order_assigns_rows_to_items(
    pictured: Dataset, tmp_path: Path, kind: str
) -> None:
    ids = [f"a{n}" for n in (11, 4, 0, 9)] + ["unknown", "too"]
    rows = vectors(6)
    rows[3, 2] = np.nan
    table = encode(pictured, precomputed={"sound_2": write(kind, tmp_path, ids, rows)})["sound_2"]
    assert np.flatnonzero(table.present).tolist() == [0, 4, 11]
    for item, row in ((11, 0), (4, 1), (0, 2)):
        np.testing.assert_allclose(table.rows[item], rows[row] / np.linalg.norm(rows[row]), atol=1e-3)
    assert table.metadata["unknown_ids"] == 2
    assert table.metadata["counts"] == {"items": 12, "encoded": 3, "missing": 8, "broken": 1}
    assert len(table.metadata["source"]["sha256"]) == 64
    with (pictured.folder / "features" / "sound_2" / "problems.csv").open(newline="") as file:
        listed = {row["item_id"]: row["problem"] for row in csv.DictReader(file)}
    assert len(listed) == 9
    assert "zero or not finite" in listed["a9"]
    assert "no vector in" in listed["a1"]


def test_encode_precomputed_with_integer_ids_reads_them_as_text(pictured: Dataset, tmp_path: Path) -> None:
    path = write_npz(tmp_path / "x.npz", [1, 2], vectors(2))
    with pytest.raises(HafvtError, match=r"none of its 2 ids \(e.g. '1'\) is an item of .* \(e.g. 'a0'\)"):
        encode(pictured, precomputed={"image": path})


WRONG_NPZ = [
    (["a1", "a1"], vectors(2), "id 'a1' more than once"),
    (["a1"], vectors(2), "1 ids for 2 embeddings"),
    (["a1", "a2"], vectors(2)[0], "embeddings have shape"),
    (["a1", "a2"], np.ones((2, 0)), "embeddings have shape"),
    (["a1", "a2"], np.ones((2, 3), dtype=np.int64), "type int64"),
    (["a1", "a2"], np.array([[1, "x"], [2, "y"]], dtype=object), "pickled objects"),
    (np.array(["a1", "a2"], dtype=object), vectors(2), "pickled objects"),
    ([1.5, 2.5], vectors(2), "ids have shape"),
    ([["a1"], ["a2"]], vectors(2), "ids have shape"),
]


@pytest.mark.parametrize(("ids", "rows", "message"), WRONG_NPZ)
def test_encode_precomputed_with_wrong_arrays_is_refused(
    pictured: Dataset, tmp_path: Path, ids: object, rows: object, message: str
) -> None:
    path = write_npz(tmp_path / "x.npz", ids, rows)
    with pytest.raises(HafvtError, match=message) as caught:
        encode(pictured, precomputed={"image": path})
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_encode_precomputed_with_wrong_columns_is_refused(pictured: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    for frame, message in (
        ({"id": ["a1"], "vector": [[1.0]]}, "needs item_id and embedding"),
        ({"id": ["a1"], "embedding": [1.0]}, "give a list of floats"),
        ({"id": ["a1"], "embedding": [["x"]]}, "give a list of floats"),
        ({"id": ["a1", "a2"], "embedding": [[1.0], [1.0, 2.0]]}, "different lengths"),
        ({"id": ["a1", "a2"], "embedding": [[1.0], None]}, "gaps"),
        ({"id": ["a1", "a2"], "embedding": [[1.0], [None]]}, "gaps"),
        ({"id": ["a1"], "embedding": [[]]}, "list of floats|different lengths"),
        ({"id": [], "embedding": []}, "list of floats|different lengths|Null"),
        ({"id": ["a1", None], "embedding": [[1.0], [1.0]]}, "nulls"),
        ({"id": [1.5], "embedding": [[1.0]]}, "Float64"),
        ({"id": ["a1", "a1"], "embedding": [[1.0], [1.0]]}, "more than once"),
    ):
        pl.DataFrame(frame).write_parquet(path)
        with pytest.raises(HafvtError, match=message):
            encode(pictured, precomputed={"image": path})


def test_encode_precomputed_from_damaged_or_other_files_is_refused(pictured: Dataset, tmp_path: Path) -> None:
    good = write_npz(tmp_path / "good.npz", ["a1", "a2"], vectors(2)).read_bytes()
    for name, content, message in (
        ("cut.npz", good[: len(good) // 2], "damaged"),
        ("text.npz", b"hello", "damaged"),
        ("text.parquet", b"hello", "damaged"),
        ("x.pkl", b"hello", "not read"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HafvtError, match=message):
            encode(pictured, precomputed={"image": tmp_path / name})
    with pytest.raises(HafvtError, match="does not exist"):
        encode(pictured, precomputed={"image": tmp_path / "nowhere.npz"})
    np.savez(tmp_path / "names.npz", id=np.array(["a1"]), vectors=vectors(1))
    with pytest.raises(HafvtError, match="no array 'ids'"):
        encode(pictured, precomputed={"image": tmp_path / "names.npz"})


def test_encode_precomputed_with_false_headers_is_refused_unread(pictured: Dataset, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", ids=np.array(["a1"]), embeddings=np.zeros((1, 3_000_000)))
    with pytest.raises(HafvtError, match="unpacks to over 200 times"):
        encode(pictured, precomputed={"image": tmp_path / "bomb.npz"})
    write_npz(tmp_path / "x.npz", ["a1", "a2"], vectors(2))
    with zipfile.ZipFile(tmp_path / "x.npz") as old, zipfile.ZipFile(tmp_path / "lies.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"(2, 6), }" + 9 * b" ", b"(2000000000, 6), }"))
    assert b"2000000000" in (tmp_path / "lies.npz").read_bytes()
    with pytest.raises(HafvtError, match="not as long as its header says"):
        encode(pictured, precomputed={"image": tmp_path / "lies.npz"})
