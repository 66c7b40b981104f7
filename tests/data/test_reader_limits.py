"""Tables that are damaged, or larger than the memory when they are unpacked, are refused."""

from __future__ import annotations

import gzip
import tracemalloc
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hafvt.data.lines import read_jsonl
from hafvt.errors import InputError
from tests.data.helpers import FRAME, PACKERS, WRITERS, csv_of, fails, interactions, write, zstd


def test_read_tables_larger_than_memory_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hafvt.data.lines.available_bytes", lambda: 2**19)
    rows = pl.DataFrame({"user_id": ["u"] * 10_000, "item_id": "a", "timestamp": 1})
    rows.write_parquet(tmp_path / "log.parquet")
    for name in ("log.csv", "log.csv.gz", "log.csv.zst", "log.jsonl", "log.jsonl.gz", "log.jsonl.zst"):
        write(tmp_path / name, WRITERS[name](rows))
    for path in sorted(tmp_path.iterdir()):
        fails(
            path, str(path), "GiB of memory or more, but 0.0 GiB are free", "use a machine with more memory"
        )


def test_read_tables_parquet_bomb_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hafvt.data.lines.available_bytes", lambda: 2**24)
    columns = {"user_id": ["u" * 2**20] * 50, "item_id": ["a"] * 50, "timestamp": range(50)}
    table = pa.table({name: list(values) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "log.parquet", compression="zstd", use_dictionary=False)
    assert (tmp_path / "log.parquet").stat().st_size < 2**18
    fails(tmp_path / "log.parquet", "GiB of memory or more, but 0.0 GiB are free")
    renamed = table.rename_columns(["note", "item_id", "timestamp"]).append_column(
        "user_id", table["item_id"]
    )
    pq.write_table(renamed, tmp_path / "log.parquet", compression="zstd", use_dictionary=False)
    assert len(interactions(tmp_path / "log.parquet").frame) == 50  # the large column is not read


@pytest.mark.parametrize("name", ["log.csv.zst", "log.csv.gz", "log.jsonl.zst", "histories.jsonl.zst"])
def test_read_lines_compressed_line_larger_than_allowed_is_never_in_memory(tmp_path: Path, name: str) -> None:
    pack = zstd if name.endswith(".zst") else gzip.compress
    path = write(tmp_path / name, pack(b"{" * name.count("jsonl") + b"a" * 2**27))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="a line of more than 16,777,216 bytes"):
            list(read_jsonl(path)) if name.startswith("histories") else interactions(path)
        assert tracemalloc.get_traced_memory()[1] < 2**26
    finally:
        tracemalloc.stop()


def test_read_tables_zstd_frames_without_text_are_skipped_but_not_as_the_first(tmp_path: Path) -> None:
    content, skippable = csv_of(FRAME), b"\x50\x2a\x4d\x18\4\0\0\0text"
    parts = zstd(content[:40]) + skippable + zstd(content[40:]) + skippable
    path = write(tmp_path / "log.csv.zst", parts)
    assert len(interactions(path).frame) == len(FRAME)
    fails(
        write(path, skippable + zstd(content)), "it starts with a frame without text", "Compress it with zstd"
    )


LONG_LINES = ["log.csv.gz", "log.csv", "log.csv.zst", "log.jsonl", "log.jsonl.gz", "log.jsonl.zst"]


@pytest.mark.parametrize("name", LONG_LINES)
def test_read_tables_long_line_is_refused_with_the_row(tmp_path: Path, name: str) -> None:
    packer = PACKERS[path.suffix[1:] if (path := Path(name)).suffix in (".gz", ".zst") else "plain"]
    content = WRITERS[name.removesuffix(".gz").removesuffix(".zst")](FRAME)
    content += b'"' + b"a" * (2**24 + 2**20)
    path = write(tmp_path / name, packer(content))
    error = fails(path, "a line of more than 16,777,216 bytes", "Shorten the line")
    assert error.row == content.count(b"\n") + 1


def test_read_tables_parquet_whose_row_counts_disagree_is_refused(tmp_path: Path) -> None:
    rows = pa.table({"user_id": ["u"] * 4000, "item_id": ["a"] * 4000, "timestamp": range(4000)})
    pq.write_table(
        rows.append_column("tags", pa.array([["x", "y"]] * 4000)),
        tmp_path / "log.parquet",
        row_group_size=1500,
    )
    good = (tmp_path / "log.parquet").read_bytes()
    assert len(interactions(tmp_path / "log.parquet").frame) == 4000
    footer = good.rindex(bytes([0xC0, 0x3E]))  # 4000 as Thrift's zigzag number
    path = write(tmp_path / "log.parquet", good[:footer] + bytes([0xB8]) + good[footer + 1 :])
    fails(path, "it is damaged (its counts of rows are 3996 and 4000)", "Download or write it again")


def test_read_tables_damaged_parquet_is_refused_without_a_panic(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    rows = pl.DataFrame({"user_id": ["u"] * 3000, "item_id": "a", "timestamp": range(3000)})
    rows.write_parquet(tmp_path / "log.parquet")
    good, problems = (tmp_path / "log.parquet").read_bytes(), []
    for position in range(len(good) - 600, len(good) - 4):
        wrong = good[:position] + bytes([good[position] ^ 64]) + good[position + 1 :]
        try:
            interactions(write(tmp_path / "log.parquet", wrong))
        except InputError as error:
            problems.append(str(error))
    assert any("it cannot be read (damaged)" in problem for problem in problems)
    assert capfd.readouterr().err == ""
