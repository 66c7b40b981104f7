"""`evaluate` ranks what `recommend` lists, with the default settings of both."""

from __future__ import annotations

import math
import re

import polars as pl
import pytest

from hafvt.data.dataset import Dataset
from hafvt.data.prepare import prepare
from hafvt.experiments.evaluate import evaluate
from hafvt.inference.recommender import Recommender
from hafvt.reports.report import write_run_report
from hafvt.training.train import train


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
