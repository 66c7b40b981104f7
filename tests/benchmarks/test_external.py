"""Models of other libraries: what they are given, and that their scores are ranked as ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from hafvt.evaluation.target_ranking import rank_targets
from tests.conftest import write_small

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "contestants")]

import external  # noqa: E402
import machine  # noqa: E402
import time_to_quality  # noqa: E402
from convergence import PROTOCOL, UNKNOWN_ITEM, ExternalModel, TrainingCurve, Trial, train_histories  # noqa: E402
from rivals import LENGTHS, RIVALS  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_small(tmp_path_factory.mktemp("external") / "data")


@pytest.fixture(scope="module")
def sasrec(data, tmp_path_factory):
    from hafvt.training.train import train

    folder = tmp_path_factory.mktemp("external") / "run"
    return train("sasrec", data, folder, params={"width": 8, "max_length": 6}, epochs=2, test=False).model


def as_external(model, data, known=None):
    """Returns a model of ours as one of another library, which scores histories one by one."""

    def score(histories):
        rows = []
        for history in histories:
            batch = (torch.from_numpy(history)[None], torch.tensor([len(history)]))
            states = model.states(model.items(batch[0]), batch[1])[:, -1]
            rows.append(states @ model.items.weight.T)
        scores = torch.cat(rows)
        return scores if known is None else scores.masked_fill(~known, UNKNOWN_ITEM)

    return ExternalModel(torch.nn.Linear(1, 1), score, data, model.max_length)


def trial_of(data, out, **changes):
    options = {"settings": {}, "epochs": 10, "patience": 2, "cpu_s": 1e9}
    return Trial(data=data, out=out, **{**options, **changes})


def test_external_model_with_our_scores_ranks_as_our_model(data, sasrec):
    for split in ("valid", "test"):
        ours, theirs = (
            rank_targets([model] * 2, data, split, PROTOCOL).half_ties
            for model in (sasrec, as_external(sasrec, data))
        )
        assert np.array_equal(ours.positions, theirs.positions)
        np.testing.assert_allclose(ours.ranks, theirs.ranks)


def test_external_model_with_candidates_scores_those_items(data, sasrec):
    from hafvt.data.batches import Batch

    model = as_external(sasrec, data)
    batch = Batch(torch.tensor([[3, 31, 0], [5, 6, 7]]), torch.tensor([2, 3]))
    candidates = torch.tensor([[30, 49], [31, 30]])
    expected = model.scores(batch, 1).gather(1, candidates - data.domains[1].start)
    assert torch.equal(model.scores(batch, 1, candidates), expected)


def test_external_model_ranks_unknown_items_below_all_others(data, sasrec):
    known = torch.ones(data.num_items, dtype=torch.bool)
    unknown = np.unique(np.asarray(data.items)[data.test])[:5]
    known[unknown] = False
    ranks = rank_targets([as_external(sasrec, data, known)] * 2, data, "test", PROTOCOL).half_ties
    is_unknown = np.isin(np.asarray(data.items)[ranks.positions], unknown)
    is_unknown &= np.isfinite(ranks.ranks)
    assert is_unknown.any()
    assert (ranks.ranks[is_unknown] > ranks.candidates[is_unknown] - len(unknown)).all()


def test_train_histories_hold_no_target(data):
    rows = train_histories(data)
    for user, row in enumerate(rows):
        start = data.offsets[user]
        assert np.array_equal(row, data.items[start : start + data.train_lengths[user]])
        targets = [p for p in (*data.valid, *data.test) if data.users_at(p) == user]
        assert all(start + len(row) <= position for position in targets)


@pytest.mark.parametrize(
    ("mrrs", "changes", "converged"),
    [
        ([0.1, 0.2, 0.15, 0.2], {}, True),  # an equal value is no improvement
        ([0.1, 0.2, 0.3], {"epochs": 3}, False),
        ([0.1], {"cpu_s": 0.0}, False),
    ],
)
def test_curve_ends_by_patience_epochs_or_processor_time(data, tmp_path, mrrs, changes, converged):
    curve = TrainingCurve(trial_of(data, tmp_path, **changes))
    ends = []
    for mrr in mrrs:
        curve.pause()
        ends.append(curve.add(mrr))
    assert ends == [False] * (len(mrrs) - 1) + [True]
    assert curve.has_converged() == converged
    assert curve.best()[2] == max(mrrs)


def test_curve_writes_test_ranks_and_facts(data, sasrec, tmp_path):
    curve = TrainingCurve(trial_of(data, tmp_path))
    curve.pause()
    curve.add(0.5)
    curve.write(as_external(sasrec, data), "toy 1")
    ranks = np.load(tmp_path / "ranks.npz")
    expected = rank_targets([sasrec] * 2, data, "test", PROTOCOL).half_ties
    np.testing.assert_allclose(ranks["ranks"], expected.ranks)
    facts = json.loads((tmp_path / "trial.json").read_text())
    assert facts["version"] == "toy 1"
    assert facts["curve"][0][::2] == [1, 0.5]


def test_rivals_have_equally_many_trials():
    counts = {name: {data: len(rival.trials[data]) for data in LENGTHS} for name, rival in RIVALS.items()}
    with_dates_only = {name for name, of_data in counts.items() if of_data["movielens-posters"] == 0}
    assert with_dates_only == {"hafvt without dates", "recent-popularity"}
    assert {n for of_data in counts.values() for n in of_data.values() if n} == {3}


def test_trial_takes_the_first_best_epoch_and_the_time_to_a_quality():
    facts = {"curve": [[1, 5.0, 0.1], [2, 9.0, 0.3], [3, 14.0, 0.3]]}
    trial = external.FinishedTrial(facts, np.array([1.0, 2.0, 4.0, np.inf]), np.array([0, 0, 0, 1]))
    assert trial.best == (2, 9.0, 0.3)
    assert (trial.seconds_to(0.2), trial.seconds_to(0.31)) == (9.0, None)
    assert trial.gains("MRR").mean() == pytest.approx((1.75 / 3 + 0) / 2)  # the mean of the domains


def test_chart_is_an_svg_with_a_line_for_each_curve():
    svg = time_to_quality.chart("a < b", {"x & y": [(1, 2.0, 0.01), (2, 150.0, 0.14)], "z": [(1, 9.0, 0.1)]})
    assert svg.startswith("<svg")
    assert svg.count("<polyline") == 2
    assert "a &lt; b" in svg
    assert "x &amp; y" in svg


@pytest.mark.parametrize("name", RIVALS)
def test_contestant_with_tiny_settings_writes_a_trial(data, tmp_path, name):
    rival = RIVALS[name]
    work = Path(os.environ.get("HAFVT_BENCH", "/nonexistent"))
    if rival.library != "hafvt" and not (work / "environments" / rival.library / "ready").exists():
        pytest.skip(
            f"{rival.library} is not installed: run benchmarks/external.py, set HAFVT_BENCH to its --work"
        )
    width = {"hafvt": "params", "rectools": "n_factors", "replay": "width", "cornac": "k"}[rival.library]
    small = {"sasrec": {"width": 8}, "item-knn": {}, "recent-popularity": {}}.get(name, {"id_width": 8})
    trials = rival.trials["movielens-posters"] or rival.trials["amazon-food-kitchen"]
    settings = {**trials[0], "max_length": 6}
    settings[width] = small if width == "params" else 8
    limits = external.Limits(epochs=2, patience=2, cpu_s=60)
    command = external.run_command(work, rival.library, data.folder, settings, limits, tmp_path / "out")
    subprocess.run(command, check=True, cwd=tmp_path / "out", env=external.environment())
    facts = json.loads((tmp_path / "out" / "trial.json").read_text())
    assert [epoch for epoch, _, _ in facts["curve"]] in ([1, 2], [2], [1])
    assert len(np.load(tmp_path / "out" / "ranks.npz")["ranks"]) == len(data.test)


def test_write_makes_tables_and_charts_of_the_finished_trials(tmp_path, monkeypatch):
    monkeypatch.setattr(external, "RESULTS", tmp_path)
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    random, films = np.random.default_rng(0), "movielens-posters"
    trials = {"hafvt": [0.30, 0.35], "sasrec": [0.32], "SASRec (RePlay)": [0.2]}
    for name, mrrs in trials.items():
        for number, mrr in enumerate(mrrs):
            path = external.place(films, name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            facts = {"version": "toy 1", "settings": {}, "parameters": 5, "converged": name == "hafvt"}
            curve = [[1, 10.0 * (number + 1), mrr / 2], [2, 20.0 * (number + 1), mrr], [3, 50.0, mrr / 3]]
            path.write_text(json.dumps({**facts, "curve": curve, "machine": machine.describe()}))
            ranks = random.integers(1, 40, 60).astype(float)
            np.savez(path.with_suffix(".npz"), ranks=ranks, domains=np.arange(60) % 2)
    text = external.write()
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ") and "toy" in line]
    assert [row[0] for row in rows] == ["| hafvt", "| sasrec", "| SASRec (RePlay)"]  # by validation MRR
    assert [row[4:7] for row in rows] == [["2", "40", "35.00"], ["2*", "20", "32.00"], ["2*", "20", "20.00"]]
    assert rows[1][-2:] == ["40", "2.00 |"]  # hafvt is as good after 40 s, twice the time
    assert rows[2][-2:] == ["40", "2.00 |"]
    saved = json.loads((tmp_path / "external.json").read_text())["data"][films]
    assert saved["sasrec"]["cpu_s"] == 20.0
    assert (tmp_path / f"external-{films}.svg").read_text().count("<polyline") == 3
    assert not (tmp_path / "external-amazon-food-kitchen.svg").exists()
