"""`evaluate` ranks what `recommend` lists, with the default settings of both."""

from __future__ import annotations

import math
import re

import numpy as np
import polars as pl
import pytest

from hafvt.data.dataset import Dataset
from hafvt.data.prepare import prepare
from hafvt.experiments.evaluate import evaluate
from hafvt.inference.recommender import Recommender
from hafvt.reports.report import write_run_report
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS


def make_log(tmp_path, repeat_every: int) -> Dataset:
    """Return a dataset of 40 users and 30 items; every n-th interaction repeats the one before, 0: none."""
    rows = []
    for user in range(40):
        items: list[int] = []
        for step in range(8):
            is_repeat = repeat_every and items and (user + step) % repeat_every == 0
            items.append(items[-1] if is_repeat else (7 * user + 3 * step) % 30)
        rows += [(f"u{user}", f"i{item}", step) for step, item in enumerate(items)]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(frame, out=tmp_path / f"data{repeat_every}")


@pytest.mark.parametrize(
    ("repeat_every", "candidates"), [(0, "auto"), (3, "auto"), (3, "unseen"), (0, "all")]
)
def test_rank_of_a_target_is_its_place_in_the_recommended_list(tmp_path, repeat_every, candidates):
    data = make_log(tmp_path, repeat_every)
    assert (data.repeats[0].share > 0.05) == (repeat_every > 0)
    options = {"params": {"width": 8}, "epochs": 1, "candidates": candidates}
    run = train("sasrec", data, tmp_path / "run", **options)
    evaluation = evaluate(run.folder)
    assert evaluation.folder == run.folder  # the ranks of train, by the same rule
    ranks = pl.read_parquet(run.folder / "ranks.parquet")
    recommender = Recommender.open(run.folder)
    num_missed = 0
    for user_id, item_id, rank, num_candidates, is_repeat in ranks.select(
        "user_id", "item_id", "rank", "candidates", "repeat"
    ).iter_rows():
        user = data.user_ids.to_list().index(user_id)
        start, stop = data.offsets[user], data.offsets[user + 1] - 1
        history = [data.item_table["item_id"][int(item)] for item in data.items[start:stop]]
        listed = [s.item.item_id for s in recommender.recommend([history], "all", k=data.num_items)[0].items]
        assert len(listed) == num_candidates
        assert is_repeat == (item_id in history)
        if math.isinf(rank):
            num_missed += 1
            assert item_id not in listed
        else:
            assert listed.index(item_id) + 1 == rank
    assert (num_missed > 0) == (candidates == "unseen")
    assert bool(evaluation.by_novelty) == bool(ranks["repeat"].any())


def test_train_and_reports_show_repeats_and_new_targets_apart(tmp_path):
    data = make_log(tmp_path, 3)
    run = train("popularity", data, tmp_path / "run")
    evaluation = evaluate(run.folder)
    lines = str(run).splitlines()
    for name, results in evaluation.by_novelty.items():
        value = f"{100 * results['all']['MRR'].value:.2f}"
        assert value in next(line for line in lines if line.startswith(f"  {name} "))
        page = write_run_report(run).read_text(encoding="utf-8")
        assert re.search(f"popularity, {name}</bdi></th>.*<b>{value}</b>", page, re.DOTALL)
    unrepeated = train("popularity", make_log(tmp_path, 0), tmp_path / "unrepeated")
    assert "new targets" not in str(unrepeated)
    assert "new targets" not in write_run_report(unrepeated).read_text(encoding="utf-8")


def test_evaluate_with_other_candidates_writes_its_own_folder(tmp_path):
    run = train("popularity", make_log(tmp_path, 3), tmp_path / "run")
    evaluation = evaluate(run.folder, candidates="unseen")
    assert evaluation.folder == run.folder / "test-unseen"
    assert evaluation.by_novelty["repeats"]["all"]["MRR"].value == 0.0
    assert evaluation.by_novelty["new targets"]["all"]["MRR"].value > evaluation.results["all"]["MRR"].value
    assert "repeats, which the history contains: " in str(evaluation)
    assert "without those of the history" in (evaluation.folder / "results.json").read_text()


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
@pytest.mark.parametrize("model", ["hafvt", "item-knn", "recent-popularity", "seasonal-popularity"])
def test_rank_is_its_place_in_the_list_at_the_time_of_request(tmp_path, model, split):
    random = np.random.default_rng(0)
    times = 1_500_000_000 + random.integers(0, 3 * 365 * 86_400, (40, 9))
    rows = [(f"u{user}", f"i{random.integers(30)}", int(time)) for user in range(40) for time in times[user]]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = prepare(frame, out=tmp_path / "data", split=split)
    run = train(model, data, tmp_path / "run", candidates="unseen", params=SMALL_PARAMS[model], epochs=1)
    evaluation = evaluate(run.folder)
    recommender, ids, ranks = Recommender.open(run.folder), data.item_table["item_id"], evaluation.ranks
    written = pl.read_parquet(run.folder / "ranks.parquet")
    assert written["request_time"].to_list() == data.request_times(ranks.positions).tolist()
    for position, rank, request_time in zip(
        ranks.positions, ranks.ranks, written["request_time"], strict=True
    ):
        start = data.offsets[data.users_at(np.array([position]))[0]]
        history = [ids[int(item)] for item in data.items[start:position]]
        (listed,) = recommender.recommend([history], "all", k=30, time=request_time)
        scores = {one.item.item_id: one.score for one in listed.items}
        target = ids[int(data.items[position])]
        if math.isinf(rank):
            assert target not in scores
        else:
            others = np.array([score for item_id, score in scores.items() if item_id != target])
            own = scores[target]
            assert rank == 1 + (others > own).sum() + (others == own).sum() / 2
