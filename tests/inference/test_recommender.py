"""Recommendations on the user's own ids are those of the model, whoever asks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt import train
from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender, top_k_columns


@pytest.fixture
def run(small, tmp_path):
    return train("hafvt", small, tmp_path / "run", params={"id_width": 8, "content_width": 6}, epochs=2)


def test_the_best_items_are_those_of_the_model(run):
    history = [3, 41, 7]
    (answer,) = Recommender.open(run.folder).recommend([[f"i{n}" for n in history]], "d1", k=5)
    scores = run.model.scores(Batch(torch.tensor([history]), torch.tensor([3])), 1)[0].detach()
    scores[41 - 30] = -torch.inf
    assert [one.item.item_id for one in answer.items] == [f"i{30 + n}" for n in scores.topk(5).indices]
    assert [one.score for one in answer.items] == pytest.approx(scores.topk(5).values.tolist(), abs=1e-5)
    assert answer.ranked_by == "model"


def test_unknown_ids_are_skipped_and_told(run):
    recommender = Recommender.open(run.folder)
    known, mixed, nothing = recommender.recommend([["i3", "i4"], ["?", "i3", "i4"], ["?"]], "d0")
    assert [one.item for one in mixed.items] == [one.item for one in known.items]
    assert mixed.unknown_ids == ("?",)
    assert nothing.ranked_by == "popularity"
    counts = recommender.catalog.train_counts[:30]
    assert [one.item.train_count for one in nothing.items] == sorted(counts, reverse=True)[:10]


def test_seen_and_excluded_items(run):
    recommender = Recommender.open(run.folder)
    everything = recommender.recommend([["i3"]], "d0", k=50, exclude_seen=False)[0]
    assert len(everything.items) == 30
    left = recommender.recommend([["i3"]], "d0", k=50, exclude=[["i4", "i41", "?"]])[0]
    assert {one.item.item_id for one in left.items} == {f"i{n}" for n in range(30)} - {"i3", "i4"}
    with pytest.raises(HafvtError, match="no domain 'x': choose one of d0, d1"):
        recommender.recommend([[]], "x")


def test_an_explanation_adds_up(run):
    recommender = Recommender.open(run.folder)
    (answer,) = recommender.recommend([["i3", "i41", "i7"]], "d0", k=3)
    told = recommender.explain(["i3", "i41", "i7"], answer.items[1].item.item_id)
    assert sum(told.shares.values()) == pytest.approx(1, abs=1e-5)
    assert told.score == pytest.approx(answer.items[1].score, abs=1e-6)
    assert [item.item_id for item in told.history] == ["i3", "i41", "i7"]
    assert set(told.shares) == {(s, m) for s in ("d0", "d1", "all domains") for m in ("id", "image", "title")}
    assert told.attention["d1", "id"] == pytest.approx((0, 1, 0))
    assert sum(told.attention["all domains", "title"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(HafvtError, match="no item 'x'"):
        recommender.explain(["i3"], "x")


def test_top_k_lists_equal_scores_by_column():
    scores = np.array([1, 3, 3, np.nan, 2, 3, -np.inf], dtype=np.float32)
    assert top_k_columns(scores, 2, np.array([], dtype=np.int64)).tolist() == [1, 2]
    assert top_k_columns(scores, 9, np.array([2])).tolist() == [1, 5, 4, 0]
