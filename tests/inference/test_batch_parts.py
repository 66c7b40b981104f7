"""Recommendations for folders of histories: each file becomes a file, and only once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import polars as pl
import pytest

from hafvt import recommend, train
from hafvt.errors import ArgumentError, HafvtError
from tests.conftest import write_small

HISTORIES = [
    {"user_id": "007", "history": ["i3", "i41", "i7"]},
    {"user_id": "8", "history": ["i3", "?"], "domain": "d1", "k": 2},
    {"user_id": "9", "history": []},
]


def write_histories(folder: Path) -> Path:
    """Write a folder with JSONL, Parquet and files that are not of histories."""
    (folder / "deep").mkdir(parents=True)
    lines = "".join(json.dumps(value) + "\n" for value in HISTORIES)
    (folder / "a.jsonl").write_text(lines)
    (folder / "deep" / "b.jsonl").write_text(lines)
    pl.DataFrame(HISTORIES).write_parquet(folder / "c.parquet")
    (folder / "readme.txt").write_text("x")
    (folder / "_SUCCESS").write_text("")
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parts")
    return train("popularity", write_small(folder / "data").folder, folder / "run", test=False).folder


@pytest.fixture
def histories(tmp_path):
    return write_histories(tmp_path / "histories")


def files(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_recommend_folder_equals_the_recommendations_for_each_file(run, histories, tmp_path):
    summary = recommend(run, histories=histories, domain="d0", k=3, out=tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == ["_job.json", "a.jsonl", "c.parquet", "deep/b.jsonl"]
    assert str(summary).startswith(
        "wrote recommendations for 9 histories (3 without a known item, by popularity)"
    )
    assert summary.num_unknown_ids == 3
    recommend(run, histories=histories / "a.jsonl", domain="d0", k=3, out=tmp_path / "a.jsonl")
    assert (tmp_path / "out" / "a.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    recommend(run, histories=histories / "c.parquet", domain="d0", k=3, out=tmp_path / "c.jsonl")
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()
    recommend(run, histories=histories / "a.jsonl", domain="d0", k=3, out=tmp_path / "a.parquet")
    assert pl.read_parquet(tmp_path / "out" / "c.parquet").equals(pl.read_parquet(tmp_path / "a.parquet"))


@pytest.mark.parametrize("protocol", ["", "file://"])
def test_recommend_folder_again_writes_only_what_is_missing_or_changed(run, histories, tmp_path, protocol):
    out = tmp_path / "out"

    def recommend_once():
        return recommend(run, histories=f"{protocol}{histories}", domain="d0", out=f"{protocol}{out}")

    recommend_once()
    first = files(out)
    (out / "a.jsonl").unlink()
    (out / "c.parquet").write_bytes(b"kept")
    summary = recommend_once()
    assert (summary.num_files, summary.num_earlier_files, summary.num_histories) == (3, 2, 3)
    assert files(out) == {**first, "c.parquet": b"kept"}
    os.utime(histories / "c.parquet", ns=(1, 1))
    recommend_once()
    assert {name: content for name, content in files(out).items() if name != "_job.json"} == {
        name: content for name, content in first.items() if name != "_job.json"
    }


def test_recommend_folder_with_other_options_or_into_another_folder_is_refused(run, histories, tmp_path):
    recommend(run, histories=f"{histories}/*.jsonl", domain="d0", out=tmp_path / "out")
    assert sorted(files(tmp_path / "out")) == ["_job.json", "a.jsonl"]
    with pytest.raises(HafvtError, match="out has recommendations of another model or with other options"):
        recommend(run, histories=histories, domain="d0", out=tmp_path / "out", k=4)
    with pytest.raises(ArgumentError, match="histories exists and has no recommendations"):
        recommend(run, histories=histories, domain="d0", out=histories)
    with pytest.raises(ArgumentError, match="a folder with --out"):
        recommend(run, histories=histories, domain="d0", out=tmp_path / "out.jsonl")
    with pytest.raises(HafvtError, match="has no file of histories"):
        recommend(run, histories=f"{histories}/*.csv", domain="d0", out=tmp_path / "new")


def test_recommend_folder_with_wrong_files_names_them(run, histories, tmp_path):
    (histories / "d.jsonl").write_text('{"history": ["i3"]}\n{"history": "i3"}\n')
    with pytest.raises(
        HafvtError, match=r"histories/d\.jsonl, row 2, column 'history', value 'i3': not a list"
    ):
        recommend(run, histories=histories, domain="d0", out=tmp_path / "out")
    pl.DataFrame({"user_id": ["u"], "item_id": ["i3"], "timestamp": [1]}).write_parquet(
        histories / "a0.parquet"
    )
    with pytest.raises(HafvtError, match=r"histories/a0\.parquet: no histories\. Give objects or rows"):
        recommend(run, histories=histories, domain="d0", out=tmp_path / "out")
    (histories / "a.jsonl.gz").write_bytes(b"")
    with pytest.raises(HafvtError, match=r"two files would become .*/a\.jsonl: rename one"):
        recommend(run, histories=histories, domain="d0", out=tmp_path / "out")
