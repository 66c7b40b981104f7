from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from hafvt.data.prepare import prepare
from hafvt.data.schema import read_interactions
from hafvt.data.table_options import TableOptions
from hafvt.errors import HafvtWarning
from tests.data.helpers import fails, interactions, log_of

NANOSECONDS = ["2024-01-01T00:00:00.000000003", "2024-01-01T00:00:00.000000001"]


def with_times(times: Any) -> pd.DataFrame:
    ids = ["u"] * len(times)
    return pd.DataFrame({"user_id": ids, "item_id": ["a", "b", "c", "d"][: len(ids)], "timestamp": times})


@pytest.mark.parametrize(
    "times",
    [
        np.array(NANOSECONDS, dtype="datetime64[ns]"),
        NANOSECONDS,
        ["1704067200.000000003", "1704067200.000000001"],
        [Decimal("1704067200.000000003"), Decimal("1704067200.000000001")],
        [1_704_067_200_000_000_003, 1_704_067_200_000_000_001],
        ["1704067200000000003", "1704067200000000001"],
    ],
)
def test_prepare_times_that_differ_by_nanoseconds_stay_in_order(tmp_path: Path, times: Any) -> None:
    data = prepare(with_times(times), None, tmp_path / "out")
    items = data.item_table["item_id"].gather(np.asarray(data.items))
    assert items.to_list() == ["b", "a"]
    assert data.manifest["ties"]["tied_pairs"] == 0
    assert data.times[0] in (1_704_067_200, 1_704_067_200_000_000_001)


@pytest.mark.parametrize(
    ("times", "row"),
    [
        (np.array([1.0, 1.7e9], dtype=np.float32), 2),
        (np.array([1.0, 1.7e18]), 2),
        (["1700000000000000001", "1700000000000000002.5"], 1),
    ],
)
def test_read_tables_times_that_lost_digits_are_refused(times: Any, row: int) -> None:
    assert fails(with_times(times), "'timestamp'", "lose digits as Float", "Give whole numbers").row == row


def test_read_tables_jsonl_float_among_nanoseconds_is_refused(tmp_path: Path) -> None:
    for value in ("1700000000000000002.5", "1.7e18"):
        lines = [
            f'{{"user_id":"u","item_id":"a","timestamp":{time}}}\n'
            for time in ("1700000000000000001", value, "1700000000000000003")
        ]
        (tmp_path / "log.jsonl").write_text("".join(lines))
        fails(tmp_path / "log.jsonl", "'timestamp'", "lose digits")


def test_read_tables_small_float32_times_are_taken() -> None:
    times = np.array([1.5, 2**24], dtype=np.float32)
    assert interactions(with_times(times)).frame["timestamp"].to_list() == [1.5, 2**24]


@pytest.mark.parametrize("dtype", [np.int64, np.float64, str])
def test_read_tables_numbers_of_a_time_format_are_dates(dtype: type) -> None:
    times = pd.Series([20_261_224, 20_261_225]).astype(dtype)
    options = TableOptions(time_format="%Y%m%d", time_zone="Europe/Berlin")
    table = read_interactions(with_times(times), {}, options)
    assert table.frame["timestamp"].to_list() == [1_798_070_400 - 3600, 1_798_070_400 + 86_400 - 3600]


@pytest.mark.parametrize("factor", [10**3, 10**6, 10**9])
@pytest.mark.parametrize("dtype", [np.int64, np.float64, str])
def test_read_tables_times_in_two_units_are_refused(factor: int, dtype: type) -> None:
    if factor == 10**9 and dtype is np.float64:
        pytest.skip("such floats lose digits")
    times = np.array([1_700_000_000, 1_600_000_000, 1_700_000_000 * factor, 0]).astype(dtype)
    error = fails(with_times(times), "'timestamp'", "and most in seconds", "all times in one unit")
    assert error.row == 3


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01", "9999-12-31"],
        ["2024-01-01 10:00:00.5", "9999-12-31 23:59:59"],
        ["31.12.2024", "08.08.8888"],
        [date(2024, 1, 1), date(9999, 12, 31)],
        [1_700_000_000, 253_402_300_799],
        [1_700_000_000_000, 253_402_214_400_000],
    ],
)
def test_read_tables_date_of_year_9999_is_called_a_placeholder(times: list[Any]) -> None:
    frame = pl.DataFrame({"user_id": "u", "item_id": ["a", "b", "c"], "timestamp": [times[0], *times]})
    assert fails(frame, "'timestamp'", "this date seems to be a placeholder. Give the time of").row == 3


def test_read_tables_counters_of_any_size_are_taken() -> None:
    times = [10**n for n in (8, 9, 10, 11)]
    assert interactions(with_times(times)).frame["timestamp"].to_list() == times


def test_prepare_domains_with_times_of_other_scales_are_warned_of(tmp_path: Path) -> None:
    log = log_of(*[(user, item, time) for user in "uv" for item, time in (("a", 20), ("b", 21_000))])
    domains = log.with_columns(domain=pl.col("item_id").replace({"a": "tea", "b": "cups"}))
    with pytest.warns(HafvtWarning, match=r"'cups' are about 1,050 times those of domain 'tea'.*one unit"):
        prepare(domains, None, tmp_path / "out")


@pytest.mark.parametrize(
    "times",
    [
        pd.Categorical(["2024-02-29", "2024-03-01"]),
        pd.Categorical(["1709164800", "1709251200"]),
        pd.Series(pd.to_datetime(["2024-02-29", "2024-03-01"])).astype("category"),
        [Decimal(1709164800), Decimal(1709251200)],
    ],
)
def test_read_tables_categories_and_decimals_are_times(times: Any) -> None:
    table = interactions(with_times(times))
    assert table.frame["timestamp"].to_list() == [1_709_164_800, 1_709_251_200]
    assert table.ticks_per_second == 1


@pytest.mark.parametrize(
    "dates", [["0001-01-01", "9999-12-31"], ["0001-01-01T00:00:00.1234567", "9999-12-31"]]
)
def test_read_tables_dates_of_any_year_are_taken(dates: list[str]) -> None:
    table = interactions(with_times(dates))
    assert [time // table.ticks_per_second for time in table.frame["timestamp"]] == [
        -62_135_596_800,
        253_402_214_400,
    ]


@pytest.mark.parametrize(
    "times",
    [pd.to_timedelta([1, 2], unit="s"), pd.period_range("2024-01", periods=2, freq="M"), [True, False]],
)
def test_read_tables_types_that_are_not_times_are_refused(times: Any) -> None:
    fails(with_times(times), "'timestamp'", "not a time")
