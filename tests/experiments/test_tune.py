"""Searches: deterministic, with early stops, shared by processes, resumed after a stop or a kill."""

from __future__ import annotations

import csv
import inspect
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from xml.etree import ElementTree

import numpy as np
import optuna
import pytest
import yaml
from optuna.trial import TrialState

from hafvt.cli import main
from hafvt.errors import HafvtError
from hafvt.experiments import training_pool
from hafvt.experiments.compare import compare
from hafvt.experiments.search_space import Choices, Range
from hafvt.experiments.study import setting_importances
from hafvt.experiments.training_pool import is_in_use
from hafvt.experiments.tune import tune
from hafvt.training.train import train

FAKE_TRAINING = """
import fcntl, json, math, os, sys, time
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
out, rate = Path(options["out"]), float(options["learning_rate"])
out.mkdir(exist_ok=True)
lock = os.open(out.with_name(f".{{out.name}}.lock"), os.O_RDWR | os.O_CREAT)
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
if rate > {max_rate}:
    sys.exit("the loss is nan")
metrics = out / "metrics.jsonl"
done = len(metrics.read_text().splitlines()) if metrics.exists() else 0
for epoch in range(done + 1, int(options["epochs"]) + 1):
    time.sleep({pause})
    mrr = epoch / (10 + abs(math.log10(rate) + 2.2)) + 1e-3 * float(options["params.dropout"])
    with metrics.open("a") as file:
        file.write(json.dumps(dict(epoch=epoch, valid_mrr=mrr / 10, seconds=60.0 * epoch)) + "\\n")
"""


@pytest.fixture
def fake_training(tmp_path, monkeypatch):
    """Replaces `hafvt train` by a fake; returns a function that configures it and returns its command."""

    def configure(pause=0.0, max_rate=1.0):
        path = tmp_path / "fake.py"
        path.write_text(FAKE_TRAINING.format(pause=pause, max_rate=max_rate))
        monkeypatch.setattr(training_pool, "HAFVT", [sys.executable, "-S", str(path)])
        return training_pool.HAFVT

    monkeypatch.setattr("hafvt.experiments.tune.POLL_S", 0.02)
    return configure


def start_search(command, data, out, **settings):
    """Starts a search in a process of its own, with quick heartbeats."""
    code = (
        "from hafvt.experiments import study_storage, training_pool\n"
        "from hafvt.experiments.tune import tune\n"
        "study_storage.HEARTBEAT_S, study_storage.GRACE_S = 1, 2\n"
        f"training_pool.HAFVT = {command!r}\n"
        f"tune('sasrec', {str(data.folder)!r}, {str(out)!r}, **{settings!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def wait_for(condition):
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def outcomes(result):
    return [(trial.params, trial.state, trial.valid_value, trial.epochs) for trial in result.trials]


def trained_epochs(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_tune_writes_best_settings_report_and_importances(small, tmp_path, fake_training, monkeypatch):
    fake_training()
    monkeypatch.setattr(pickle, "loads", None)  # nothing is pickled
    monkeypatch.setattr(pickle, "dumps", None)
    out = tmp_path / "out"
    result = tune("sasrec", small, out, trials=12, epochs=4, jobs=1)
    first = result.trials[0].params
    assert (first["learning_rate"], first["batch_size"], first["dropout"]) == (1e-3, 64, 0.3)
    best = result.best
    assert (
        best.valid_value == max(trial.valid_value for trial in result.trials) > result.trials[0].valid_value
    )
    assert best.params["learning_rate"] > 10**-2.5
    stopped = [trial for trial in result.trials if trial.state == "stopped early"]
    assert stopped
    assert all(trial.epochs < 4 for trial in stopped)
    assert all(trial.state == "finished" for trial in result.trials[:4])
    assert set(result.importances) == set(first)
    assert sum(result.importances.values()) == pytest.approx(1)
    report = (out / "report.md").read_text()
    counts = f"{12 - len(stopped)} finished, {len(stopped)} stopped early"
    assert f"12 trials of at most 4 epochs ({counts})" in report
    assert f"{100 * best.valid_value:.2f}" in report
    assert str(result).splitlines()[0] in report
    assert f"\n\n{json.loads((out / 'settings.json').read_text())['budget']}\n\n" in report
    lines = list(csv.DictReader((out / "trials.csv").open()))
    rates = [trial.params["learning_rate"] for trial in result.trials]
    assert [float(line["learning_rate"]) for line in lines] == rates
    figure = ElementTree.fromstring((out / "importance.svg").read_text())
    texts = [element.text for element in figure.iter() if element.tag.endswith("text")]
    assert set(result.importances) <= set(texts)


def test_tune_first_trial_has_default_settings_that_the_space_leaves_out(small, tmp_path, fake_training):
    fake_training()
    space = {"learning_rate": [2e-3, 8e-3, "log"], "dropout": [0.4, 0.5], "batch_size": [16]}
    result = tune("sasrec", small, tmp_path / "out", space=space, trials=6, epochs=2, jobs=1)
    first, others = result.trials[0], result.trials[1:]
    assert (first.params["learning_rate"], first.params["dropout"]) == (1e-3, 0.3)
    assert first.params["batch_size"] == 16  # a single choice is fixed
    assert "default settings of preset `default` (trial 0): " in result.text
    assert all(2e-3 <= trial.params["learning_rate"] <= 8e-3 for trial in others)
    options = [folder.read_text() for folder in (tmp_path / "out").glob("trials/*/metrics.jsonl")]
    assert len(options) == 6
    assert set(result.importances) == {"learning_rate", "dropout", "width", "blocks", "heads", "weight_decay"}
    repeated = tune("sasrec", small, tmp_path / "out", space=space, trials=6, epochs=2, jobs=1)
    assert outcomes(repeated) == outcomes(result)


def test_tune_by_default_trains_16_trials_or_more_to_convergence():
    parameters = inspect.signature(tune).parameters
    assert parameters["trials"].default >= 16
    assert parameters["epochs"].default == inspect.signature(train).parameters["epochs"].default
    assert parameters["patience"].default is None  # as in train


@pytest.mark.slow
def test_tune_model_without_weights_searches_its_hyperparameters(small, tmp_path):
    space = {"num_neighbors": [2, 100], "shrinkage": [1.0, 50.0, "log"]}
    result = tune("item-knn", small, tmp_path / "out", space=space, trials=2, jobs=1)
    assert set(result.best.params) == {"num_neighbors", "shrinkage", "decay"}
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert "learning_rate" not in best
    comparison = compare(
        small,
        tmp_path / "compare",
        models=["item-knn"],
        tuned={"item-knn": str(tmp_path / "out")},
        budget="small",
    )
    assert comparison.model_results[0].compared.params == best["params"]


def test_tune_repeated_with_equal_seed_tries_equal_settings(small, tmp_path, fake_training):
    fake_training()
    settings = {"epochs": 4, "jobs": 1}
    result = tune("sasrec", small, tmp_path / "a", trials=6, **settings)
    same = tune("sasrec", small, tmp_path / "b", trials=4, **settings)
    assert outcomes(same) == outcomes(result)[:4]
    extended = tune("sasrec", small, tmp_path / "b", trials=6, **settings)
    assert outcomes(extended) == outcomes(result)
    other = tune("sasrec", small, tmp_path / "other", trials=2, seed=1, **settings)
    assert other.trials[0].params == result.trials[0].params
    assert other.trials[1].params != result.trials[1].params


def test_setting_importances_with_pruned_trials_counts_them():
    space = {"learning_rate": Range(1e-4, 1e-2, log=True), "blocks": Choices((1, 2)), "width": Choices((8,))}
    study = optuna.create_study(direction="maximize")
    assert setting_importances(study, space) == {}
    random = np.random.default_rng(0)
    first = study.ask()
    for name, values in space.items():
        values.suggest(first, name)
    for _ in range(40):
        rate = 10 ** random.uniform(-4, -2)
        params = {"learning_rate": rate, "blocks": int(random.integers(1, 3)), "width": 8}
        is_good = rate > 3e-3
        value = 0.1 + 0.01 * random.random() if is_good else 0.02 * random.random()
        study.add_trial(
            optuna.create_trial(
                params=params,
                distributions=first.distributions,
                intermediate_values={1: value},
                value=value,
                state=TrialState.COMPLETE if is_good else TrialState.PRUNED,
            )
        )
    importances = setting_importances(study, space)
    assert list(importances) == ["learning_rate", "blocks"]
    assert importances["learning_rate"] > 0.9


@pytest.mark.slow
def test_tune_terminated_and_repeated_ends_as_without_a_stop(small, tmp_path, fake_training):
    settings = {"trials": 5, "epochs": 3, "jobs": 1}
    fake_training(pause=0.3)

    def interrupt():
        wait_for((tmp_path / "a" / "trials" / "0002" / "metrics.jsonl").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        tune("sasrec", small, tmp_path / "a", **settings)
    thread.join()
    fake_training()
    resumed = tune("sasrec", small, tmp_path / "a", **settings)
    without_stop = tune("sasrec", small, tmp_path / "b", **settings)
    assert outcomes(resumed) == outcomes(without_stop)
    assert trained_epochs(tmp_path / "a" / "trials" / "0002") == [1, 2, 3]


@pytest.mark.slow
def test_tune_killed_and_repeated_resumes_the_trial(small, tmp_path, fake_training):
    settings = {"trials": 5, "epochs": 3, "jobs": 1}
    command = fake_training(pause=0.3)
    process = start_search(command, small, tmp_path / "a", **settings)
    wait_for((tmp_path / "a" / "trials" / "0002" / "metrics.jsonl").exists)
    process.kill()  # the training lives on and must not get a second one beside it
    process.communicate()
    process = start_search(command, small, tmp_path / "a", **settings)
    assert process.communicate()[1] is not None
    assert process.returncode == 0
    lines = list(csv.DictReader((tmp_path / "a" / "trials.csv").open()))
    assert [int(line["trial"]) for line in lines] == list(range(5))
    assert {line["state"] for line in lines} <= {"finished", "stopped early"}
    assert trained_epochs(tmp_path / "a" / "trials" / "0002") == [1, 2, 3]


@pytest.mark.slow
def test_tune_in_two_processes_shares_the_trials(small, tmp_path, fake_training):
    settings = {"trials": 9, "epochs": 2, "jobs": 2}
    command = fake_training(pause=0.1)
    processes = [start_search(command, small, tmp_path / "out", **settings) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    result = tune("sasrec", small, tmp_path / "out", **settings)
    folders = [f"{trial.number:04d}" for trial in result.trials]
    assert sorted(path.name for path in (tmp_path / "out" / "trials").glob("*/")) == folders
    assert len(result.trials) == 9
    for trial in result.trials:
        trained = trained_epochs(tmp_path / "out" / "trials" / f"{trial.number:04d}")
        assert trained == list(range(1, len(trained) + 1))  # once each
        assert len(trained) >= trial.epochs


def test_tune_with_failing_trials_reports_them_and_stops_if_none_succeeds(small, tmp_path, fake_training):
    out = tmp_path / "out"
    fake_training(max_rate=1e-4)
    message = r"trial 0 ended with 1: the loss is nan \(full output: .*0000.log"
    with pytest.raises(HafvtError, match=message):
        tune("sasrec", small, out, trials=8, epochs=1, jobs=1)
    fake_training(max_rate=3e-3)
    result = tune("sasrec", small, out, trials=8, epochs=1, jobs=1)
    failed = [trial for trial in result.trials if trial.state == "failed"]
    assert failed
    assert all(trial.params["learning_rate"] > 3e-3 and trial.valid_value is None for trial in failed)
    assert "Failed: trial" in str(result)
    assert result.trials[0].state == "finished"
    assert len(result.trials) == 8


def test_tune_after_its_time_limit_resumes(small, tmp_path, fake_training):
    fake_training(pause=30)
    with pytest.raises(HafvtError, match=r"no trial has ended within 0\.005 minutes"):
        tune("sasrec", small, tmp_path / "out", trials=2, epochs=1, jobs=1, minutes=0.005)
    fake_training()
    result = tune("sasrec", small, tmp_path / "out", trials=2, epochs=1, jobs=1)
    assert [trial.state for trial in result.trials] == ["finished"] * 2


def test_tune_interrupted_stops_its_trainings(small, tmp_path, fake_training):
    fake_training(pause=30)
    folder = tmp_path / "out" / "trials"

    def interrupt():
        wait_for(lambda: len(list(folder.glob("*/"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        tune("sasrec", small, tmp_path / "out", trials=2, epochs=1, jobs=2)
    thread.join()
    assert not list(folder.glob("*/metrics.jsonl")), "it waited for the trainings"
    assert not any(is_in_use(path) for path in folder.glob("*/"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "sampled-unseen"}, "holds a search with another protocol: choose another folder"),
        ({"space": {"dropout": [0.1, 0.2]}, "seed": 1}, "with another space and seed"),
        ({"trials": 0}, "--trials is 0: choose a whole number from 1"),
        ({"minutes": -1.0}, "--minutes is -1.0: choose a number above 0"),
        ({"jobs": 0}, "--jobs is 0: choose a whole number from 1"),
        ({"params": {"depth": 1}}, "no parameter 'depth'|depth"),
    ],
)
def test_tune_with_wrong_settings_names_the_option(small, tmp_path, fake_training, settings, message):
    fake_training()
    if "protocol" in settings or "space" in settings:
        tune("sasrec", small, tmp_path / "out", trials=1, epochs=1, jobs=1)
    with pytest.raises(HafvtError, match=message):
        tune("sasrec", small, tmp_path / "out", **{"epochs": 1, "trials": 1, **settings})


def test_tune_without_optuna_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "hafvt.experiments.tune")
    monkeypatch.delitem(sys.modules, "hafvt.experiments.study")
    monkeypatch.delitem(sys.modules, "hafvt.experiments.study_storage")
    with pytest.raises(HafvtError, match=r"needs the package 'optuna': pip install 'hafvt\[tune\]'"):
        __import__("hafvt.experiments.tune")


@pytest.mark.slow
def test_tune_from_the_command_line_writes_settings_for_train(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = "tune hafvt small --out out --trials 2 --epochs 1 --jobs 2 --seed 3 --params.max_length 6"
    space = ["--space.modalities", "[[id], [id, title]]", "--space.id_width", "[4, 8]"]
    space += ["--space.temperature", "[0.05, 0.5, log]"]
    assert main([*command.split(), *space]) == 0, capsys.readouterr().err
    assert "wrote out/best.yaml" in capsys.readouterr().out
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["params"]["max_length"] == 6
    assert not list(tmp_path.glob("out/trials/*/results.json"))  # the test targets are not read
    assert main(["train", "--config", "out/best.yaml", "--data", "small", "--out", "run", "--seed", "3"]) == 0
    lines = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert about["best"]["valid_mrr"] == max(float(line["valid_mrr"]) for line in lines)
