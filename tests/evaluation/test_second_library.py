"""Metrics at any k against ranx, from the same scores."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import METRICS_AT, get_metric, metrics_at, summarize
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.experiments.evaluate import evaluate
from hafvt.training.train import train
from tests.evaluation.test_metrics import TableScorer, make_ranks

NAMES = {"NDCG": "ndcg", "HR": "hit_rate", "recall": "recall", "precision": "precision", "MAP": "map"}
NAMES["MRR"] = "mrr"  # by ranx
KS = [1, 3, 10, 17]


@pytest.mark.slow  # ranx compiles its metrics on its first use
@pytest.mark.parametrize("candidates", ["all", "unseen"])
def test_metrics_at_any_k_equal_those_of_ranx(make_small, candidates):
    ranx = pytest.importorskip("ranx")
    data = make_small(users=150, with_features=False)
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 50)))  # no ties, which ranx sorts
    ranks = rank_positions(TableScorer(data, table), data, data.test, get_protocol("full", candidates))
    results = summarize(ranks.half_ties, ["d0", "d1"], metrics=metrics_at(KS), resamples=1)
    for domain in data.domains:
        relevant, scores = {}, {}
        for position in data.test:
            target = int(data.items[position])
            if not domain.start <= target < domain.stop:
                continue
            history = data.items[data.offsets[data.users_at(np.array([position]))[0]] : position].tolist()
            seen = set(history) if candidates == "unseen" else set()
            relevant[str(position)] = {str(target): 1}
            scores[str(position)] = {
                str(item): float(table[history[-1], item])
                for item in range(domain.start, domain.stop)
                if item not in seen
            }
        names = [f"{name}@{k}" for name in NAMES.values() for k in KS]
        expected = ranx.evaluate(ranx.Qrels(relevant), ranx.Run(scores), ["mrr", *names])
        assert results[domain.name]["MRR"].value == pytest.approx(expected["mrr"])
        for name, other in NAMES.items():
            for k in KS:
                value = results[domain.name][f"{name}@{k}"].value
                assert value == pytest.approx(expected[f"{other}@{k}"]), (name, k)
    assert set(NAMES) == set(METRICS_AT)


def test_metrics_of_a_tie_at_the_cut_count_it_half():
    ranks = make_ranks([10.5, 9.5, 1.5, np.inf], [0] * 4)  # 10.5: ties with the eleventh item
    results = summarize(ranks, ["x"], metrics=metrics_at([1, 10]), resamples=1)["x"]
    assert results["HR@10"].value == results["recall@10"].value == 0.5
    assert results["precision@10"].value == 0.05
    assert results["HR@1"].value == 0
    assert results["MAP@10"].value == pytest.approx((1 / 9.5 + 1 / 1.5) / 4)
    assert results["MRR"].value == pytest.approx((1 / 10.5 + 1 / 9.5 + 1 / 1.5) / 4)


@pytest.mark.parametrize("name", ["mrr", "HR", "HR@0", "HR@x", "HR@-1", "AUC@5", "", "HR@1e3", "HR@99999999"])
def test_get_metric_with_a_wrong_name_lists_the_others(name):
    with pytest.raises(
        HafvtError, match="choose MRR, or NDCG, HR, recall, precision, MAP, MRR with a number"
    ):
        get_metric(name)


def test_evaluate_at_any_k_prints_and_writes_the_metrics(small, tmp_path):
    run = train("popularity", small, tmp_path / "run", test=False)
    evaluation = evaluate(run.folder, at=[3, 7])
    written = json.loads((run.folder / "results.json").read_text())["results"]["overall"]
    for name in METRICS_AT:
        ranks = evaluation.ranks.with_rivals()
        values = [get_metric(f"{name}@7")(ranks.ranks[ranks.domains == d]).mean() for d in (0, 1)]
        assert written[f"{name}@7"]["value"] == pytest.approx(np.mean(values))
        assert written[f"{name}@7"]["low"] <= written[f"{name}@7"]["value"] <= written[f"{name}@7"]["high"]
    lines = str(evaluation).splitlines()
    (header,) = [line for line in lines if line.startswith("first k items")]
    assert header.split()[3:] == list(METRICS_AT)
    (row,) = [line.split() for line in lines if line.startswith("  overall @7")]
    assert row[3] == f"{100 * written['HR@7']['value']:.2f}"
    assert "recall@7" not in lines[0]
    assert "recall@7" in (run.folder / "report.html").read_text()
    with pytest.raises(HafvtError, match="--at is 0: choose whole numbers from 1"):
        evaluate(run.folder, at=[0])
