from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafvt.data import raw_frames, readers
from hafvt.data.lines import read_jsonl, read_lines
from hafvt.data.schema import read_tables
from hafvt.data.table_options import TableOptions
from hafvt.errors import HafvtError, HafvtWarning, InputError
from tests.data.helpers import FRAME, HEADER, PACKERS, WRITERS, fails, interactions, write, zstd


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
    for log in (b"u,\xc3\xa9,1\nu,caf\xe9,2\n", b"u,a,1\nu,\xff,2\n"):  # a damaged file; no letter of cp1252
        log = HEADER.encode() + log
        assert fails(write(tmp_path / "log.csv", log), "not UTF-8", "'item_id'", "Save it as UTF-8").row == 3
        assert fails(write(tmp_path / "log.csv.gz", gzip.compress(log)), "not UTF-8").row == 3
    lines = b'{"user_id":"u","item_id":"a","timestamp":1}\n{"user_id":"\xe9","item_id":"a","timestamp":1}\n'
    assert fails(write(tmp_path / "log.jsonl", lines), "not UTF-8").row == 2
    fails(write(tmp_path / "utf16.csv", (HEADER + "u,a,1\n").encode("utf-16-le")), "not UTF-8")


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


def items_of_csv(path: Path, **settings: Any) -> list[Any]:
    return read_tables(path, None, {}, TableOptions(**settings))[0].frame["item_id"].to_list()


STRAY_QUOTES = [
    ('u,5" TV,1\n', '5" TV'),
    ('u,"Weird Al" live,1\n', "Weird Al live"),
    ('u,a"b"c,1\n', 'a"b"c'),
    ('u,"say ""x""",1\n', 'say "x"'),
    ('u,"a,b",1\n', "a,b"),
    ('u,"a\nb",1\n', "a\nb"),
    ('u,"a\x1fb",1\n', "a\x1fb"),
]


@pytest.mark.parametrize(("line", "item"), STRAY_QUOTES)
@pytest.mark.parametrize("packer", [bytes, gzip.compress, zstd])
def test_read_tables_quotes_are_read_as_python_and_pandas_read_them(
    tmp_path: Path, line: str, item: str, packer: Callable[[bytes], bytes]
) -> None:
    ending = {bytes: "", gzip.compress: ".gz", zstd: ".zst"}[packer]
    path = write(
        tmp_path / f"log.csv{ending}", packer((HEADER + "u,first,1\n" + line + "u,last,3\n").encode())
    )
    assert items_of_csv(path) == ["first", item, "last"]
    if packer != zstd:
        assert pd.read_csv(path)["item_id"].to_list() == ["first", item, "last"]


def test_read_tables_quotes_of_a_tsv_are_text_by_default(tmp_path: Path) -> None:
    header = HEADER.replace(",", "\t")
    path = write(tmp_path / "log.tsv", header + 'u\t"a\t1\nu\tb\t2\nu\tc"\t3\n')
    assert items_of_csv(path) == ['"a', "b", 'c"']
    path = write(tmp_path / "quoted.tsv", header + 'u\t"a"\t1\n')
    with pytest.warns(HafvtWarning, match="'item_id': 1 values are in quotes.*--quoting standard"):
        assert items_of_csv(path) == ['"a"']
    assert items_of_csv(path, quoting="standard") == ["a"]
    path = write(tmp_path / "all.tsv", '"user_id"\t"item_id"\t"timestamp"\n"u"\t"a"\t"1"\n')
    assert items_of_csv(path) == ["a"]


def test_read_tables_quote_over_rows_is_warned_of_or_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", HEADER + 'u,b,1\nu,"a,1\nu,b,2\nu,c",3\nu,d,4\n')
    with pytest.warns(HafvtWarning, match=r"log.csv: 1 quoted fields .* first in row 3: .*--quoting none"):
        assert len(items_of_csv(path)) == 3
    assert items_of_csv(path, quoting="none") == ["b", '"a', "b", 'c"', "d"]
    path = write(tmp_path / "open.csv", HEADER + 'u,b,1\nu,"a,1\nu,b,2\n')
    error = fails(path, "a quote opens in this row and never closes", "--quoting none")
    assert (error.row, error.column) == (3, "item_id")
    path = write(tmp_path / "long.csv", HEADER + 'u,b,1\nu,"a' + "b\n" * 100_000)
    assert fails(path, "--quoting none").row == 3


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("end", ["\r", "\r\r\n", "\n\r"])
def test_read_tables_csv_with_other_line_ends_is_read_as_python_reads_it(
    tmp_path: Path, end: str, packer: str
) -> None:
    ending = {"plain": "", "gz": ".gz", "zst": ".zst"}[packer]
    text = "item_id,timestamp,user_id\na,1,u\nb,2,u\n".replace("\n", end)
    table = interactions(write(tmp_path / f"log.csv{ending}", PACKERS[packer](text.encode()))).frame
    assert table.rows() == [("u", "a", 1), ("u", "b", 2)]


def test_read_tables_csv_with_one_carriage_return_alone_ends_a_row_there(tmp_path: Path) -> None:
    assert items_of_csv(write(tmp_path / "a.csv", HEADER + "u,a,1\ru,b,2\nu,c,3\n")) == ["a", "b", "c"]
    assert items_of_csv(write(tmp_path / "b.csv", HEADER + 'u,"a\rb",1\nu,c,3\n')) == ["a\rb", "c"]
    assert fails(write(tmp_path / "c.csv", HEADER + "u,a\rb,1\nu,c,3\n"), "2 fields where").row == 2


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        ("item_id", '["a"]', "a list in place of text"),
        ("item_id", '{"a": 1}', "an object in place of text"),
        ("user_id", "true", "true or false in place of text"),
        ("user_id", "1.0", "a fraction in place of text"),
        ("user_id", "1e3", "a fraction in place of text"),
        ("domain", "[]", "a list in place of text"),
        ("user_id", '"\\ud800"', "half a surrogate pair"),
        ("item_id", '" "', "an empty item_id"),
        ("item_id", "NaN", "an empty item_id"),
        ("timestamp", "true", "not a time"),
        ("timestamp", "[1]", "not a time"),
        ("timestamp", "Infinity", "not a time"),
    ],
)
def test_read_tables_jsonl_value_of_another_type_is_refused_with_the_row(
    tmp_path: Path, field: str, value: str, problem: str
) -> None:
    good = {"user_id": '"u"', "item_id": '"a"', "timestamp": "1", "domain": '"x"'}
    lines = [
        "{" + ", ".join(f'"{name}": {text}' for name, text in fields.items()) + "}\n"
        for fields in (good, good | {field: value}, good)
    ]
    for name, content in (
        ("log.jsonl", "".join(lines).encode()),
        ("log.jsonl.zst", zstd("".join(lines).encode())),
    ):
        error = fails(write(tmp_path / name, content), problem, f"'{field}'")
        assert error.row == 2


@pytest.mark.parametrize("field", ["title", "image"])
def test_read_tables_jsonl_content_of_another_type_is_refused(tmp_path: Path, field: str) -> None:
    items = write(tmp_path / "items.jsonl", f'{{"item_id": "a"}}\n{{"item_id": "b", "{field}": ["x"]}}\n')
    assert fails(FRAME, "a list in place of text", f"'{field}'", items=items).row == 2


def test_read_tables_jsonl_nan_is_null_and_numbers_are_digits(tmp_path: Path) -> None:
    line = {"user_id": 2**70, "item_id": "\U0001f600", "timestamp": 1.5, "domain": float("nan")}
    path = write(
        tmp_path / "log.jsonl",
        f'{json.dumps(line)}\n{{"note": NaN, "user_id": 7, "item_id": "[x]", "timestamp": 2, "domain": 3}}\n',
    )
    fails(path, "row 1", "an empty domain")
    path = write(tmp_path / "log.jsonl", path.read_text().replace('"domain"', '"other"'))
    assert interactions(path).frame.rows() == [(str(2**70), "\U0001f600", 1.5), ("7", "[x]", 2.0)]


CELLS = st.text(st.sampled_from('a"\n\r,;\u00e9\u2028 '), max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    rows=st.lists(st.lists(CELLS, min_size=3, max_size=3), min_size=1, max_size=6),
    header=st.sampled_from(["user_id,item_id,note", 'user_id,"item_id",note', "item_id,user_id,note"]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_read_columns_fast_paths_read_what_the_csv_module_reads(
    rows: list[list[str]], header: str, end: str
) -> None:
    names = ["user_id", "item_id", "note"]
    text = "\n".join([header, *(",".join(row) for row in rows)]) + end

    def read(path: Path) -> list[tuple[Any, ...]] | str:
        try:
            return readers.read_columns(path, names).frame.select(pl.all().fill_null("")).rows()
        except InputError as error:
            return str(error)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "warn", lambda message: None)
        path = write(Path(folder) / "log.csv", text)
        fast = read(path)
        patch.setattr(readers, "first_that_reads", lambda frames: raw_frames.first_that_reads(frames[-1:]))
        assert fast == read(path)


def test_read_tables_stray_quotes_do_not_need_the_slow_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readers, "ROWS_PER_CHUNK", 2)
    monkeypatch.setattr(readers, "_csv_rows", lambda *arguments: pytest.fail("read row by row"))
    lines = [line for line, _ in STRAY_QUOTES if line.count("\n") == 1]
    items = [item for line, item in STRAY_QUOTES if line.count("\n") == 1]
    path = write(tmp_path / "log.csv", HEADER + "u,first,1\n\n" + "".join(lines) + "u,last,3\n")
    assert items_of_csv(path) == ["first", *items, "last"]


@pytest.mark.parametrize("name", ["user_id", "größe"])
@pytest.mark.parametrize("packer", PACKERS)
def test_read_tables_jsonl_field_given_twice_is_refused_with_the_row(
    tmp_path: Path, name: str, packer: str
) -> None:
    good = f'{{"{name}": "u", "item_id": "a", "timestamp": 1, "note": {{"item_id": 3}}, "note": 4}}\n'
    for twice in (f'"{name}": "v"', f'{json.dumps(name)}: "v"', f'"\\u00{ord(name[0]):02x}{name[1:]}": "v"'):
        wrong = good.replace('"note": 4', twice)
        ending = {"plain": "", "gz": ".gz", "zst": ".zst"}[packer]
        path = write(tmp_path / f"log.jsonl{ending}", PACKERS[packer](f"{good}\n{wrong}".encode()))
        assert fails(path, "the line has this field twice", f"'{name}'", user_id=name).row == 3
    path = write(tmp_path / "log.jsonl", good)
    assert interactions(path, user_id=name).frame.rows() == [("u", "a", 1)]
