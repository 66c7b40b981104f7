from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from hafvt.data.schema import read_tables
from hafvt.data.table_options import TableOptions
from hafvt.errors import HafvtError
from tests.data.helpers import FRAME, HEADER, fails, interactions, write


def test_read_tables_ids_are_text(tmp_path: Path) -> None:
    lines = '{"user_id":7,"item_id":"007","timestamp":1}\n{"user_id":"7","item_id":7,"timestamp":2}\n'
    table = interactions(write(tmp_path / "log.jsonl", lines)).frame
    assert table["user_id"].to_list() == ["7", "7"]
    assert table["item_id"].to_list() == ["007", "7"]
    numbers = pl.DataFrame(
        {"user_id": [1, 2], "item_id": pl.Series(["a", "b"], dtype=pl.Categorical), "timestamp": [1, 2]}
    )
    assert interactions(numbers).frame.select("user_id", "item_id").rows() == [("1", "a"), ("2", "b")]


def test_read_tables_columns_are_mapped_and_others_of_items_kept(tmp_path: Path) -> None:
    log = write(tmp_path / "log.csv", "when;who;rating;item_id\n5;u;x;a\n")
    items = write(tmp_path / "items.csv", "asin,title,price\na,,3\nb,An item,4\n")
    columns = {"user_id": "who", "timestamp": "when", "item_id": "asin"}
    table, catalog = read_tables(log, items, columns)
    assert table.frame.rows(named=True) == [{"user_id": "u", "item_id": "a", "timestamp": 5}]
    assert catalog is not None
    assert catalog.frame.rows(named=True) == [
        {"item_id": "a", "title": None, "price": 3},
        {"item_id": "b", "title": "An item", "price": 4},
    ]


def test_read_tables_wrong_column_map_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HafvtError, match=r"'uid' is not a column of hafvt.*user_id"):
        read_tables(FRAME, None, {"uid": "user_id"})
    with pytest.raises(HafvtError, match=r"no table has a column 'name' for title"):
        read_tables(FRAME, FRAME, {"title": "name"})
    error = fails(write(tmp_path / "log.csv", "a,b\n1,2\n"), "'user_id'", "a, b", "--columns user_id=NAME")
    assert error.file == tmp_path / "log.csv"
    fails(write(tmp_path / "log.jsonl", '{"user_id": 1, "x": 2}\n'), "'item_id'", "user_id, x")
    fails(FRAME.drop("timestamp"), "data frame", "'timestamp'")
    fails(write(tmp_path / "twice.csv", "user_id,item_id,timestamp,user_id\n1,2,3,4\n"), "twice", "'user_id'")


@pytest.mark.parametrize(
    ("values", "stored"),
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
def test_read_tables_times_become_seconds(values: Any, stored: list[float]) -> None:
    ids = ["x"] * len(values)
    table = interactions(pl.DataFrame({"user_id": ids, "item_id": ids, "timestamp": values}))
    assert table.frame["timestamp"].to_list() == [time * table.ticks_per_second for time in stored]


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
def test_read_tables_value_that_is_not_a_time_is_refused_with_the_row(tmp_path: Path, bad: str) -> None:
    good = "2024-01-01" if "-" in bad or ":" in bad or "T" in bad else "5"
    text = HEADER + f"u,a,{good}\n" * 3 + f"u,b,{bad}\nu,a,{good}\n"
    error = fails(
        write(tmp_path / "log.csv", text), "row 5", "'timestamp'", repr(bad), "not a time", "2024-12-31"
    )
    assert (error.row, error.column, error.value) == (5, "timestamp", bad)


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf"), 1e300])
def test_read_tables_float_that_is_not_a_time_is_refused(bad: float | None) -> None:
    frame = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a"] * 3, "timestamp": [1.5, 2.5, bad]})
    assert fails(frame, "data frame", "'timestamp'").row == 3
    assert fails(frame.with_columns(timestamp=pl.lit(True)), "'timestamp'").row == 1


def test_read_tables_empty_id_is_refused_with_the_row(tmp_path: Path) -> None:
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


def test_read_tables_column_of_mixed_types_is_refused() -> None:
    frame = pd.DataFrame(
        {"user_id": pd.Series(["x", 3], dtype=object), "item_id": ["a", "b"], "timestamp": [1, 2]}
    )
    fails(frame, "'user_id'", "one type")


def test_read_tables_frame_with_integer_columns_names_them() -> None:
    frame = pd.DataFrame([["u", "a", 1]])
    fails(frame, "no column 'user_id' among 0, 1, 2", "--columns user_id=NAME")
    columns = {"user_id": "0", "item_id": "1", "timestamp": "2"}
    assert interactions(frame, **columns).frame.rows() == [("u", "a", 1)]


def test_read_tables_frame_with_repeated_columns_is_read_if_they_are_unused() -> None:
    names = ["user_id", "item_id", "timestamp", "x", "x"]
    frames = [
        pd.DataFrame([["u", "a", 1, 2, 3]], columns=names),
        pa.table([["u"], ["a"], [1], [2], [3]], names=names),
    ]
    for frame in frames:
        assert interactions(frame).frame.rows() == [("u", "a", 1)]
    fails(frames[0].rename(columns={"x": "item_id"}), "'item_id'", "this column twice", "Rename one")


@pytest.mark.parametrize(
    "ids",
    [
        pd.Categorical([1, 22]),
        pd.Categorical(["1", "22"]),
        pd.Series(["1", "22"], dtype="string"),
        pd.Series([1, 22], dtype="Int64"),
        np.array([1, 22], dtype=np.uint64),
        np.array([b"1", b"22"]),
        [Decimal(1), Decimal(22)],
    ],
)
def test_read_tables_ids_of_any_type_become_text(ids: Any) -> None:
    frame = pd.DataFrame({"user_id": ids, "item_id": ["a", "b"], "timestamp": [1, 2]})
    assert interactions(frame).frame["user_id"].to_list() == ["1", "22"]


@pytest.mark.parametrize(
    "ids",
    [
        [1.0, 2.0],
        [True, False],
        [[1], [2]],
        pd.to_datetime(["2024-01-01", "2024-01-02"]),
        pd.period_range("2024-01", periods=2, freq="M"),
        [UUID(int=2**127), UUID(int=3)],
        pd.Series([2**70, 1], dtype=object),
    ],
)
def test_read_tables_ids_of_other_types_are_refused(ids: Any) -> None:
    fails(pd.DataFrame({"user_id": ids, "item_id": ["a", "b"], "timestamp": [1, 2]}), "'user_id'")


@pytest.mark.parametrize("blank", ["  ", "\u00a0", "\u200b", "\ufeff"])
def test_read_tables_blank_id_is_missing(tmp_path: Path, blank: str) -> None:
    path = write(tmp_path / "log.csv", HEADER + f"u,a,1\nu,{blank},2\n")
    assert fails(path, "'item_id'", "an empty item_id").row == 3


def test_read_tables_strip_removes_what_cannot_be_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "log.csv", HEADER + "u ,\u200ba,1\nu, a,2\n")
    assert interactions(path).frame["user_id"].to_list() == ["u ", "u"]
    table, _ = read_tables(path, None, {}, TableOptions(strip=True))
    assert table.frame.rows() == [("u", "a", 1), ("u", "a", 2)]


@pytest.mark.parametrize(
    "times",
    [
        pl.Series([["a"]]),
        pl.Series([[1]], dtype=pl.Array(pl.Int64, 1)),
        pl.Series([{"a": 1}]),
        pl.Series([object()], dtype=pl.Object),
    ],
)
def test_read_tables_nested_times_are_refused(times: pl.Series) -> None:
    fails(pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": times}), "row 1", "not a time")


def test_read_tables_least_integer_is_a_time() -> None:
    times = pl.DataFrame({"user_id": ["u"] * 2, "item_id": ["a"] * 2, "timestamp": [-(2**63), 1]})
    assert interactions(times).frame["timestamp"].to_list() == [-(2**63), 1]


def test_read_tables_types_that_polars_cannot_read_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    times = pa.array([1], pa.decimal256(40, 0))
    fails(pa.table({"user_id": ["u"], "item_id": ["a"], "timestamp": times}), "'timestamp'", "cannot be read")
    query = pl.LazyFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": ["1"]})
    fails(query.with_columns(pl.col("timestamp").str.to_date("%Y")), "cannot be read", "Correct the query")
    fails(query.select("nothing"), "cannot be read", "Correct the query")
    assert capfd.readouterr().err == ""


def test_a_few_times_outside_of_the_years_of_dates_are_reported(capsys):
    dates = ["2024-03-01", "2024-04-01", "1970-01-01"]
    frame = pl.DataFrame({"user_id": ["a"] * 3, "item_id": ["x", "y", "z"], "timestamp": dates})
    read_tables(frame, None, {})
    assert "1 of 3 times, such as '1970-01-01', are before March 1973" in capsys.readouterr().err
    read_tables(frame[:2], None, {})
    read_tables(frame.with_columns(timestamp=pl.Series([1, 2, 3])), None, {})
    assert "March 1973" not in capsys.readouterr().err
