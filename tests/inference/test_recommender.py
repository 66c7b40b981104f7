"""Recommendations on the user's own ids equal the scores of the model."""

from __future__ import annotations

import math
import time

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hafvt import train
from hafvt.data.batches import Batch
from hafvt.data.dataset import replace_item_table
from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.ops.top_k import top_k_columns
from hafvt.training.run import open_run
from tests.conftest import write_small
from tests.served import ODD_ID

HISTORY = ["i3", "i41", "i8"]
few_values = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.5, math.inf, math.nan])  # so that ties abound


@pytest.fixture(scope="module")
def recommender(served_run):
    return Recommender.open(served_run)


def test_recommend_known_history_returns_best_scores_of_model(recommender, served_run):
    (result,) = recommender.recommend([HISTORY], "d1", k=5)
    model = open_run(served_run).model
    today = torch.tensor([int(time.time())])
    scores = model.scores(Batch(torch.tensor([[3, 41, 8]]), torch.tensor([3]), today), 1)[0].detach()
    scores[41 - 30] = -torch.inf
    assert [one.item.item_id for one in result.items] == [f"i{30 + n}" for n in scores.topk(5).indices]
    assert [one.score for one in result.items] == pytest.approx(scores.topk(5).values.tolist(), abs=1e-5)
    assert result.ranked_by == "model"


def test_recommend_unknown_ids_skips_and_lists_them(recommender):
    known, mixed, empty = recommender.recommend([["i3", "i4"], ["?", "i3", "i4"], ["?"]], "d0")
    assert [one.item for one in mixed.items] == [one.item for one in known.items]
    assert mixed.unknown_ids == ("?",)
    assert empty.ranked_by == "popularity"
    train_counts = recommender.catalog.train_counts[:30]
    assert [one.item.train_count for one in empty.items] == sorted(train_counts, reverse=True)[:10]


def test_recommend_numbers_are_ids_by_their_digits(tmp_path):
    data = write_small(tmp_path / "data", with_features=False)
    table = data.item_table.with_columns(pl.col("item_id").str.strip_prefix("i"))
    replace_item_table(data.folder, table)
    run = train("popularity", data.folder, tmp_path / "run", test=False).folder
    recommender = Recommender.open(run)
    as_text, as_int, as_numpy = (
        recommender.recommend([history], "d0", exclude=[exclude])[0]
        for history, exclude in (
            (["5", "7"], ["19"]),
            ([5, 7], [19]),
            (np.array([5, 7]), pl.Series([19], dtype=pl.UInt8)),
        )
    )
    assert as_text == as_int == as_numpy
    assert as_text.ranked_by == "model"
    assert not {"5", "7", "19"} & {one.item.item_id for one in as_text.items}


def test_recommend_text_in_place_of_a_list_raises(recommender):
    for histories, exclude, problem in (
        (["aa01"], None, r"histories\[0\] is 'aa01', not a list of ids"),
        ("aa01", None, r"histories\[0\] is 'a', not a list of ids"),
        ([5, 7], None, r"histories\[0\] is '5', not a list of ids"),
        ([["i3"]], ["i4"], r"exclude\[0\] is 'i4', not a list of ids"),
        ([["i3"], ["i3"]], "i4", r"exclude\[0\] is 'i', not a list of ids"),
        ([[["i3"]]], None, "cannot be of type list"),
        ([[3.0]], None, "cannot be of type float: give text or whole numbers"),
    ):
        with pytest.raises(HafvtError, match=problem):
            recommender.recommend(histories, "d0", exclude=exclude)
    with pytest.raises(HafvtError, match="history is 'i3', not a list of ids"):
        recommender.explain("i3", "i4")


def test_recommend_unknown_excluded_ids_are_reported(recommender):
    (result,) = recommender.recommend([["i3", "x"]], "d0", k=1, exclude=[["i4", "z", 9]])
    assert (result.unknown_ids, result.unknown_excluded_ids) == (("x",), ("z", "9"))
    assert str(result).splitlines()[-2:] == [
        "skipped 1 unknown ids: 'x'",
        "2 ids to exclude are unknown: 'z', '9'",
    ]


def test_recommend_excludes_seen_items_and_given_ids(recommender):
    with_seen = recommender.recommend([["i3"]], "d0", k=50, exclude_seen=False)[0]
    assert len(with_seen.items) == 30
    result = recommender.recommend([["i3"]], "d0", k=50, exclude=[["i4", "i41", "?"]])[0]
    expected = {f"i{n}" for n in range(30)} - {"i3", "i4", "i7"} | {ODD_ID}
    assert {one.item.item_id for one in result.items} == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domain": "x"}, "no domain 'x': choose one of d0, d1"),
        ({"domain": "d0", "k": 0}, "k is 0: give 1 or more"),
        ({"domain": "d0", "exclude": []}, "0 lists to exclude for 1 histories"),
    ],
)
def test_recommend_wrong_arguments_raises(recommender, options, message):
    with pytest.raises(HafvtError, match=message):
        recommender.recommend([[]], **options)


def test_explain_shares_and_attention_sum_to_one(recommender):
    (result,) = recommender.recommend([HISTORY], "d0", k=3)
    explanation = recommender.explain(HISTORY, result.items[1].item.item_id)
    assert sum(explanation.shares.values()) == pytest.approx(1, abs=1e-5)
    assert explanation.score == pytest.approx(result.items[1].score, abs=1e-6)
    assert [item.item_id for item in explanation.history] == HISTORY
    sequences, modalities = ("d0", "d1", "all domains"), ("id", "image", "title")
    assert set(explanation.shares) == {(s, m) for s in sequences for m in modalities}
    assert explanation.attention["d1", "id"] == pytest.approx((0, 1, 0))
    assert sum(explanation.attention["all domains", "title"]) == pytest.approx(1, abs=1e-5)
    with pytest.raises(HafvtError, match="no item 'x'"):
        recommender.explain(["i3"], "x")


def test_top_k_columns_equal_scores_are_sorted_by_column():
    scores = np.array([1, 3, 3, np.nan, 2, 3, -np.inf], dtype=np.float32)
    assert top_k_columns(scores, 2, np.array([], dtype=np.int64)).tolist() == [1, 2]
    assert top_k_columns(scores, 9, np.array([2])).tolist() == [1, 5, 4, 0]


@pytest.mark.parametrize("num_values", [3, 40, 100_000])
@pytest.mark.parametrize("seed", range(5))
def test_top_k_columns_by_groups_match_a_stable_sort(num_values, seed):
    random = np.random.default_rng(seed)
    scores = random.integers(num_values, size=997).astype(np.float32)
    scores[random.integers(997, size=40)] = -np.inf
    for k, excluded in [(1, []), (10, [0, 996, 500, 500]), (31, range(60)), (997, [1])]:
        columns = np.argsort(-scores, kind="stable")
        columns = columns[~np.isin(columns, excluded) & (scores[columns] > -np.inf)]
        top = top_k_columns(scores, k, np.array(excluded, dtype=np.int64))
        assert top.tolist() == columns[:k].tolist()
    scores[[7, 996]] = np.nan
    assert not {7, 996} & set(top_k_columns(scores, 20, np.array([], dtype=np.int64)).tolist())
    assert not len(top_k_columns(np.full(997, np.nan, np.float32), 5, np.array([], dtype=np.int64)))


@settings(max_examples=200, deadline=None)
@given(st.lists(few_values, min_size=1, max_size=12), st.integers(1, 15), st.sets(st.integers(0, 11)))
def test_top_k_columns_match_a_plain_loop(values, k, excluded):
    scores = np.array(values, dtype=np.float32)
    excluded = [column for column in excluded if column < len(values)]
    before = scores.copy()
    columns = top_k_columns(scores, k, np.array(excluded, dtype=np.int64))
    listed = [(-s, c) for c, s in enumerate(values) if c not in excluded and s > -math.inf]
    assert columns.tolist() == [c for _, c in sorted(listed)[:k]]
    np.testing.assert_array_equal(scores, before)
