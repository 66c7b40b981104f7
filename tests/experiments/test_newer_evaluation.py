"""Evaluation of a run on a newer dataset, whose items are matched by their ids."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hafvt.data.prepare import prepare
from hafvt.errors import HafvtError
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.evaluate import evaluate
from hafvt.inference.recommender import Recommender
from hafvt.training.train import train


def interactions(weeks: int) -> pl.DataFrame:
    """Returns a log that grows by some users and items each week."""
    random = np.random.default_rng(0)
    rows = [
        (f"u{user}", f"{domain}{random.integers(10 + 2 * week)}", domain, 1_700_000_000 + week * 604_800 + n)
        for week in range(weeks)
        for user in range(20 + 5 * week)
        for n, domain in enumerate("ab")
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "domain", "timestamp"], orient="row")


@pytest.fixture(scope="module")
def old_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weeks")
    data = prepare(interactions(3), out=folder / "w3", split="time")
    prepare(interactions(5), out=folder / "w5", split="time", seed=1)
    return train("sasrec", data, folder / "run", params={"width": 8}, epochs=1, test=True)


def test_evaluate_on_the_same_dataset_elsewhere_equals_the_training(old_run, tmp_path):
    data = prepare(interactions(3), out=tmp_path / "again", split="time")
    evaluation = evaluate(old_run.folder, data=data)
    assert evaluation.folder == old_run.folder


def test_evaluate_on_other_numbers_of_the_same_items_gives_the_same_ranks(old_run, tmp_path):
    data = prepare(interactions(3), out=tmp_path / "renumbered", split="time", seed=9)
    evaluation = evaluate(old_run.folder, data=data)
    assert evaluation.folder == old_run.folder / "test-renumbered"
    expected = rank_targets(old_run.models, old_run.data, "test", old_run.protocol).by_protocol
    assert sorted(evaluation.ranks.ranks) == pytest.approx(sorted(expected.ranks))


def test_evaluate_on_a_newer_dataset_ranks_as_recommend_lists(old_run):
    newer = old_run.data.folder.parent / "w5"
    assert evaluate(old_run.folder, data=newer, split="valid").folder.name == "valid-w5"
    evaluation = evaluate(old_run.folder, data=newer)
    table = pl.read_parquet(evaluation.folder / "ranks.parquet")
    known = old_run.data.item_table["item_id"]
    is_known = table["item_id"].is_in(known.implode())
    assert (~is_known).any()
    assert table.filter(~is_known)["rank"].is_infinite().all()
    assert f"{(~is_known).sum()} with an item that the run does not know" in str(evaluation)
    recommender = Recommender.open(old_run.folder)
    log = interactions(5).sort("timestamp", maintain_order=True)
    checked = 0
    for row in table.filter(is_known).iter_rows(named=True):
        events = log.filter(pl.col("user_id") == row["user_id"])
        places = events["item_id"].to_list()
        if places.count(row["item_id"]) > 1:
            continue
        history = places[: places.index(row["item_id"])]
        (result,) = recommender.recommend([history], row["domain"], 100)
        ids = [scored.item.item_id for scored in result.items]
        scores = {scored.item.item_id: scored.score for scored in result.items}
        if row["item_id"] in ids and len(set(scores.values())) == len(scores):
            assert row["rank"] == 1 + ids.index(row["item_id"])
            checked += 1
    assert checked > 20


@pytest.mark.parametrize("options", [{"cold": True}, {"protocol": "c2dsr"}])
def test_evaluate_on_a_newer_dataset_refuses_other_protocols(old_run, options):
    with pytest.raises(HafvtError, match=r"is not the dataset that .* leave out --cold and --protocol"):
        evaluate(old_run.folder, data=old_run.data.folder.parent / "w5", **options)


def test_evaluate_on_a_dataset_of_other_domains_is_refused(old_run, tmp_path):
    log = interactions(3).with_columns(domain=pl.lit("c"), item_id=pl.lit("c") + pl.col("item_id"))
    data = prepare(log, out=tmp_path / "others", split="time")
    with pytest.raises(HafvtError, match="has no test targets in a domain of"):
        evaluate(old_run.folder, data=data)
