"""Coverage, popularity, novelty and diversity of recommended lists, compared with plain loops."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

from hafvt.evaluation.list_metrics import popularity_ranks, summarize_lists
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.evaluate import evaluate
from hafvt.features.item_features import load_item_features
from hafvt.features.table import FeatureTable
from hafvt.inference.recommender import Recommender
from hafvt.models import build_model, configure
from hafvt.training.train import train


def plain_metrics(data, number, lists):
    """Returns the metrics of lists of item numbers in one domain by their definitions."""
    domain, all_counts = data.domains[number], data.train_counts()
    counts = all_counts[domain.start : domain.stop]
    ranks = [1 + sum(c > own for c in counts) + (sum(c == own for c in counts) - 1) / 2 for own in counts]
    bits = [-np.log2(max(count, 1) / counts.sum()) for count in counts]
    expected = {
        "coverage@10": len({item for items in lists for item in items}) / len(domain),
        "popularity rank": np.mean([np.mean([ranks[i - domain.start] for i in items]) for items in lists]),
        "novelty": np.mean([np.mean([bits[i - domain.start] for i in items]) for items in lists]),
    }
    for name in ("image", "title"):
        table, values = FeatureTable.open(data.folder / "features" / name), []
        for items in lists:
            vectors = [table.rows[i].astype(np.float64) for i in items if table.present[i]]
            vectors = [vector / np.linalg.norm(vector) for vector in vectors]
            if len(vectors) > 1:
                values.append(1 - np.mean([a @ b for a, b in itertools.combinations(vectors, 2)]))
        expected[f"diversity {name}"] = np.mean(values)
    return expected


@pytest.mark.parametrize("candidates", ["unseen", "all"])
def test_list_metrics_of_recommended_lists_equal_plain_loops(small, tmp_path, candidates):
    run = train("item-knn", small, tmp_path / "run", candidates=candidates)
    evaluation = evaluate(run.folder)
    assert json.loads((run.folder / "results.json").read_text())["lists"] == evaluation.list_results
    recommender, ids = Recommender.open(run.folder), small.item_table["item_id"]
    rows = {}
    for number, domain in enumerate(small.domains):
        lists = []
        for position in small.test[small.domains_of(small.items[small.test]) == number]:
            start = small.offsets[small.users_at(np.array([position]))[0]]
            history = [ids[int(item)] for item in small.items[start:position]]
            (listed,) = recommender.recommend([history], domain.name, k=10)
            lists.append([ids.index_of(one.item.item_id) for one in listed.items])
        rows[domain.name] = plain_metrics(small, number, lists)
        assert evaluation.list_results[domain.name] == pytest.approx(rows[domain.name], rel=1e-5)
    for name, value in evaluation.list_results["overall"].items():
        assert value == pytest.approx(np.mean([row[name] for row in rows.values()]), rel=1e-5)
    assert "coverage@10 (%)" in str(evaluation)
    assert "Recommended lists of 10 items" in (run.folder / "report.html").read_text()


def test_list_metrics_without_features_have_no_diversity(make_small):
    data = make_small(with_features=False)
    model = build_model("popularity", load_item_features(data), configure("popularity"))
    ranks = rank_targets([model] * 2, data, "test", with_lists=True).half_ties
    assert list(summarize_lists(ranks, data)["d0"]) == ["coverage@10", "popularity rank", "novelty"]
    sampled = rank_targets(
        [model] * 2, data, "test", get_protocol("sampled-unseen"), with_lists=True
    ).half_ties
    assert summarize_lists(sampled, data) == {}


def test_lists_in_small_domains_end_with_the_items(make_small):
    data = make_small(sizes=(6, 4))
    model = build_model("popularity", load_item_features(data), configure("popularity"))
    ranks = rank_targets([model] * 2, data, "test", get_protocol("full", "unseen"), with_lists=True).half_ties
    for position, number, listed in zip(ranks.positions, ranks.domains, ranks.lists, strict=True):
        start = data.offsets[data.users_at(np.array([position]))[0]]
        domain = data.domains[number]
        unseen = set(range(domain.start, domain.stop)) - set(data.items[start:position].tolist())
        assert set(listed.tolist()) - {-1} == unseen


def test_popularity_ranks_of_equal_counts_are_their_mean():
    assert popularity_ranks(np.array([5, 9, 5, 0])).tolist() == [2.5, 1, 2.5, 4]


def test_evaluate_with_repeats_shows_the_other_candidates_as_well(small, tmp_path):
    results = {}
    for candidates in ("unseen", "all"):
        run = train("item-knn", small, tmp_path / candidates, candidates=candidates)
        evaluation = evaluate(run.folder)
        assert evaluation.ranks.is_repeat.any()
        results[candidates] = evaluation.results, evaluation.other_results
    assert results["unseen"] == results["all"][::-1]
    assert "item-knn, other candidates" in str(evaluation)
    assert "other candidates: without items of the history in d0, d1" in str(evaluation)
