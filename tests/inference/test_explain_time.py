"""Explanations belong to the scores of the same day."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.inference.recommender import Recommender
from hafvt.inference.scorer import pad_histories

SUMMER, WINTER = 1_500_400_000, 1_515_000_000


def test_shares_at_a_time_are_those_of_the_model_at_that_time(served_run):
    recommender = Recommender.open(served_run)
    model = recommender.scorer.models[0]
    torch.manual_seed(0)
    for encoder in model.encoders:
        torch.nn.init.normal_(encoder.time_offset.vectors)
    items, target = np.array([3, 41, 8]), 5
    explanations = [recommender.explain(["i3", "i41", "i8"], "i5", time=time) for time in (SUMMER, WINTER)]
    assert explanations[0].shares != pytest.approx(explanations[1].shares, abs=1e-3)
    for time, explanation in zip((SUMMER, WINTER), explanations, strict=True):
        rows, lengths = pad_histories([items])
        batch = Batch(torch.from_numpy(rows), torch.from_numpy(lengths), torch.tensor([time]))
        with torch.no_grad():
            score = model.scores(batch, 0)[0, target]
            shares = model.explain(batch, 0, torch.tensor([[target]])).shares[0, 0]
        assert explanation.score == pytest.approx(float(score), abs=1e-5)
        assert list(explanation.shares.values()) == pytest.approx(shares.flatten().tolist(), abs=1e-5)
