"""Searches: deterministic, stopped early, shared by processes, killed and gone on with."""

from __future__ import annotations

import csv
import fcntl
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
from hafvt.experiments.search_space import Choices, Range
from hafvt.experiments.training_pool import TrainingPool
from hafvt.experiments.tune import tune
from hafvt.experiments.tuner import Search

FAKE = """
import json, math, sys, time
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
out, rate = Path(options["out"]), float(options["learning_rate"])
out.mkdir(exist_ok=True)
if rate > {fails}:
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
def program(tmp_path, monkeypatch):
    """Puts a stand-in in the place of `hafvt train`; returns how it is called."""

    def put(pause=0.0, fails=1.0):
        path = tmp_path / "fake.py"
        path.write_text(FAKE.format(pause=pause, fails=fails))
        monkeypatch.setattr(training_pool, "PROGRAM", [sys.executable, "-S", str(path)])
        return training_pool.PROGRAM

    return put


def in_a_process(program, data, out, **named):
    """Starts a search in a process of its own."""
    code = (
        "from hafvt.experiments import training_pool, tune\n"
        f"training_pool.PROGRAM = {program!r}\n"
        f"tune.tune('sasrec', {str(data.folder)!r}, {str(out)!r}, **{named!r})\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE)


def wait_for(what):
    deadline = time.monotonic() + 120
    while not what() and time.monotonic() < deadline:
        time.sleep(0.02)


def tried(found):
    return [(trial.params, trial.state, trial.valid_mrr, trial.epochs) for trial in found.trials]


def epochs_of(folder):
    return [json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_search_its_early_stops_and_its_files(small, tmp_path, program, monkeypatch):
    program()
    monkeypatch.setattr(pickle, "loads", None)  # nothing is pickled
    monkeypatch.setattr(pickle, "dumps", None)
    out = tmp_path / "out"
    found = tune("sasrec", small, out, trials=12, epochs=4, jobs=1)
    first = found.trials[0].params
    assert (first["learning_rate"], first["batch_size"], first["dropout"]) == (1e-3, 64, 0.3)
    assert found.best.valid_mrr == max(trial.valid_mrr for trial in found.trials) > found.trials[0].valid_mrr
    assert found.best.params["learning_rate"] > 10**-2.5
    stopped = [trial for trial in found.trials if trial.state == "stopped early"]
    assert stopped
    assert all(trial.epochs < 4 for trial in stopped)
    assert all(trial.state == "finished" for trial in found.trials[:4])
    assert set(found.importances) == set(first)
    assert sum(found.importances.values()) == pytest.approx(1)
    report = (out / "report.md").read_text()
    assert (
        f"12 trials of at most 4 epochs ({12 - len(stopped)} finished, {len(stopped)} stopped early)"
        in report
    )
    assert f"{100 * found.best.valid_mrr:.2f}" in report
    assert str(found).splitlines()[0] in report
    lines = list(csv.DictReader((out / "trials.csv").open()))
    assert [float(line["learning_rate"]) for line in lines] == [
        t.params["learning_rate"] for t in found.trials
    ]
    figure = ElementTree.fromstring((out / "importance.svg").read_text())
    texts = [element.text for element in figure.iter() if element.tag.endswith("text")]
    assert set(found.importances) <= set(texts)
    same = tune("sasrec", small, tmp_path / "same", trials=12, epochs=4, jobs=1)
    assert tried(same) == tried(found)
    other = tune("sasrec", small, tmp_path / "other", trials=2, epochs=4, jobs=1, seed=1)
    assert other.trials[0].params == found.trials[0].params
    assert other.trials[1].params != found.trials[1].params
    more = tune("sasrec", small, out, trials=13, epochs=4, jobs=1)
    assert tried(more)[:12] == tried(found)
    assert len(more.trials) == 13


def test_what_mattered_is_told_from_all_trials(tmp_path):
    space = {"learning_rate": Range(1e-4, 1e-2, log=True), "blocks": Choices((1, 2)), "width": Choices((8,))}
    start = {"learning_rate": 1e-3, "blocks": 2, "width": 8}
    search = Search(tmp_path, "sasrec", {"epochs": 2}, {}, space, start, 0, TrainingPool(1))
    assert search.importances() == {}
    random = np.random.default_rng(0)
    first = search.study.ask()
    search.values(first)
    for _ in range(40):
        params = {
            "learning_rate": 10 ** random.uniform(-4, -2),
            "blocks": int(random.integers(1, 3)),
            "width": 8,
        }
        good = params["learning_rate"] > 3e-3
        ended = {
            "state": TrialState.COMPLETE if good else TrialState.PRUNED,  # Optuna would count the good alone
            "value": 0.1 + 0.01 * random.random() if good else 0.02 * random.random(),
        }
        curve = {1: ended["value"]}
        search.study.add_trial(
            optuna.create_trial(
                params=params, distributions=first.distributions, intermediate_values=curve, **ended
            )
        )
    told = search.importances()
    assert list(told) == ["learning_rate", "blocks"]
    assert told["learning_rate"] > 0.9


def test_a_killed_search_goes_on_and_ends_alike(small, tmp_path, program):
    settings = {"trials": 7, "epochs": 3, "jobs": 1}
    process = in_a_process(program(pause=0.3), small, tmp_path / "a", **settings)
    wait_for((tmp_path / "a" / "trials" / "0002" / "metrics.jsonl").exists)
    process.kill()  # its training lives on, and must not get a second one beside it
    process.communicate()
    with (tmp_path / "a" / "journal.jsonl").open("a") as file:
        file.write('{"op_code": 4, "work')  # as a kill in the middle of a line leaves it
    found = tune("sasrec", small, tmp_path / "a", **settings)
    program(pause=0.0)
    whole = tune("sasrec", small, tmp_path / "b", **settings)
    assert tried(found) == tried(whole)
    assert epochs_of(tmp_path / "a" / "trials" / "0002") == [1, 2, 3]


def test_processes_share_a_search(small, tmp_path, program):
    settings = {"trials": 9, "epochs": 2, "jobs": 2}
    processes = [in_a_process(program(pause=0.1), small, tmp_path / "out", **settings) for _ in range(2)]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    found = tune("sasrec", small, tmp_path / "out", **settings)
    assert sorted(path.name for path in (tmp_path / "out" / "trials").glob("*/")) == [
        f"{n:04d}" for n in range(9)
    ]
    assert [trial.number for trial in found.trials] == list(range(9))
    for trial in found.trials:
        trained = epochs_of(tmp_path / "out" / "trials" / f"{trial.number:04d}")
        assert trained == list(range(1, len(trained) + 1))  # once each
        assert len(trained) >= trial.epochs


def test_trials_that_fail_are_told_and_the_first_of_all_stops_the_search(small, tmp_path, program):
    out = tmp_path / "out"
    program(fails=1e-4)
    with pytest.raises(HafvtError, match=r"trial 0 ended with 1: the loss is nan \(all of it: .*0000.log"):
        tune("sasrec", small, out, trials=8, epochs=1, jobs=1)
    program(fails=3e-3)
    found = tune("sasrec", small, out, trials=8, epochs=1, jobs=1)
    failed = [trial for trial in found.trials if trial.state == "failed"]
    assert failed
    assert all(trial.params["learning_rate"] > 3e-3 and trial.valid_mrr is None for trial in failed)
    assert "Failed: trial" in str(found)
    assert found.trials[0].state == "finished"


def test_time_that_is_up_leaves_a_search_to_go_on_with(small, tmp_path, program):
    program(pause=30)
    with pytest.raises(HafvtError, match=r"no trial has ended within 0\.005 minutes"):
        tune("sasrec", small, tmp_path / "out", trials=2, epochs=1, jobs=1, minutes=0.005)
    program(pause=0)
    found = tune("sasrec", small, tmp_path / "out", trials=2, epochs=1, jobs=1)
    assert [trial.state for trial in found.trials] == ["finished"] * 2


def test_a_search_that_is_interrupted_stops_its_trainings(small, tmp_path, program):
    program(pause=30)
    folder = tmp_path / "out" / "trials"

    def interrupt():
        wait_for(lambda: len(list(folder.glob("*/"))) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    watch = threading.Thread(target=interrupt)
    watch.start()
    with pytest.raises(KeyboardInterrupt):
        tune("sasrec", small, tmp_path / "out", trials=2, epochs=1, jobs=2)
    watch.join()
    assert not list(folder.glob("*/metrics.jsonl")), "it waited for the trainings"
    for log in folder.glob("*.log"):
        with log.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody works on it any more


def test_wrong_settings(small, tmp_path, program, monkeypatch):
    program()
    out = tmp_path / "out"
    tune("sasrec", small, out, trials=1, epochs=1, jobs=1)
    for settings, told in (
        ({"protocol": "sampled-unseen"}, "holds a search with another protocol: choose another folder"),
        ({"space": {"dropout": [0.1, 0.2]}, "seed": 1}, "with another space and seed"),
        ({"trials": 0}, "--trials 0"),
        ({"minutes": -1.0}, "--minutes -1.0"),
        ({"jobs": 0}, "--jobs 0"),
        ({"params": {"depth": 1}}, "no parameter 'depth'"),
    ):
        with pytest.raises(HafvtError, match=told):
            tune("sasrec", small, out, **{"epochs": 1, "trials": 1, **settings})
    monkeypatch.setitem(sys.modules, "optuna", None)
    monkeypatch.delitem(sys.modules, "hafvt.experiments.tuner")
    with pytest.raises(HafvtError, match=r"needs the package 'optuna': pip install 'hafvt\[tune\]'"):
        tune("sasrec", small, out)


def test_from_the_command_line_to_a_run_with_the_best_settings(small, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call = "tune hafvt --data small --out out --trials 2 --epochs 1 --jobs 2 --seed 3 --params.max_length 6"
    wanted = [
        "--space.modalities",
        "[[id], [id, title]]",
        "--space.id_width",
        "[4, 8]",
        "--space.temperature",
    ]
    assert main([*call.split(), *wanted, "[0.05, 0.5, log]"]) == 0, capsys.readouterr().err
    assert "wrote out/best.yaml" in capsys.readouterr().out
    best = yaml.safe_load((tmp_path / "out" / "best.yaml").read_text())
    assert best["params"]["max_length"] == 6
    assert not list(tmp_path.glob("out/trials/*/results.json"))  # test is not looked at
    assert main(["train", "--config", "out/best.yaml", "--data", "small", "--out", "run", "--seed", "3"]) == 0
    lines = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    about = json.loads((tmp_path / "run" / "model.json").read_text())
    assert about["best"]["valid_mrr"] == max(float(line["valid_mrr"]) for line in lines)
