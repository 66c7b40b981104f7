"""Splits at given dates, against plain loops over the sorted log."""

from __future__ import annotations

from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hafvt.cli import main
from hafvt.data.cut_times import TimeScale
from hafvt.data.dataset import Dataset
from hafvt.data.prepare import prepare
from hafvt.data.table_options import TableOptions
from hafvt.errors import HafvtError

DAY = 86_400
START = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp())


def year_of_days(seed: int = 0, unit: int = 1) -> pl.DataFrame:
    """Returns 600 interactions of 30 users with 20 items, at random times of 100 days from 2024-01-01 on."""
    random = np.random.default_rng(seed)
    times = START * unit + random.integers(0, 100 * DAY * unit, 600)
    users, items = random.integers(0, 30, 600), random.integers(0, 20, 600)
    return pl.DataFrame(
        {"user_id": [f"u{n}" for n in users], "item_id": [f"i{n}" for n in items], "timestamp": times}
    )


def split_by_hand(
    log: pl.DataFrame, valid_from: int, test_from: int
) -> dict[str, list[tuple[str, str, int]]]:
    """Returns training, validation and test interactions by loops over sorted rows."""
    parts: dict[str, list[tuple[str, str, int]]] = {"train": [], "valid": [], "test": []}
    seen = set()
    for user, item, time in log.sort("timestamp").iter_rows():
        if time < valid_from:
            parts["train"].append((user, item, time))
        elif user in seen:
            parts["valid" if time < test_from else "test"].append((user, item, time))
        seen.add(user)
    return {name: sorted(rows) for name, rows in parts.items()}


def rows_at(data: Dataset, positions: np.ndarray) -> list[tuple[str, str, int]]:
    users = data.user_ids.gather(data.users_at(positions))
    items = data.item_table["item_id"].gather(np.asarray(data.items)[positions])
    return sorted(zip(users, items, data.times[positions].tolist(), strict=True))


def parts_of(data: Dataset) -> dict[str, list[tuple[str, str, int]]]:
    positions = {"train": data.train_positions(), "valid": data.valid, "test": data.test}
    return {name: rows_at(data, part) for name, part in positions.items()}


@pytest.mark.parametrize(
    "split_at",
    [
        ["2024-03-01", "2024-03-21T12:00"],
        [str(START + 60 * DAY), str(START + 80 * DAY + DAY // 2)],
        [datetime(2024, 3, 1, tzinfo=UTC), datetime(2024, 3, 21, 12, tzinfo=UTC)],
        ["01.03.2024", "21.03.2024 12:00"],
    ],
    ids=["dates", "numbers", "datetimes", "points"],
)
def test_prepare_split_at_dates_equals_a_split_by_hand(split_at, tmp_path: Path) -> None:
    log = year_of_days()
    expected = split_by_hand(log, START + 60 * DAY, START + 80 * DAY + DAY // 2)
    data = prepare(log, None, tmp_path / "out", split_at=split_at)
    assert parts_of(data) == expected
    assert data.manifest["settings"]["split"] == "time"
    assert data.manifest["settings"]["valid_share"] is None


def test_prepare_split_at_dates_of_milliseconds_and_other_zones(tmp_path: Path) -> None:
    log = year_of_days(unit=1000)
    data = prepare(
        log,
        None,
        tmp_path / "out",
        split_at=["2024-03-01", "2024-03-21"],
        table_options=TableOptions(time_zone="Asia/Tokyo"),
    )
    nine_hours = 9 * 3600
    expected = split_by_hand(
        log, (START + 60 * DAY - nine_hours) * 1000, (START + 80 * DAY - nine_hours) * 1000
    )
    assert parts_of(data) == expected
    dated = log.with_columns(pl.from_epoch("timestamp", "ms"))  # with fractions of seconds
    data = prepare(dated, None, tmp_path / "dated", split_at=["2024-03-01", "2024-03-21"])
    seconds = {name: len(rows) for name, rows in parts_of(data).items()}
    by_hand = split_by_hand(log, (START + 60 * DAY) * 1000, (START + 80 * DAY) * 1000)
    assert seconds == {name: len(rows) for name, rows in by_hand.items()}


def test_prepare_split_at_numbers_of_another_unit(tmp_path: Path) -> None:
    log = year_of_days().with_columns(pl.col("timestamp") - START)
    data = prepare(log, None, tmp_path / "out", split_at=[str(60 * DAY), str(80 * DAY)])
    assert parts_of(data) == split_by_hand(log, 60 * DAY, 80 * DAY)
    with pytest.raises(
        HafvtError, match=r"--split-at 2024-03-01: .*are no dates since 1973, but numbers from"
    ):
        prepare(log, None, tmp_path / "b", split_at=["2024-03-01", "2024-03-21"])


@pytest.mark.parametrize(
    ("split_at", "message"),
    [
        (["2024-03-01"], "give two dates, of validation and test"),
        (
            ["2024-03-21", "2024-03-01"],
            "--split-at 2024-03-21 2024-03-01: give the start of validation first",
        ),
        (
            ["2023-01-01", "2024-03-01"],
            "leaves no training interaction: choose other times; the interactions are",
        ),
        (["2024-03-01", "2025-03-01"], "leaves no test target"),
        (["2024-05-01", "2024-06-01"], "leaves no validation target: .* from 2024-01-01T.* to 2024-04-0"),
        (["soon", "2024-03-01"], "--split-at soon: give a date such as 2026-12-24, or a whole number"),
    ],
)
def test_prepare_split_at_wrong_dates_names_the_remedy(split_at, message, tmp_path: Path) -> None:
    with pytest.raises(HafvtError, match=message):
        prepare(year_of_days(), None, tmp_path / "out", split_at=split_at)
    assert not (tmp_path / "out").exists()


def test_prepare_command_takes_two_dates(tmp_path: Path) -> None:
    year_of_days().write_csv(tmp_path / "log.csv")
    words = ["prepare", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out")]
    assert main([*words, "--split-at", "2024-03-01", "2024-03-21"]) == 0
    expected = split_by_hand(year_of_days(), START + 60 * DAY, START + 80 * DAY)
    assert parts_of(Dataset.open(tmp_path / "out")) == expected


def test_time_scale_parses_and_formats_dates_and_numbers() -> None:
    scale = TimeScale.of(np.array([START, START + DAY]))
    assert scale.parse("--from", date(2024, 1, 2)) == START + DAY
    assert scale.format(START) == "2024-01-01"
    assert scale.format(START + 90) == "2024-01-01T00:01:30"
    assert TimeScale.of(np.array([0, 7])).format(5) == "5"
    assert scale.parse("--split-at", "20240102", "%Y%m%d") == START + DAY
