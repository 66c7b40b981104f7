"""What HAF-VT learns from the time of a request."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hafvt.data.batches import TrainBatches, history_batch
from hafvt.errors import HafvtError
from hafvt.models import build_model, configure
from hafvt.models.request_date import SECONDS_PER_YEAR, RequestDateOffset, yearly_waves
from hafvt.training.run import model_item_features
from tests.conftest import SMALL_PARAMS

DAY = 86_400


def build(data, **params):
    config = configure("hafvt", params={**SMALL_PARAMS["hafvt"], "use_request_date": True, **params})
    return build_model("hafvt", model_item_features(data, "hafvt", config), config).eval()


def test_weights_interpolate_between_knots_and_are_constant_outside():
    knots = torch.tensor([100, 200, 200, 400])
    weights = RequestDateOffset(knots, 2).knot_weights(torch.tensor([0, 100, 150, 300, 400, 10**10]))
    expected = [[1, 0, 0, 0], [1, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5], [0, 0, 0, 1], [0, 0, 0, 1]]
    torch.testing.assert_close(weights, torch.tensor(expected))


def test_offsets_are_those_of_the_day_and_days_of_this_century_are_told_apart():
    offsets = RequestDateOffset(DAY * torch.arange(0, 20_000, 1_000), 2)
    torch.nn.init.normal_(offsets.vectors)
    morning, evening, tomorrow = offsets(19_500 * DAY + torch.tensor([60, DAY - 1, DAY]))
    torch.testing.assert_close(morning, evening)
    assert not torch.allclose(morning, tomorrow, rtol=0, atol=1e-3)


def test_waves_repeat_after_a_year():
    times = torch.tensor([1_600_000_000, 1_600_000_000 + 3 * SECONDS_PER_YEAR])
    waves = yearly_waves(times)
    assert waves.shape == (2, 6)
    torch.testing.assert_close(waves[0], waves[1])
    assert not torch.allclose(waves, yearly_waves(times + SECONDS_PER_YEAR // 4))


def test_scores_depend_on_the_time_of_the_request_and_later_than_the_data_counts_as_its_end(small):
    model, batch = build(small), history_batch(small, np.asarray(small.test), 50)
    torch.manual_seed(0)
    for encoder in model.encoders:
        torch.nn.init.normal_(encoder.time_offset.vectors)
    scores = model.scores(batch, 0)
    assert not torch.allclose(scores, model.scores(batch._replace(times=batch.times - 5 * DAY), 0))
    # After the end only the time of the year counts.
    end = int(model.encoders[0].time_offset.knots[-1])
    one, two = (
        model.scores(batch._replace(times=torch.full_like(batch.times, t)), 0)
        for t in (end + DAY, end + 146_098 * DAY)  # 146,097 days are 400 years
    )
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(
        model.scores(batch._replace(times=None), 0),
        model.scores(batch._replace(times=torch.full_like(batch.times, end)), 0),
    )


@pytest.mark.parametrize("reason", ["no dates", "switched off"])
def test_without_dates_there_is_no_offset(small, reason):
    if reason == "no dates":
        small = replace(small, times=np.arange(len(small.items)))
    model = build(small, use_request_date=None if reason == "no dates" else False)
    assert not model.uses_times
    assert all(encoder.time_offset is None for encoder in model.encoders)


def test_training_learns_with_the_time_at_which_each_item_is_to_be_predicted(small):
    batches = TrainBatches(small, 8, 51, 0, with_times=True)
    batch = next(batches.epoch(0))
    times = small.request_times(np.arange(len(small.items)))
    row = {(int(i), int(t)) for i, t in zip(small.items, times, strict=True)}
    for items, item_times, length in zip(
        *(t.tolist() for t in (batch.items, batch.item_times, batch.lengths)), strict=True
    ):
        assert {*zip(items[1:length], item_times[1:length], strict=True)} <= row
    model = build(small).train()
    model.loss(batch).backward()
    assert all(encoder.time_offset.vectors.grad.abs().sum() > 0 for encoder in model.encoders)
    assert next(TrainBatches(small, 8, 51, 0).epoch(0)).item_times is None


def test_dates_asked_of_a_dataset_without_them_are_refused_in_one_line(small):
    with pytest.raises(
        HafvtError, match=r"has no dates \(all times must lie after March 1973\): leave out use_request_date$"
    ):
        build(replace(small, times=np.arange(len(small.items))))
