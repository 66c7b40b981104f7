"""The time of a request: one rule for the command line, Python, files of histories and HTTP."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hafvt.data.times import parse_request_time
from hafvt.errors import ArgumentError

DAY = 1_798_070_400  # 2026-12-24 in UTC
HOUR = 3600


@pytest.mark.parametrize(
    ("time", "expected"),
    [
        ("2026-12-24", DAY),
        (" 2026-12-24T01:00 ", DAY + HOUR),
        ("2026-12-24T01:00:00.9+02:00", DAY - HOUR),
        ("24.12.2026 01:00", DAY + HOUR),
        ("12/24/2026", DAY),
        ("2026-12-24t01:00:00z", DAY + HOUR),
        (str(DAY), DAY),
        (DAY, DAY),
        (np.int64(DAY), DAY),
        (DAY + 0.5, DAY),
        (100_000_000, 100_000_000),
        (date(2026, 12, 24), DAY),
        (datetime(2026, 12, 24, 1), DAY + HOUR),  # without a zone
        (datetime(2026, 12, 24, 1, tzinfo=timezone(timedelta(hours=2))), DAY - HOUR),
        (datetime(2026, 12, 24, tzinfo=UTC), DAY),
        (np.datetime64("2026-12-24"), DAY),
        (np.datetime64("2026-12-24T01", "ns"), DAY + HOUR),
        (pd.Timestamp("2026-12-24 01:00", tz="Europe/Berlin"), DAY),
        (None, None),
    ],
)
def test_parse_request_time_dates_and_seconds_are_seconds(time: Any, expected: int | None) -> None:
    assert parse_request_time(time) == expected
    assert parse_request_time(expected) == expected


@pytest.mark.parametrize(
    "time",
    [
        *("2024", 2024, "20241224", 20_241_224, "2024-12", DAY * 1000, str(DAY * 1000), 202_412_241_200),
        *(-5, 0, "", "x", "31.02.2024", "nan", float("nan"), float("inf"), "1e30", 10**400, True, [DAY], {}),
        *(np.datetime64("NaT"), pd.NaT, np.datetime64("300000-01-01"), timedelta(days=9999), b"2024-12-24"),
        *("1960-01-01", "2200-01-01", "9999-12-31", date(1, 1, 1), "\ud800", "x" * 5000),
    ],
)
def test_parse_request_time_years_digits_of_dates_and_other_units_are_refused(time: Any) -> None:
    with pytest.raises(
        ArgumentError, match="is no time of a request: give a date of 1973 to 2096 such as 2026-12-24"
    ) as caught:
        parse_request_time(time)
    assert len(str(caught.value)) < 200


def test_parse_request_time_day_or_month_first_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^'01/02/2025' may begin with .*: write the time as 2026-12-24"):
        parse_request_time("01/02/2025")


def test_parse_request_time_format_and_zone_act_on_dates_that_name_no_zone() -> None:
    assert parse_request_time("01/02/2025", "%d/%m/%Y") == parse_request_time("2025-02-01")
    assert parse_request_time("20261224", "%Y%m%d") == parse_request_time(20_261_224, "%Y%m%d") == DAY
    assert parse_request_time("2026-12-24", "%d/%m/%Y") == DAY  # ISO 8601 is plain in any case
    assert parse_request_time("24.12.2026", "%d.%m.%Y", "Europe/Berlin") == DAY - HOUR
    assert parse_request_time(date(2026, 12, 24), None, "Europe/Berlin") == DAY - HOUR
    assert parse_request_time("2026-12-24T00:00Z", None, "Europe/Berlin") == DAY
    assert parse_request_time(DAY, "%d.%m.%Y", "Europe/Berlin") == DAY
