from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafvt.data.lines import read_jsonl, read_lines
from hafvt.data.schema import read_tables
from hafvt.errors import HafvtError, InputError
from tests.data.helpers import FRAME, HEADER, fails, interactions, write, zstd


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
def test_read_tables_any_file_type_gives_the_same_table(tmp_path: Path, name: str) -> None:
    assert interactions(write(tmp_path / name, WRITERS[name](FRAME))).frame.equals(FRAME)


def test_read_tables_parquet_and_data_frames_give_the_same_table(tmp_path: Path) -> None:
    FRAME.write_parquet(tmp_path / "log.parquet")
    columns = FRAME.to_dict(as_series=False)
    sources = [str(tmp_path / "log.parquet"), FRAME, FRAME.lazy(), pa.table(columns), pd.DataFrame(columns)]
    for source in sources:
        assert interactions(source).frame.equals(FRAME)


def test_row_number_counts_blank_rows_and_multiline_records_once(tmp_path: Path) -> None:
    text = HEADER + '"u\nv",a,1\n\n"u\n\nw",b,1\nu,c,oops\n'
    for name, content in (("log.csv", text.encode()), ("log.csv.gz", gzip.compress(text.encode()))):
        assert fails(write(tmp_path / name, content), "'oops'").row == 5


@pytest.mark.parametrize("line", ["u,a", "u,a,1,2", "u"])
def test_read_tables_ragged_csv_row_is_refused_with_the_row(tmp_path: Path, line: str) -> None:
    fields = line.count(",") + 1
    path = write(tmp_path / "log.csv", HEADER + f"u,a,1\nu,b,2\n{line}\nu,c,3\n")
    assert fails(path, f"{fields} fields where the header has 3").row == 4
    accumulation_dtype = write(
        tmp_path / "wide.csv", "user_id,item_id,timestamp,note\nu,a,1,x\nu,a,1\nu,a,1,\n"
    )
    assert fails(accumulation_dtype, "3 fields where the header has 4").row == 3


@pytest.mark.parametrize(
    "line", ['{"user_id": "u"', "[1, 2]", "5", '{"a": 1} {"b": 2}', '{"a": NaN,}', "[" * 100_000]
)
def test_read_tables_malformed_json_line_is_refused_with_the_row(tmp_path: Path, line: str) -> None:
    good = json.dumps({"user_id": "u", "item_id": "a", "timestamp": 1})
    error = fails(
        write(tmp_path / "log.jsonl", f"{good}\n\n{line}\n{good}\n"),
        "not a JSON object",
        "one object per line",
    )
    assert error.row == 3


def test_read_tables_text_that_is_not_utf8_is_refused_with_the_row(tmp_path: Path) -> None:
    log = HEADER.encode() + b"u,a,1\nu,caf\xe9,2\n"
    assert fails(write(tmp_path / "log.csv", log), "not UTF-8", "'item_id'", "Save it as UTF-8").row == 3
    assert fails(write(tmp_path / "log.csv.gz", gzip.compress(log)), "not UTF-8").row == 3
    lines = b'{"user_id":"u","item_id":"a","timestamp":1}\n{"user_id":"\xe9","item_id":"a","timestamp":1}\n'
    assert fails(write(tmp_path / "log.jsonl", lines), "not UTF-8").row == 2
    fails(write(tmp_path / "utf16.csv", (HEADER + "u,a,1\n").encode("utf-16")), "not UTF-8")


def test_read_tables_missing_misnamed_or_truncated_file_is_refused(tmp_path: Path) -> None:
    text = (HEADER + "u,a,1\n").encode()
    long = HEADER.encode() + b"".join(b"u%d,a,1\n" % n for n in range(10_000))
    parquet = tmp_path / "good.parquet"
    FRAME.write_parquet(parquet)
    cases = [
        ("a.csv", gzip.compress(text), "content is .gz"),
        ("b.csv.gz", text, "content is text"),
        ("c.jsonl", parquet.read_bytes(), "content is .parquet"),
        ("d.parquet", text, "content is text"),
        ("e.csv", b"PK\x03\x04 and so on", ".xlsx"),
        ("f.xlsx", text, "unknown type of file"),
        ("g.parquet.gz", gzip.compress(parquet.read_bytes()), "unknown type of file"),
        ("h.csv", b'{"user_id": 1}\n', "content is JSON"),
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
def test_read_tables_random_bytes_are_read_or_refused_in_one_line(parts: list[bytes], name: str) -> None:
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


LINES = [b"one", b"", "zwei \u00fc".encode(), b"\xff", b"x" * 500]
PACKERS: dict[str, Callable[[bytes], bytes]] = {"plain": bytes, "gz": gzip.compress, "zst": zstd}


@pytest.mark.parametrize("packer", PACKERS)
def test_read_lines_any_compression_gives_the_same_rows(tmp_path: Path, packer: str) -> None:
    content = b"\xef\xbb\xbf" + b"\r\n".join(LINES)
    path = write(tmp_path / "lines", PACKERS[packer](content))
    assert list(read_lines(path)) == list(enumerate(LINES, start=1))
    assert all(len(line) > 100 for row, line in read_lines(path, max_bytes=100) if row == 5)


def test_read_lines_reports_mebibytes_of_the_stored_file(tmp_path: Path) -> None:
    path, mib = write(tmp_path / "lines", b"0123456789abcde\n" * 2**17), []
    assert sum(1 for _ in read_lines(path, advance=mib.append)) == 2**17
    assert sum(mib) == 2


def test_read_lines_truncated_file_is_refused_with_the_row(tmp_path: Path) -> None:
    path = write(tmp_path / "lines.gz", gzip.compress(b"a\n" * 10**6)[:-9])
    with pytest.raises(InputError, match="it cannot be read") as caught:
        list(read_lines(path))
    assert caught.value.row is not None


@pytest.mark.parametrize("packer", PACKERS)
def test_read_jsonl_wrong_line_is_refused_with_the_row(tmp_path: Path, packer: str) -> None:
    for wrong, problem in ((b"[1]", "not a JSON object"), (b'{"a": "\xff"}', "not UTF-8")):
        path = write(tmp_path / "log", PACKERS[packer](b'{"a": 1}\n \n' + wrong + b"\n"))
        rows = read_jsonl(path)
        assert next(rows) == (1, {"a": 1})
        with pytest.raises(InputError, match=problem) as caught:
            next(rows)
        assert caught.value.row == 3
    path = write(tmp_path / "long", PACKERS[packer](b'{"a": 1}\n{"a": 12345678}\n'))
    with pytest.raises(InputError, match="a line of more than 10 bytes"):
        list(read_jsonl(path, max_bytes=10))
