"""Metrics of recommended lists, compared with plain loops and with the formulas of tests/reference."""

from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest

from hafvt.data.dataset import Dataset, replace_item_table
from hafvt.evaluation.list_metrics import popularity_ranks, summarize_lists
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.evaluate import evaluate
from hafvt.features.item_features import load_item_features
from hafvt.features.table import FeatureTable
from hafvt.inference.recommender import Recommender
from hafvt.models import build_model, configure
from hafvt.training.train import train
from tests.reference import list_metrics as reference


def plain_metrics(data, number, lists, histories):
    """Returns the metrics of lists of item numbers in one domain by their definitions."""
    domain, all_counts = data.domains[number], data.train_counts()
    counts = all_counts[domain.start : domain.stop]
    ranks = [1 + sum(c > own for c in counts) + (sum(c == own for c in counts) - 1) / 2 for own in counts]
    bits = [-np.log2(max(count, 1) / counts.sum()) for count in counts]
    expected = {
        "coverage@10": len({item for items in lists for item in items}) / len(domain),
        "Gini@10": reference.gini(
            [sum(i in items for items in lists) for i in range(domain.start, domain.stop)]
        ),
        "popularity rank": np.mean([np.mean([ranks[i - domain.start] for i in items]) for items in lists]),
        "popularity bias": reference.popularity_lift(lists, histories, dict(enumerate(all_counts))),
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
        lists, histories = [], []
        for position in small.test[small.domains_of(small.items[small.test]) == number]:
            start = small.offsets[small.users_at(np.array([position]))[0]]
            history = [ids[int(item)] for item in small.items[start:position]]
            (listed,) = recommender.recommend([history], domain.name, k=10)
            lists.append([ids.index_of(one.item.item_id) for one in listed.items])
            numbers = small.items[start:position].tolist()
            histories.append([n for n in numbers if domain.start <= n < domain.stop])
        rows[domain.name] = plain_metrics(small, number, lists, histories)
        assert evaluation.list_results[domain.name] == pytest.approx(rows[domain.name], rel=1e-5)
    for name, value in evaluation.list_results["overall"].items():
        assert value == pytest.approx(np.mean([row[name] for row in rows.values()]), rel=1e-5)
    assert "coverage@10 (%)" in str(evaluation)
    assert "Recommended lists of 10 items" in (run.folder / "report.html").read_text()


def test_list_metrics_without_features_have_no_diversity(make_small):
    data = make_small(with_features=False)
    model = build_model("popularity", load_item_features(data), configure("popularity"))
    ranks = rank_targets([model] * 2, data, "test", with_lists=True).half_ties
    names = ["coverage@10", "Gini@10", "popularity rank", "popularity bias", "novelty"]
    assert list(summarize_lists(ranks, data)["d0"]) == names
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


@pytest.mark.parametrize("kind", ["text", "list"])
def test_calibration_of_lists_with_genres_equals_the_reference(make_small, kind):
    data = make_small(with_features=False)
    random, ids = np.random.default_rng(0), data.item_table["item_id"]
    genres = {
        item: [g for g in "ABCD" if random.random() < 0.4] if random.random() < 0.9 else [] for item in ids
    }
    column = list(genres.values()) if kind == "list" else ["|".join(values) for values in genres.values()]
    columns = {"genres": column, "text": [f"unique {n}" for n in range(len(ids))], "one": "x"}
    attributes = pl.DataFrame({**columns, "price": 1.0})
    replace_item_table(data.folder, pl.concat([data.item_table, attributes], how="horizontal"))
    data = Dataset.open(data.folder)
    model = build_model("item-knn", load_item_features(data, interactions=True), configure("item-knn"))
    ranks = rank_targets([model] * 2, data, "test", with_lists=True).half_ties
    results = summarize_lists(ranks, data)
    for number, domain in enumerate(data.domains):
        values = []
        for position, listed in zip(
            ranks.positions[ranks.domains == number], ranks.lists[ranks.domains == number], strict=True
        ):
            start = data.offsets[data.users_at(np.array([position]))[0]]
            numbers = [n for n in data.items[start:position].tolist() if domain.start <= n < domain.stop]
            items, history = ([ids[n] for n in part if n >= 0] for part in (listed.tolist(), numbers))
            if any(genres[i] for i in items) and any(genres[i] for i in history):
                values.append(reference.divergence(items, history, genres))
        assert results[domain.name]["calibration genres"] == pytest.approx(np.mean(values))
        assert "calibration one" not in results[domain.name]
        assert "calibration price" not in results[domain.name]
