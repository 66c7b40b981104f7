"""Metrics, intervals and full ranking against plain statements."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from hafvt.data import dataset
from hafvt.data.batches import Batch
from hafvt.data.repeats import find_repeats
from hafvt.evaluation.metrics import METRICS, mean_mrr, summarize
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.evaluation.target_ranking import rank_positions, seen_columns
from hafvt.models.base import Model


def make_ranks(ranks, domains, users=None) -> Ranks:
    n = len(ranks)
    users = np.arange(n) if users is None else np.array(users)
    counts, is_repeat = np.full(n, 100), np.zeros(n, dtype=bool)
    return Ranks(np.arange(n), users, np.array(domains), np.array(ranks, dtype=float), counts, is_repeat)


def test_metrics_of_known_ranks_equal_their_formulas():
    values = {name: metric(np.array([1.0, 2.5, 5.0, 10.0, 11.0])) for name, metric in METRICS.items()}
    np.testing.assert_allclose(values["MRR"], [1, 0.4, 0.2, 0.1, 1 / 11])
    ndcg = [1, 1 / math.log2(3.5), 1 / math.log2(6), 1 / math.log2(11), 0]
    np.testing.assert_allclose(values["NDCG@10"], ndcg)
    np.testing.assert_allclose(values["NDCG@5"], [*ndcg[:3], 0, 0])
    assert values["HR@1"].tolist() == [1, 0, 0, 0, 0]
    assert values["HR@5"].tolist() == [1, 1, 1, 0, 0]
    assert values["HR@10"].tolist() == [1, 1, 1, 1, 0]


def test_summarize_overall_is_the_mean_of_the_domains():
    ranks = make_ranks([1, 2, 4, 1], [0, 0, 0, 1])
    results = summarize(ranks, ["x", "y"])
    assert results["x"]["MRR"].value == pytest.approx((1 + 0.5 + 0.25) / 3)
    assert results["y"]["MRR"].value == 1
    assert results["overall"]["MRR"].value == pytest.approx((1.75 / 3 + 1) / 2) == mean_mrr(ranks)
    assert set(summarize(make_ranks([1, 2], [1, 1]), ["x", "y"])) == {"y"}


def test_summarize_of_some_targets_keeps_the_intervals_of_a_domain_where_all_count():
    random = np.random.default_rng(0)
    ranks = make_ranks(random.integers(1, 50, 300), random.integers(0, 2, 300), np.arange(300) // 2)
    rows = (ranks.domains == 0) | (random.random(300) < 0.5)
    total, part = summarize(ranks, ["x", "y"]), summarize(ranks, ["x", "y"], rows)
    assert part["x"]["MRR"] == total["x"]["MRR"]
    assert part["y"]["MRR"].value == pytest.approx(np.mean(1 / ranks.ranks[rows & (ranks.domains == 1)]))
    assert summarize(ranks, ["x", "y"], ranks.domains == 0) == {"x": total["x"]}
    assert summarize(ranks, ["x", "y"], np.zeros(300, bool)) == {}


def test_summarize_intervals_cover_the_mean_in_95_percent_of_samples():
    """Of 200 samples of a known distribution about 95 % of the intervals hold its mean."""
    random = np.random.default_rng(0)
    true = np.mean(1 / np.arange(1, 51))
    covered = 0
    for _ in range(200):
        figure = summarize(make_ranks(random.integers(1, 51, 300), [0] * 300), ["x"], resamples=200)["x"][
            "MRR"
        ]
        covered += figure.low <= true <= figure.high
    assert 180 <= covered <= 198


def test_summarize_intervals_with_repeated_targets_stay_as_wide():
    """A user's targets are no independent evidence: ten copies of each leave the interval as wide."""
    random = np.random.default_rng(1)
    ranks = random.integers(1, 50, 200)
    single = summarize(make_ranks(ranks, [0] * 200), ["x"])["x"]["MRR"]
    copies = summarize(make_ranks(np.repeat(ranks, 10), [0] * 2000, np.repeat(np.arange(200), 10)), ["x"])[
        "x"
    ]["MRR"]
    assert copies.high - copies.low == pytest.approx(single.high - single.low)


class TableScorer(Model):
    """Scores items by a table of scores per last item, so that the truth is easy to state."""

    max_length = 3

    def __init__(self, data, table) -> None:
        super().__init__()
        self.domains, self.table = data.domains, table

    def loss(self, batch: Batch) -> torch.Tensor:
        raise NotImplementedError

    def scores(self, batch, domain, candidates=None):
        assert batch.items.shape[1] <= self.max_length
        last = batch.items[torch.arange(len(batch.items)), batch.lengths - 1]
        chosen = self.domains[domain]
        return self.table[last][:, chosen.start : chosen.stop]


@pytest.mark.parametrize("candidates", ["all", "unseen"])
def test_rank_positions_equals_counting_by_definition(small, candidates):
    table = torch.from_numpy(np.random.default_rng(0).integers(0, 6, (50, 50))).float()  # many ties
    ranks = rank_positions(
        TableScorer(small, table), small, small.test, get_protocol("full", candidates)
    ).half_ties
    for row, position in enumerate(small.test):
        user = int(small.users_at(np.array([position]))[0])
        history = small.items[small.offsets[user] : position]
        target = int(small.items[position])
        domain = next(d for d in small.domains if d.start <= target < d.stop)
        scores = table[int(history[-1])]
        banned = set(history.tolist()) if candidates == "unseen" else set()
        others = [i for i in range(domain.start, domain.stop) if i != target and i not in banned]
        expected = 1 + sum(
            float(scores[i] > scores[target]) + 0.5 * float(scores[i] == scores[target]) for i in others
        )
        assert ranks.ranks[row] == (math.inf if target in banned else expected)
        assert ranks.candidates[row] == len(others) + (target not in banned)
        assert ranks.is_repeat[row] == (target in history)
        assert ranks.users[row] == user
        assert small.domains[ranks.domains[row]] == domain


def test_rank_positions_finds_the_repeats_of_a_dataset_once(small, monkeypatch):
    data, calls = replace(small), []
    monkeypatch.setattr(
        dataset, "find_repeats", lambda *arguments: calls.append(1) or find_repeats(*arguments)
    )
    for _ in range(2):
        rank_positions(TableScorer(data, torch.zeros(50, 50)), data, data.test)
    assert len(calls) == 1


def test_seen_columns_hold_each_item_of_the_domain_once(small):
    for domain in small.domains:
        columns = seen_columns(small, small.test, domain)
        for row, position in enumerate(small.test):
            user = int(small.users_at(np.array([position]))[0])
            history = small.items[small.offsets[user] : position].tolist()
            expected = sorted({item - domain.start for item in history if domain.start <= item < domain.stop})
            assert sorted(column for column in columns[row].tolist() if column >= 0) == expected


def test_rank_positions_of_a_constant_scorer_is_the_middle(small):
    ranks = rank_positions(TableScorer(small, torch.zeros(50, 50)), small, small.test).half_ties
    ranks = ranks.select(np.isfinite(ranks.ranks))
    np.testing.assert_array_equal(ranks.ranks, (ranks.candidates + 1) / 2)


def test_ranks_write_names_users_domains_and_items(small, tmp_path):
    ranks = rank_positions(TableScorer(small, torch.rand(50, 50)), small, small.test).half_ties
    ranks.write(tmp_path / "ranks.parquet", small)
    table = pl.read_parquet(tmp_path / "ranks.parquet")
    columns = ["user_id", "domain", "item_id", "request_time", "rank", "candidates", "repeat"]
    assert table.columns == columns
    row = table.row(3, named=True)
    item = int(small.items[small.test[3]])
    assert row["item_id"] == small.item_table["item_id"][item]
    assert row["domain"] == small.item_table["domain"][item]
    assert row["rank"] == ranks.ranks[3]
    assert row["user_id"] == small.user_ids[int(small.users_at(small.test[3:4])[0])]
