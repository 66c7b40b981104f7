"""Histories in files are read, or refused in one line that names file, row, field and remedy."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hafvt.data.table_options import Quoting, TableOptions
from hafvt.errors import HafvtError, InputError
from hafvt.inference import histories
from hafvt.inference.histories import HistoryRequest, read_requests, read_user_history
from tests.data.helpers import write, zstd

DEFAULTS = HistoryRequest(None, [], "d0", 10, ["x"])


def read_twice(
    source: Any,
    defaults: HistoryRequest = DEFAULTS,
    *,
    strip: bool = False,
    quoting: Quoting = "auto",
    **columns: str,
) -> list[HistoryRequest]:
    """Returns the requests of a source, after checking that a second pass yields the same."""
    requests = read_requests(
        source, defaults, ("d0", "d1"), columns, TableOptions(quoting=quoting, strip=strip)
    )
    first = list(requests())
    assert list(requests()) == first
    return first


def lines(*values: object) -> str:
    return "".join(f"{value if isinstance(value, str) else json.dumps(value)}\n" for value in values)


def fails(source: Any, *parts: str, defaults: HistoryRequest = DEFAULTS) -> InputError:
    with pytest.raises(InputError) as caught:
        read_twice(source, defaults)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 500
    for part in parts:
        assert part in message
    return caught.value


def test_read_requests_jsonl_line_without_fields_gets_defaults(tmp_path):
    text = lines(
        {"user_id": 7, "history": ["a", 7, "007"]},
        "",
        {"history": [], "domain": "d1", "k": 3, "exclude": ["y"], "note": [1.5]},
        {"user_id": None, "history": ["é", " a"], "domain": None, "k": None, "exclude": None},
    )
    expected = [
        HistoryRequest("7", ["a", "7", "007"], "d0", 10, ["x"]),
        HistoryRequest(None, [], "d1", 3, ["x", "y"]),
        HistoryRequest(None, ["é", " a"], "d0", 10, ["x"]),
    ]
    contents = {
        "h.jsonl": text.encode(),
        "windows.ndjson": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "h.jsonl.gz": gzip.compress(text.encode()),
        "h.jsonl.zst": zstd(text.encode()),
        "bom.jsonl.zst": zstd(b"\xef\xbb\xbf" + text.encode()),
        "open.jsonl": text.rstrip().encode(),
    }
    for name, content in contents.items():
        assert read_twice(write(tmp_path / name, content)) == expected, name


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"history": ["a"', ["not a JSON object"]),
        ('["a"]', ["not a JSON object"]),
        ('{"history": ' + "[" * 100_000, ["not a JSON object"]),
        ('{"history": [' + "1" * 5_000 + "]}", ["not a JSON object"]),
        ({"histories": ["a"]}, ["'history'", "not a list of ids"]),
        ({"history": "a"}, ["'history'", "not a list of ids"]),
        ({"history": {"a": 1}}, ["'history'", "not a list of ids"]),
        ({"history": ["a", ["b"]]}, ["'history'", "cannot be of type list"]),
        ({"history": ["a", None]}, ["cannot be of type NoneType"]),
        ({"history": [1.0]}, ["cannot be of type float"]),
        ('{"history": [NaN]}', ["cannot be of type float", "whole numbers"]),
        ({"history": [True]}, ["cannot be of type bool"]),
        ({"history": ["a", ""]}, ["an empty id"]),
        ('{"history": ["\\ud800"]}', ["not Unicode text"]),
        ({"history": ["a", " "]}, ["an empty id"]),
        ({"history": ["a"], "user_id": ["u"]}, ["'user_id'", "cannot be of type list"]),
        ({"history": ["a"], "user_id": ""}, ["'user_id'", "an empty id"]),
        ({"history": ["a"], "exclude": "b"}, ["'exclude'", "not a list of ids"]),
        ({"history": ["a"], "domain": "d2"}, ["'domain'", "'d2'", "no such domain", "d0, d1"]),
        ({"history": ["a"], "domain": ["d0"]}, ["'domain'", "no such domain"]),
        ({"history": ["a"], "k": 0}, ["'k'", "from 1 on"]),
        ({"history": ["a"], "k": 2.0}, ["'k'"]),
        ({"history": ["a"], "k": True}, ["'k'"]),
        ({"history": ["a"] * 10_000 + [None]}, ["NoneType"]),
        ('{"history": ["a"], "history": ["b"]}', ["'history'", "has this field twice"]),
        ('{"history": ["a"], "k": 1, "\\u006b": 2}', ["'k'", "has this field twice"]),
    ],
)
def test_read_requests_wrong_line_raises_error_with_row(tmp_path, line, parts):
    path = write(tmp_path / "h.jsonl", lines({"history": ["a"]}, "", line, {"history": ["a"]}))
    assert fails(path, "h.jsonl", "row 3", *parts).row == 3


def test_read_requests_damaged_file_raises_error(tmp_path):
    good = lines(*({"history": [f"i{n}"]} for n in range(3000))).encode()
    bad = lines({"history": ["a"]}, "").encode() + b'{"history": ["\xff"]}\n'
    for name, content in {"a.jsonl": bad, "a.jsonl.gz": gzip.compress(bad), "a.jsonl.zst": zstd(bad)}.items():
        assert fails(write(tmp_path / name, content), "not UTF-8 text", "Save it as UTF-8").row == 3
    fails(write(tmp_path / "b.jsonl.gz", gzip.compress(good)[:-100]), "cannot be read")
    fails(write(tmp_path / "b.jsonl.zst", zstd(good)[:-50]), "cannot be read")
    fails(write(tmp_path / "c.jsonl", b""), "empty")
    fails(write(tmp_path / "d.jsonl", b"\n\n"), "no column 'user_id'")
    fails(tmp_path / "no.jsonl", "no such file")
    fails(write(tmp_path / "e.jsonl", lines({"items": ["a"]})), "no column 'user_id'")


def test_read_requests_huge_line_raises_error_with_row(tmp_path, monkeypatch):
    monkeypatch.setattr(histories, "MAX_LINE_BYTES", 100)
    for name, pack in {"h.jsonl": bytes, "h.jsonl.gz": gzip.compress, "h.jsonl.zst": zstd}.items():
        text = lines({"history": ["a"]}, {"history": ["a" * 1000]}).encode()
        assert fails(write(tmp_path / name, pack(text)), "more than 100 bytes", "Shorten").row == 2


def test_read_requests_without_domain_raises_error(tmp_path):
    path = write(tmp_path / "h.jsonl", lines({"history": ["a"], "domain": "d1"}, {"history": ["b"]}))
    assert fails(path, "no domain", "--domain", defaults=DEFAULTS._replace(domain="")).row == 2
    log = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    with pytest.raises(HafvtError, match="--domain, one of d0, d1"):
        read_twice(log, DEFAULTS._replace(domain=""))


LOG = pl.DataFrame(
    {
        "user_id": ["9", "010", "9", "9", "010"],
        "item_id": ["007", "b", "c", "7", "a"],
        "timestamp": [5, 2, 1, 5, 1],
    }
)


def test_read_requests_table_groups_interactions_by_user_and_time(tmp_path):
    expected = [DEFAULTS._replace(user_id="9", history=["c", "007", "7"])]
    expected += [DEFAULTS._replace(user_id="010", history=["a", "b"])]
    LOG.write_parquet(tmp_path / "log.parquet")
    files = {
        "log.csv": LOG.write_csv().encode(),
        "log.csv.gz": gzip.compress(LOG.write_csv().encode()),
        "log.jsonl": LOG.write_ndjson().encode(),
        "log.jsonl.zst": zstd(LOG.write_ndjson().encode()),
    }
    paths = [write(tmp_path / name, content) for name, content in files.items()]
    for source in [LOG, tmp_path / "log.parquet", *paths]:
        assert read_twice(source) == expected
    assert read_twice(LOG.rename({"user_id": "who"}), user_id="who") == expected
    fails(write(tmp_path / "bad.csv", "user_id,item_id,timestamp\nu,,1\n"), "an empty item_id", "row 2")


def test_read_requests_reads_quotes_and_blanks_as_prepare_does(tmp_path):
    path = write(tmp_path / "log.csv", 'user_id,item_id,timestamp\n"u,a \u200b,1\n"u, 5" b,2\n')
    (request,) = read_twice(path, quoting="none", strip=True)
    assert (request.user_id, request.history) == ('"u', ["a", '5" b'])
    path = write(tmp_path / "h.jsonl", lines({"user_id": " u", "history": ["a ", 7], "exclude": ["b\u200b"]}))
    assert read_twice(path, strip=True) == [HistoryRequest("u", ["a", "7"], "d0", 10, ["x", "b"])]
    assert read_twice(path)[0].history == ["a ", "7"]


def test_read_requests_time_of_a_line_is_read_as_an_option_is(tmp_path):
    day = 1_798_070_400
    times = ["24/12/2026", "2026-12-24T00:00Z", day, None]
    path = write(tmp_path / "h.jsonl", lines(*({"history": ["a"], "time": time} for time in times)))
    options = TableOptions(time_format="%d/%m/%Y", time_zone="Europe/Berlin")
    requests = read_requests(path, DEFAULTS._replace(time=5), ("d0",), options=options)
    assert [request.time for request in requests()] == [day - 3600, day, day, 5]
    fails(
        write(tmp_path / "h.jsonl", lines({"history": [], "time": 2024})),
        "row 1, column 'time', value '2024': '2024' is no time of a request. Give a date of 1973",
    )


@pytest.mark.parametrize("kind", [pl.DataFrame, pd.DataFrame, pa.table])
def test_read_requests_frame_of_histories_is_refused_with_the_remedy(kind):
    frame = kind({"user_id": ["u", "v"], "history": [["a", "b"], ["c"]]})
    with pytest.raises(HafvtError, match=r"^the data frame has a column 'history': pass its lists"):
        read_twice(frame)


def test_read_requests_jsonl_with_columns_raises_error(tmp_path):
    with pytest.raises(HafvtError, match="--columns"):
        read_twice(write(tmp_path / "h.jsonl", lines({"history": []})), user_id="who")


def test_history_of_user_returns_all_item_ids(small):
    stop = int(small.offsets[6])
    expected = [f"i{n}" for n in small.items[small.offsets[5] : stop]]
    assert (
        read_user_history("nowhere", "u5", small)
        == read_user_history("nowhere", "u5", small.folder)
        == expected
    )
    with pytest.raises(HafvtError, match="no user 'U5'"):
        read_user_history("nowhere", "U5", small)


ids = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), min_size=1).map(
    "i".__add__
)
one = st.fixed_dictionaries(
    {"history": st.lists(ids | st.integers())},
    optional={
        "user_id": ids | st.none(),
        "domain": st.sampled_from(["d0", "d1", None]),
        "k": st.integers(1) | st.none(),
        "exclude": st.lists(ids),
    },
)


packs = st.sampled_from([("", bytes), (".gz", gzip.compress), (".zst", zstd)])


@settings(max_examples=60, deadline=None)
@given(objects=st.lists(one, min_size=1, max_size=5), ascii=st.booleans(), packed=packs)
def test_read_requests_any_histories_round_trip(objects, ascii, packed):
    text = "".join(json.dumps(value, ensure_ascii=ascii) + "\n" for value in objects).encode()
    suffix, pack = packed
    with tempfile.TemporaryDirectory() as folder:
        requests = read_twice(write(Path(folder) / f"h.jsonl{suffix}", pack(text)))
    for value, request in zip(objects, requests, strict=True):
        assert request.history == [str(item) for item in value["history"]]
        assert request.user_id == value.get("user_id")
        assert request.domain == (value.get("domain") or "d0")
        assert request.k == (value.get("k") or 10)
        assert request.exclude == ["x", *value.get("exclude", [])]


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from([b"\n", b"\r", b"\xff", b"{", b"}", b"[", b"]", b",", b'"', b"\x1f", b"\xef\xbb\xbf"])
        | st.sampled_from([b'"history":', b'"a"', b"1", b"NaN", b"null", b'{"history":["a"]}\n', b'"k":1'])
        | st.binary(max_size=3),
        max_size=20,
    ),
    packed=packs,
)
def test_read_requests_any_bytes_are_read_or_refused_in_one_line(parts, packed):
    content = b'{"history":[]}\n' + b"".join(parts)
    suffix, pack = packed
    message, requests = "row", []
    with tempfile.TemporaryDirectory() as folder:
        try:
            requests = read_twice(write(Path(folder) / f"h.jsonl{suffix}", pack(content)))
        except InputError as error:
            message = str(error)
    assert "\n" not in message
    assert "row" in message
    assert all(isinstance(item, str) and item for request in requests for item in request.history)
