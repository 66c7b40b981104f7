"""Whether the date of a request tells anything about the next item."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hafvt.data.dates import date_gain
from hafvt.data.prepare import prepare
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS

DAY = 86_400
START = 1_500_000_000 // DAY * DAY


def make_log(tmp_path, choose):
    """Write a dataset in which users choose 12 items on random days of three years."""
    random = np.random.default_rng(0)
    days = np.sort(random.integers(0, 3 * 365, (60, 12)), axis=1)
    rows = [
        (f"u{u}", f"i{choose(random, day)}", START + int(day) * DAY) for u in range(60) for day in days[u]
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(frame, out=tmp_path / "data")


def choose_at_random(random, day):
    return random.integers(40)


def choose_what_is_new(random, day):
    return day // 30 + random.integers(3)


def test_dates_gain_where_items_come_and_go_and_lose_where_they_are_chosen_at_random(tmp_path):
    assert date_gain(make_log(tmp_path / "new", choose_what_is_new)) > 1
    assert date_gain(make_log(tmp_path / "random", choose_at_random)) < 0


def test_gain_equals_a_count_by_hand(tmp_path):
    data = make_log(tmp_path, choose_what_is_new)
    train_positions = data.train_positions()
    items, times = np.asarray(data.items)[train_positions], data.seconds[train_positions]
    gains = []
    for position, until in zip(data.valid, data.request_times(np.asarray(data.valid)), strict=True):
        is_recent = (times >= until - 30 * DAY) & (times < until)
        item = data.items[position]
        overall = ((items == item).sum() + 1) / (len(items) + data.num_items)
        recent = ((items == item) & is_recent).sum() / is_recent.sum() if is_recent.any() else overall
        gains.append(math.log(0.7 * recent / overall + 0.3))
    assert date_gain(data) == pytest.approx(np.mean(gains), rel=1e-12)


def test_without_dates_there_is_no_gain(small):
    assert date_gain(replace(small, times=np.arange(len(small.items)))) is None


@pytest.mark.parametrize(("choose", "used"), [(choose_what_is_new, True), (choose_at_random, False)])
def test_hafvt_uses_dates_only_where_they_gain(tmp_path, choose, used):
    data = make_log(tmp_path, choose)
    run = train("hafvt", data, tmp_path / "run", params=SMALL_PARAMS["hafvt"], epochs=1)
    assert run.config.use_request_date is used
    assert run.model.uses_times is used
