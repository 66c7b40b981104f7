"""Cold items do not influence training; they are ranked among all items and compared with a random order."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest
import torch

from hafvt import evaluate, prepare, train
from hafvt.data.batches import collate
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.ranks import Ranks
from hafvt.experiments.cold_evaluation import random_order_results
from hafvt.features.table import write_table
from hafvt.training.run import open_run

KINDS = 4
IDS = [f"{domain}{n:02}" for domain in "xy" for n in range(40)]
DOMAINS = [{"x": "first", "y": "second"}[one[0]] for one in IDS]


def kind(item_id: str) -> int:
    return int(item_id[1:]) % KINDS


def interactions() -> pl.DataFrame:
    """Users who stay with one kind of items, which pictures show and ids of cold items cannot."""
    random = np.random.default_rng(0)
    rows = []
    for user in range(80):
        liked = [item_id for item_id in IDS if kind(item_id) == user % KINDS]
        rows += [(f"u{user}", liked[random.integers(len(liked))], time) for time in range(14)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


def prepare_with_pictures(folder, interactions: pl.DataFrame) -> Dataset:
    items = pl.DataFrame({"item_id": IDS, "domain": DOMAINS})
    data = prepare(interactions, items, folder, hold_out_items=0.15)
    random = np.random.default_rng(1)
    centers = random.normal(size=(KINDS, 8))
    rows = np.stack([centers[kind(one)] for one in data.item_table["item_id"]])
    rows += 0.2 * random.normal(size=(len(IDS), 8))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    present = np.ones(len(IDS), dtype=bool)
    write_table(data.folder / "features" / "image", rows.astype(np.float16), present, {"encoder": "test"})
    return data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A dataset with held-out items, and runs on it."""
    root = tmp_path_factory.mktemp("cold")
    data = prepare_with_pictures(root / "data", interactions())
    small = {"id_width": 8}
    settings = {"epochs": 4, "batch_size": 16, "learning_rate": 0.03, "test": False}
    train("hafvt", data, root / "hafvt", params=small, **settings)
    train("popularity", data, root / "popularity", test=False)
    return root


def test_evaluate_cold_with_informative_pictures_beats_a_random_order(folder) -> None:
    evaluation = evaluate(folder / "hafvt", cold=True)
    assert evaluation.results["overall"]["MRR"].value > 1.5 * evaluation.random_order["overall"]["MRR"].value
    text = str(evaluation)
    assert "a random order" in text
    assert "as a multiple of that of a random order: " in text
    assert " (overall)" in text
    content = json.loads((folder / "hafvt" / "cold" / "results.json").read_text())
    assert content["chance"]["first"]["MRR"]["value"] == pytest.approx((1 / np.arange(1, 41)).mean())
    data = Dataset.open(folder / "data")
    table = pl.read_parquet(folder / "hafvt" / "cold" / "ranks.parquet")
    assert len(table) == len(data.cold_targets)
    names = data.item_table["item_id"]
    assert table["item_id"].to_list() == [names[int(item)] for item in data.cold_targets[:, 2]]
    assert table["user_id"].to_list() == data.user_ids.gather(data.cold_targets[:, 0]).to_list()
    assert set(table["candidates"]) == {40}


def test_evaluate_cold_ranks_agree_with_the_scores(folder) -> None:
    evaluation = evaluate(folder / "hafvt", cold=True)
    run = open_run(folder / "hafvt")
    for row in range(0, len(run.data.cold_targets), 7):
        user, position, item = run.data.cold_targets[row].tolist()
        history = collate(run.data.items, run.data.offsets[[user]], np.array([position]))
        domain = int(item >= 40)
        with torch.inference_mode():
            scores = run.model.scores(history, domain)[0]
        target_score = scores[item - 40 * domain]
        rank = 1 + int((scores > target_score).sum()) + (int((scores == target_score).sum()) - 1) / 2
        assert evaluation.ranks.ranks[row] == pytest.approx(rank, abs=1)  # batches may round otherwise
        assert evaluation.ranks.users[row] == user


def test_evaluate_cold_of_popularity_ranks_cold_items_last(folder) -> None:
    ranks = evaluate(folder / "popularity", cold=True).ranks.ranks
    assert (ranks > 30).all()


@pytest.mark.slow
def test_train_with_other_interactions_of_cold_items_has_equal_weights(folder, tmp_path) -> None:
    names = Dataset.open(folder / "data").item_table["item_id"]
    counts = Dataset.open(folder / "data").train_counts()
    cold_items = [one for one, count in zip(names, counts, strict=True) if not count]
    assert len(cold_items) == 12
    other = {one: next(n for n in cold_items if n[0] == one[0] and n != one) for one in cold_items}
    corrupt = interactions().with_columns(pl.col("item_id").replace(other))
    assert not corrupt.equals(interactions())
    data = prepare_with_pictures(tmp_path / "data", corrupt)
    weights = []
    for dataset, name in ((folder / "data", "own"), (data, "corrupt")):
        run = train("hafvt", dataset, tmp_path / name, params={"id_width": 8}, epochs=1, test=False)
        weights.append(run.model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_random_order_results_are_exact() -> None:
    none = np.zeros(3, dtype=np.int64)
    ranks = Ranks(none, none, np.array([0, 0, 1]), np.ones(3), np.array([4, 4, 2]), np.zeros(3, dtype=bool))
    results = random_order_results(ranks, ["a", "b", "c"])
    assert list(results) == ["a", "b", "overall"]
    assert results["a"]["MRR"].value == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4)
    assert results["a"]["HR@1"].value == pytest.approx(1 / 4)
    assert results["b"]["NDCG@5"].value == pytest.approx((1 + 1 / np.log2(3)) / 2)
    assert results["overall"]["MRR"].value == pytest.approx((25 / 48 + 3 / 4) / 2)


def test_evaluate_cold_without_cold_targets_names_the_remedy(small, tmp_path, folder) -> None:
    train("popularity", small, tmp_path / "run", test=False)
    with pytest.raises(HafvtError, match="no cold targets: prepare it with --hold-out-items"):
        evaluate(tmp_path / "run", cold=True)
    with pytest.raises(HafvtError, match="--cold ranks by its own rule: leave out"):
        evaluate(folder / "hafvt", cold=True, split="valid")
