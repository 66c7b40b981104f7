"""Popularity in a time, compared with plain counts of interactions."""

from __future__ import annotations

import warnings
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, history_batch
from hafvt.errors import HafvtError, HafvtWarning
from hafvt.features.item_features import load_item_features
from hafvt.inference.onnx_export import export
from hafvt.inference.recommender import Recommender
from hafvt.models import build_model, configure
from hafvt.training.train import train

DAY = 86_400


def seconds(*date: int) -> int:
    return int(datetime(*date, tzinfo=UTC).timestamp())


def build(data, name, **params):
    return build_model(name, load_item_features(data, (), interactions=True), configure(name, params=params))


def training_part(data):
    """Returns item and time of each training interaction, with a plain loop."""
    rows = []
    for start, length in zip(data.offsets[:-1], data.train_lengths, strict=True):
        rows += [(data.items[p], data.times[p]) for p in range(start, start + length)]
    return np.array(rows).T


def scores_at(model, times, domain=0):
    batch = Batch(torch.zeros(len(times), 1, dtype=torch.int64), torch.ones(len(times), dtype=torch.int64))
    return model.scores(batch._replace(times=torch.tensor(times)), domain).numpy()


def test_recent_popularity_counts_the_days_before_the_request(small):
    items, times = training_part(small)
    model = build(small, "recent-popularity", days=20)
    requests = [
        int(times.min()),
        int(np.median(times)),
        int(np.median(times)) + 5,
        int(times.max()) + 900 * DAY,
    ]
    scores = scores_at(model, requests, domain=1)
    for row, request in zip(scores, requests, strict=True):
        until = min(request, times.max())
        is_inside = (times > until - 20 * DAY) & (times <= until)
        expected = np.bincount(items[is_inside], minlength=small.num_items)[30:]
        np.testing.assert_array_equal(row, expected)
    assert scores[3].sum() > 0  # after the end of the training data: its last days


def test_seasonal_popularity_counts_the_same_days_of_all_years(small):
    random = np.random.default_rng(0)
    times = seconds(2015, 1, 1) + random.integers(0, 4 * 365 * DAY, len(small.items))
    data = replace(small, times=times)
    items, times = training_part(data)
    model = build(data, "seasonal-popularity", days=30)
    requests = [seconds(2019, 1, 4), seconds(2019, 7, 1), seconds(2018, 12, 30)]
    for row, request in zip(scores_at(model, requests), requests, strict=True):
        year = 365.2425 * DAY
        distance = np.abs((times - request + year / 2) % year - year / 2)  # to the same date of any year
        is_clear = np.abs(distance - 15 * DAY) > 1
        assert is_clear.all()
        expected = np.bincount(items[distance < 15 * DAY], minlength=data.num_items)[:30]
        np.testing.assert_array_equal(row, expected)


def test_popularity_without_a_time_of_request_uses_the_end_of_training(small):
    _, times = training_part(small)
    for name in ("recent-popularity", "seasonal-popularity"):
        model = build(small, name)
        batch = Batch(torch.zeros(1, 1, dtype=torch.int64), torch.ones(1, dtype=torch.int64))
        np.testing.assert_array_equal(model.scores(batch, 0).numpy(), scores_at(model, [int(times.max())]))


def test_popularity_in_a_time_scores_candidates_as_all_items(small):
    for name in ("recent-popularity", "seasonal-popularity", "item-knn"):
        model = build(small, name)
        batch = history_batch(small, np.asarray(small.test)[:5], model.max_length)
        candidates = torch.randint(30, 50, (5, 7))
        expected = model.scores(batch, 1).gather(1, candidates - 30)
        assert torch.equal(model.scores(batch, 1, candidates), expected)


def test_popularity_in_a_time_without_dates_is_refused_in_one_line(small):
    data = replace(small, times=np.arange(len(small.items)))
    assert data.seconds is None
    assert history_batch(data, np.asarray(data.test), 5).times is None
    for name in ("recent-popularity", "seasonal-popularity"):
        with pytest.raises(HafvtError, match=f"^{name} needs dates or times since 1970.*: prepare"):
            build(data, name)


def test_seconds_of_times_in_milliseconds_are_seconds(small):
    data = replace(small, times=np.asarray(small.times) * 1000)
    np.testing.assert_array_equal(data.seconds, small.times)


def test_request_time_is_the_start_of_the_targets_day_or_the_time_of_the_item_before(small):
    test = np.asarray(small.test)
    times = [max(small.times[p - 1], small.times[p] - small.times[p] % DAY) for p in test]
    np.testing.assert_array_equal(small.request_times(test), times)
    assert (small.request_times(test) <= small.times[test]).all()
    assert (small.request_times(test) > small.times[test - 1]).any()


def test_recent_popularity_at_a_time_before_the_data_warns(small, tmp_path):
    recommender = Recommender.open(train("recent-popularity", small, tmp_path / "run").folder)
    with pytest.warns(HafvtWarning, match="^recent-popularity counts no training interaction at the time"):
        recommender.recommend([["i3"], ["i5"]], "d0", time=1_400_000_000)
    with warnings.catch_warnings(action="error"):
        recommender.recommend([["i3"], []], "d0")
        recommender.recommend([[]], "d0", time=1_400_000_000)  # by popularity, whatever the time
        recommender.recommend([["i3"]], "d0", allow=[])  # no item is left


def test_seasonal_popularity_recommends_and_exports_by_the_time_of_request(make_small, tmp_path):
    small = make_small()
    run = train("seasonal-popularity", small, tmp_path / "run", params={"days": 20})
    pytest.importorskip("onnxscript")
    folder = export(run.folder, out=tmp_path / "export").folder
    lists = []
    for time in (seconds(2020, 8, 1), seconds(2030, 10, 1), None):
        recommenders = [Recommender.open(path) for path in (run.folder, folder)]
        answers = [r.recommend([["i3", "i41"]], "d0", k=30, time=time) for r in recommenders]
        assert answers[0] == answers[1]
        lists.append([(one.item.item_id, one.score) for one in answers[0][0].items])
    assert lists[0] != lists[1]
