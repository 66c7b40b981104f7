from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafvt.data.tables import Table, read_tables
from hafvt.errors import HafvtError, InputError

HEADER = "user_id,item_id,timestamp\n"
ROWS = [("007", "a", 3), ("8", "b,c", 1), ("ü", "d", 2)]
FRAME = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def interactions(source: Any, **columns: str) -> Table:
    return read_tables(source, None, columns)[0]


def fails(source: Any, *parts: str, items: Any = None, **columns: str) -> InputError:
    """Reads what is wrong; returns the error, which is one line with all of `parts`."""
    with pytest.raises(InputError) as caught:
        read_tables(source, items, columns)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message
    return caught.value


def csv_of(frame: pl.DataFrame, separator: str = ",") -> bytes:
    return frame.write_csv(separator=separator).encode()


WRITERS: dict[str, Callable[[pl.DataFrame], bytes]] = {
    "log.csv": csv_of,
    "log.tsv": lambda frame: csv_of(frame, "\t"),
    "semicolons.csv": lambda frame: csv_of(frame, ";"),
    "windows.csv": lambda frame: b"\xef\xbb\xbf" + csv_of(frame).replace(b"\n", b"\r\n"),
    "quoted.csv": lambda frame: frame.write_csv(quote_style="always").encode(),
    "blank.csv": lambda frame: csv_of(frame).replace(b"\n", b"\n\n") + b",,\n",
    "log.csv.gz": lambda frame: gzip.compress(csv_of(frame)),
    "members.csv.gz": lambda frame: b"".join(
        gzip.compress(line) for line in csv_of(frame).splitlines(keepends=True)
    ),
    "log.csv.zst": lambda frame: zstd(csv_of(frame)),
    "log.jsonl": lambda frame: frame.write_ndjson().encode(),
    "blank.ndjson": lambda frame: b"\xef\xbb\xbf" + frame.write_ndjson().replace("\n", "\r\n\r\n").encode(),
    "log.jsonl.gz": lambda frame: gzip.compress(frame.write_ndjson().encode()),
    "bom.jsonl.gz": lambda frame: gzip.compress(b"\xef\xbb\xbf" + frame.write_ndjson().encode()),
    "log.jsonl.zst": lambda frame: zstd(frame.write_ndjson().encode()),
    "g[lo*b].csv": csv_of,
    "g[lo*b].jsonl": lambda frame: frame.write_ndjson().encode(),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_type_of_file_gives_the_same_table(tmp_path: Path, name: str) -> None:
    assert interactions(write(tmp_path / name, WRITERS[name](FRAME))).frame.equals(FRAME)


def test_parquet_and_data_frames_give_the_same_table(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "log.parquet")
    columns = FRAME.to_dict(as_series=False)
    sources = [str(tmp_path / "log.parquet"), FRAME, FRAME.lazy(), pa.table(columns), pd.DataFrame(columns)]
    for source in sources:
        assert interactions(source).frame.equals(FRAME)


def test_ids_are_text(tmp_path: Path) -> None:
    lines = '{"user_id":7,"item_id":"007","timestamp":1}\n{"user_id":"7","item_id":7,"timestamp":2}\n'
    table = interactions(write(tmp_path / "log.jsonl", lines)).frame
    assert table["user_id"].to_list() == ["7", "7"]
    assert table["item_id"].to_list() == ["007", "7"]
    numbers = pl.DataFrame(
        {"user_id": [1, 2], "item_id": pl.Series(["a", "b"], dtype=pl.Categorical), "timestamp": [1, 2]}
    )
    assert interactions(numbers).frame.select("user_id", "item_id").rows() == [("1", "a"), ("2", "b")]


def test_columns_are_mapped_and_extra_ones_ignored(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "when;who;rating;item_id\n5;u;x;a\n")
    items = write(tmp_path / "items.csv", "asin,title,price\na,,3\nb,An item,4\n")
    columns = {"user_id": "who", "timestamp": "when", "item_id": "asin"}
    table, catalogue = read_tables(log, items, columns)
    assert table.frame.rows(named=True) == [{"user_id": "u", "item_id": "a", "timestamp": 5}]
    assert catalogue is not None
    assert catalogue.frame.rows(named=True) == [
        {"item_id": "a", "title": None},
        {"item_id": "b", "title": "An item"},
    ]


def test_a_wrong_column_map_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HafvtError, match=r"'uid' is none of our names.*user_id"):
        read_tables(FRAME, None, {"uid": "user_id"})
    with pytest.raises(HafvtError, match=r"no table has a column 'name' for title"):
        read_tables(FRAME, FRAME, {"title": "name"})
    error = fails(write(tmp_path / "log.csv", "a,b\n1,2\n"), "'user_id'", "a, b", "--columns user_id=NAME")
    assert error.file == tmp_path / "log.csv"
    fails(write(tmp_path / "log.jsonl", '{"user_id": 1, "x": 2}\n'), "'item_id'", "user_id, x")
    fails(FRAME.drop("timestamp"), "data frame", "'timestamp'")
    fails(write(tmp_path / "twice.csv", "user_id,item_id,timestamp,user_id\n1,2,3,4\n"), "twice", "'user_id'")


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (["3", "-1", "+2"], [3, -1, 2]),
        (["1.5", "2", "1e3"], [1.5, 2.0, 1000.0]),
        (["1700000000000000001", "3"], [1_700_000_000_000_000_001, 3]),
        (["2024-02-29", "1969-12-31"], [1_709_164_800, -86_400]),
        (["2024-02-29T12:00:00Z", "2024-02-29 12:00", "2024-02-29T13:00:00+0100"], [1_709_208_000] * 3),
        (["2024-02-29T12:00:00.25-00:30", "2024-02-29"], [1_709_209_800.25, 1_709_164_800.0]),
        ([date(2024, 2, 29), date(1970, 1, 1)], [1_709_164_800, 0]),
        ([datetime(2024, 2, 29, 12, tzinfo=UTC)], [1_709_208_000]),
        ([datetime(1970, 1, 1, 0, 0, 0, 500_000)], [0.5]),
        ([1.0, 2.5], [1.0, 2.5]),
        (np.array(["2024-02-29"], dtype="datetime64[ns]"), [1_709_164_800]),
    ],
)
def test_times(given: Any, stored: list[float]) -> None:
    ids = ["x"] * len(given)
    table = interactions(pl.DataFrame({"user_id": ids, "item_id": ids, "timestamp": given}))
    assert table.frame["timestamp"].to_list() == stored


@pytest.mark.parametrize(
    "bad",
    [
        "x",
        "nan",
        "inf",
        "1e19",
        "2024-13-01",
        "2024-02-30",
        "2024-01-01T25:00",
        "12:00",
        "20240101T",
        "1_0",
        "0x1",
    ],
)
def test_what_is_no_time_is_named_with_its_row(tmp_path: Path, bad: str) -> None:
    good = "2024-01-01" if "-" in bad or ":" in bad or "T" in bad else "5"
    text = HEADER + f"u,a,{good}\n" * 3 + f"u,b,{bad}\nu,a,{good}\n"
    error = fails(
        write(tmp_path / "log.csv", text), "row 5", "'timestamp'", repr(bad), "not a time", "2024-12-31"
    )
    assert (error.row, error.column, error.value) == (5, "timestamp", bad)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 1e300])
def test_floats_that_are_no_times(bad: float | None) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a"] * 3, "timestamp": [1.5, 2.5, bad]})
    assert fails(frame, "data frame", "'timestamp'").row == 3
    assert fails(frame.with_columns(timestamp=pl.lit(True)), "'timestamp'").row == 1


def test_empty_ids_are_named_with_their_row(tmp_path: Path) -> None:
    fails(
        write(tmp_path / "log.csv", HEADER + "u,a,1\nu,,2\n"),
        "row 3",
        "'item_id'",
        "empty item_id",
        "Fill it in",
    )
    fails(write(tmp_path / "q.csv", HEADER + 'u,a,1\n"",a,2\n'), "row 3", "'user_id'", "empty user_id")
    fails(write(tmp_path / "t.csv", HEADER + "u,a,1\nu,a,\n"), "row 3", "empty timestamp")
    fails(
        write(tmp_path / "log.jsonl", '\n{"user_id":"u","item_id":"a","timestamp":1}\n\n{"user_id":"u"}\n'),
        "row 4",
    )
    fails(FRAME, "row 2", "'domain'", items=pl.DataFrame({"item_id": ["a", "b"], "domain": ["x", None]}))
    gap = pd.DataFrame({"user_id": [1, None], "item_id": ["a", "b"], "timestamp": [1, 2]})
    fails(gap, "'user_id'", "Float64", "text or whole numbers")


def test_rows_count_blank_ones_and_quoted_line_breaks_once(tmp_path: Path) -> None:
    text = HEADER + '"u\nv",a,1\n\n"u\n\nw",b,1\nu,c,oops\n'
    for name, content in (("log.csv", text.encode()), ("log.csv.gz", gzip.compress(text.encode()))):
        assert fails(write(tmp_path / name, content), "'oops'").row == 5


@pytest.mark.parametrize("line", ["u,a", "u,a,1,2", "u"])
def test_a_ragged_csv_row(tmp_path: Path, line: str) -> None:
    fields = line.count(",") + 1
    path = write(tmp_path / "log.csv", HEADER + f"u,a,1\nu,b,2\n{line}\nu,c,3\n")
    assert fails(path, f"{fields} fields where the header has 3").row == 4
    wide = write(tmp_path / "wide.csv", "user_id,item_id,timestamp,note\nu,a,1,x\nu,a,1\nu,a,1,\n")
    assert fails(wide, "3 fields where the header has 4").row == 3


@pytest.mark.parametrize(
    "line", ['{"user_id": "u"', "[1, 2]", "5", '{"a": 1} {"b": 2}', '{"a": NaN,}', "[" * 100_000]
)
def test_a_broken_json_line(tmp_path: Path, line: str) -> None:
    good = json.dumps({"user_id": "u", "item_id": "a", "timestamp": 1})
    error = fails(
        write(tmp_path / "log.jsonl", f"{good}\n\n{line}\n{good}\n"),
        "not a JSON object",
        "one object per line",
    )
    assert error.row == 3


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    log = HEADER.encode() + b"u,a,1\nu,caf\xe9,2\n"
    assert fails(write(tmp_path / "log.csv", log), "not UTF-8", "'item_id'", "Save it as UTF-8").row == 3
    assert fails(write(tmp_path / "log.csv.gz", gzip.compress(log)), "not UTF-8").row == 3
    lines = b'{"user_id":"u","item_id":"a","timestamp":1}\n{"user_id":"\xe9","item_id":"a","timestamp":1}\n'
    assert fails(write(tmp_path / "log.jsonl", lines), "not UTF-8").row == 2
    fails(write(tmp_path / "utf16.csv", (HEADER + "u,a,1\n").encode("utf-16")), "not UTF-8")


def test_files_that_are_missing_misnamed_or_cut_short(tmp_path: Path) -> None:
    text = (HEADER + "u,a,1\n").encode()
    long = HEADER.encode() + b"".join(b"u%d,a,1\n" % n for n in range(10_000))
    parquet = tmp_path / "good.parquet"
    FRAME.write_parquet(parquet)
    cases = [
        ("a.csv", gzip.compress(text), "holds .gz"),
        ("b.csv.gz", text, "holds text"),
        ("c.jsonl", parquet.read_bytes(), "holds .parquet"),
        ("d.parquet", text, "holds text"),
        ("e.csv", b"PK\x03\x04 and so on", ".xlsx"),
        ("f.xlsx", text, "not known"),
        ("g.parquet.gz", gzip.compress(parquet.read_bytes()), "not known"),
        ("h.csv", b'{"user_id": 1}\n', "holds JSON"),
        ("i.jsonl", text, "not a JSON object"),
        ("j.csv", b"", "empty"),
        ("k.csv", HEADER.encode(), "no interactions"),
        ("l.csv.gz", gzip.compress(long)[:-100], "cannot be read"),
        ("m.csv.zst", zstd(long)[:-100], "cannot be read"),
        ("n.jsonl.gz", gzip.compress(FRAME.write_ndjson().encode())[:-4], "cannot be read"),
        ("o.parquet", parquet.read_bytes()[:-10], "cannot be read"),
        ("p.csv.gz", gzip.compress(text)[:12], "cannot be read"),
        ("q.csv", HEADER.encode() + b'"u,a,1\nu,b,2\n', ""),
        ("r.jsonl", b"\n\n", ""),
        ("s.csv", b"\n" + text, "'user_id'"),
    ]
    for name, content, problem in cases:
        fails(write(tmp_path / name, content), str(tmp_path / name), problem)
    fails(tmp_path / "missing.csv", "no such file", "Check the path")
    fails(tmp_path, "is a folder")
    with pytest.raises(HafvtError, match="neither a path nor a data frame"):
        read_tables([1, 2], None, {})


def test_a_mixed_column_of_a_data_frame() -> None:
    frame = pd.DataFrame(
        {"user_id": pd.Series(["x", 3], dtype=object), "item_id": ["a", "b"], "timestamp": [1, 2]}
    )
    fails(frame, "'user_id'", "one type")


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.one_of(
            st.sampled_from(
                [b",", b"\n", b'"', b"\r", b"a", b"1", b"\xff", b"{", b"}", b"[", b":", b"\x1f", b"null"]
            ),
            st.sampled_from([HEADER.encode(), b'{"user_id":1,"item_id":2,"timestamp":3}\n', b"2024-01-01"]),
            st.binary(max_size=3),
        ),
        max_size=20,
    ),
    name=st.sampled_from(["log.csv", "log.jsonl", "log.csv.gz", "log.jsonl.gz"]),
)
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(parts: list[bytes], name: str) -> None:
    content = b"".join(parts)
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, gzip.compress(content) if name.endswith(".gz") else content)
        try:
            table = interactions(path)
        except InputError as error:
            message, read = str(error), pl.DataFrame()
        else:
            message, read = "", table.frame
    assert "\n" not in message
    assert bool(message) == read.is_empty()
    assert not any(column.null_count() for column in read)
