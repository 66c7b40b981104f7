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
from hafvt.features.encoders.precomputed import read_precomputed


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
    assert table.metadata["counts"] == {"items": 12, "encoded": 3, "missing": 8, "broken": 1, "incomplete": 0}
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
    (["a1", "a2"], np.ones((2, 3), dtype=np.complex64), "type complex64"),
    (["a1", " "], vectors(2), "blank or nulls, the first in row 2"),
    ([b"a1", b"\xff"], vectors(2), "not Unicode"),
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
        ("text.parquet", b"hello", "is damaged"),
        ("cut.parquet", b"PAR1hello", "is damaged"),
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


def test_encode_precomputed_with_any_id_and_number_type_is_read(pictured: Dataset, tmp_path: Path) -> None:
    rows = np.arange(12).reshape(3, 4)
    text = ["a1", "a4", "a9"]
    write_npz(tmp_path / "bytes.npz", np.array(text, dtype="S"), rows)
    write_npz(tmp_path / "multi-hot.npz", text, rows > 5)
    for name, ids, numbers in (
        ("categorical", pl.Series(text, dtype=pl.Categorical), rows),
        ("enum", pl.Series(text, dtype=pl.Enum(text)), rows.astype(np.uint8)),
        ("binary", pl.Series(text).cast(pl.Binary), rows > 5),
    ):
        embedding = pl.Series(list(numbers), dtype=pl.List(pl.Boolean if numbers.dtype == bool else pl.Int64))
        pl.DataFrame({"item_id": ids, "embedding": embedding}).write_parquet(tmp_path / f"{name}.parquet")
    for path in sorted(tmp_path.glob("*.[np]*")):
        is_multi_hot = path.stem in ("multi-hot", "binary")
        expected = rows[1:] > 5 if is_multi_hot else rows[1:]
        table = encode(pictured, precomputed={"other": path})["other"]
        unit = expected / np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(table.rows[[4, 9]], unit, atol=1e-3, err_msg=path.name)


def test_encode_precomputed_that_compresses_well_is_read_if_it_fits_in_memory(
    pictured: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, ids=np.array(["a1"]), embeddings=np.eye(1, 3_000_000))
    assert path.stat().st_size < 24_000_000 / 300
    assert encode(pictured, precomputed={"image": path})["image"].present[1]
    monkeypatch.setattr("hafvt.features.encoders.precomputed.available_bytes", lambda: 30_000_000)
    with pytest.raises(HafvtError, match=r"its vectors need 0\.0 GiB of memory, .* are free: use a larger"):
        encode(pictured, precomputed={"image": path})


def test_encode_precomputed_from_parquet_larger_than_the_memory_is_refused_unread(
    pictured: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("parquet list", tmp_path, [f"a{n}" for n in range(1_000)], np.zeros((1_000, 500)))
    assert path.stat().st_size < 20_000
    monkeypatch.setattr("hafvt.features.encoders.precomputed.available_bytes", lambda: 5_000_000)
    with pytest.raises(HafvtError, match=r"its vectors need .* GiB of memory"):
        encode(pictured, precomputed={"image": path})
    pl.DataFrame({"item_id": ["a1", "a2"], "embedding": [[1.0], [0.0] * 500_000]}).write_parquet(path)
    with pytest.raises(HafvtError, match=r"its vectors need .* GiB of memory"):
        encode(pictured, precomputed={"image": path})


def test_read_precomputed_of_a_damaged_npz_reads_it_or_names_it_in_one_line(tmp_path: Path) -> None:
    content = write_npz(tmp_path / "x.npz", ["a1", "a2"], vectors(2)).read_bytes()
    damaged = [content[:size] for size in range(0, len(content), 11)]
    damaged += [content[:n] + bytes([content[n] ^ 0xFF]) + content[n + 1 :] for n in range(len(content))]
    messages = []
    for bad in damaged:
        (tmp_path / "x.npz").write_bytes(bad)
        try:
            read_precomputed(tmp_path / "x.npz")
        except HafvtError as error:
            messages.append(str(error))
    assert len(messages) > len(content) / 2
    assert all(text.startswith(f"{tmp_path}/x.npz") and "\n" not in text for text in messages)


def test_encode_precomputed_with_false_headers_is_refused_unread(pictured: Dataset, tmp_path: Path) -> None:
    write_npz(tmp_path / "x.npz", ["a1", "a2"], vectors(2))
    with zipfile.ZipFile(tmp_path / "x.npz") as old, zipfile.ZipFile(tmp_path / "lies.npz", "w") as new:
        for name in old.namelist():
            new.writestr(name, old.read(name).replace(b"(2, 6), }" + 9 * b" ", b"(2000000000, 6), }"))
    assert b"2000000000" in (tmp_path / "lies.npz").read_bytes()
    with pytest.raises(HafvtError, match="not as long as its header says"):
        encode(pictured, precomputed={"image": tmp_path / "lies.npz"})


@pytest.mark.parametrize("code_point", [0xD800, 0x110000, 0xFFFFFFFF])
def test_read_precomputed_ids_that_are_not_unicode_are_refused(tmp_path, code_point):
    ids = np.array([ord("a"), code_point], dtype=np.uint32).view("U1")
    np.savez(tmp_path / "v.npz", ids=ids, embeddings=np.ones((2, 3), np.float32))
    with pytest.raises(HafvtError, match=r"v.npz: an id is not Unicode text: write it as UTF-8"):
        read_precomputed(tmp_path / "v.npz")
