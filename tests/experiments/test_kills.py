"""Searches and comparisons that are killed, run twice at once, or run out of disk."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import threading
from functools import partial

import optuna
import pytest
from optuna.trial import TrialState

from hafvt.errors import HafvtError
from hafvt.experiments import study_storage, training_pool
from hafvt.experiments.compare import compare
from hafvt.experiments.study import counted_trials, queue_unfinished_trials
from hafvt.experiments.tune import tune
from hafvt.folders import folder_lock
from tests.crash import crash_before_each_operation
from tests.experiments.conftest import QUICK_BUDGET

tune_module = importlib.import_module("hafvt.experiments.tune")

COPY_RUN = """
import shutil, sys
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
out = Path(options["out"])
shutil.copytree(Path({runs!r}) / out.parent.name / out.name, out, dirs_exist_ok=True)
"""

FAKE_TRIAL = """
import json, sys
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
out = Path(options["out"])
out.mkdir(parents=True, exist_ok=True)
row = dict(epoch=1, valid_mrr=float(options["learning_rate"]), seconds=1.0)
(out / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
"""


def visible_names(folder):
    """Return the names in a folder, except hidden ones."""
    return sorted(path.name for path in folder.iterdir() if path.name[0] != ".")


@pytest.fixture
def train_command(tmp_path, monkeypatch):
    """Return a function that replaces `hafvt train` by a script and returns the new command."""

    def replace(source):
        script = tmp_path / "script.py"
        script.write_text(source)
        monkeypatch.setattr(training_pool, "HAFVT", [sys.executable, "-S", str(script)])
        monkeypatch.setattr(training_pool, "POLL_S", 0.02)
        monkeypatch.setattr(tune_module, "POLL_S", 0.02)
        return training_pool.HAFVT

    return replace


def make_empty(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


@pytest.mark.slow
def test_compare_killed_anywhere_ends_as_without_a_kill_when_repeated(compared, tmp_path, train_command):
    data, out, comparison = compared
    command = train_command(COPY_RUN.format(runs=str(out / "runs")))
    folder = tmp_path / "root" / "out"
    imports = (
        "from hafvt.experiments import comparison_runner, training_pool\n"
        "from hafvt.experiments.compare import compare\n"
        f"comparison_runner.BUDGETS['small'] = comparison_runner.{QUICK_BUDGET!r}\n"
        f"training_pool.HAFVT, training_pool.POLL_S = {command!r}, 0.02\n"
    )
    settings = "models=['gru4rec', 'popularity'], budget='small', jobs=1"

    def check(step):
        repeated = compare(data.folder, folder, models=["gru4rec", "popularity"], budget="small", jobs=1)
        assert repeated.text == comparison.text, step
        assert visible_names(folder) == ["compare.json", "compare.md", "compare.tex", "runs", "settings.json"]

    kills = crash_before_each_operation(
        folder.parent,
        f"compare({str(data.folder)!r}, root / 'out', {settings})",
        imports=imports,
        reset=partial(make_empty, folder.parent),
        check=check,
        stride=3,
    )

    assert kills > 3


@pytest.mark.slow
def test_tune_killed_anywhere_ends_with_all_trials_when_repeated(small, tmp_path, train_command, monkeypatch):
    command = train_command(FAKE_TRIAL)
    monkeypatch.setattr(study_storage, "HEARTBEAT_S", 1)
    monkeypatch.setattr(study_storage, "GRACE_S", 2)
    folder = tmp_path / "root" / "out"
    imports = (
        "from hafvt.experiments import training_pool\n"
        "from hafvt.experiments.tune import tune\n"
        "from hafvt.experiments import study_storage\n"
        "module = __import__('sys').modules['hafvt.experiments.tune']\n"
        "study_storage.HEARTBEAT_S, study_storage.GRACE_S, module.POLL_S = 1, 2, 0.02\n"
        f"training_pool.HAFVT, training_pool.POLL_S = {command!r}, 0.02\n"
    )

    def check(step):
        result = tune("sasrec", small, folder, trials=2, epochs=1, jobs=1)
        assert [trial.state for trial in result.trials] == ["finished"] * 2, step
        assert [trial.number for trial in result.trials] == [0, 1], step
        assert visible_names(folder / "trials") == ["0000", "0000.log", "0001", "0001.log"], step

    crash_before_each_operation(
        folder.parent,
        f"tune('sasrec', {str(small.folder)!r}, root / 'out', trials=2, epochs=1, jobs=1)",
        imports=imports,
        reset=partial(make_empty, folder.parent),
        check=check,
        stride=6,
    )


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
def test_queue_unfinished_trials_queues_a_trial_killed_before_its_first_heartbeat():
    study = optuna.create_study(direction="maximize")
    study.enqueue_trial({"x": 0.25})
    study.ask().suggest_float("x", 0, 1)  # killed here
    begun = study.ask()
    begun.set_user_attr("begun", begun.number)
    failed = study.ask()
    failed.set_user_attr("error", "the loss is nan")
    study.tell(failed, state=TrialState.FAIL)
    for _ in range(2):
        queue_unfinished_trials(study)
        states = [trial.state for trial in counted_trials(study)]
        assert states == [TrialState.RUNNING, TrialState.FAIL, TrialState.WAITING]
    assert study.ask().params == {"x": 0.25}


def test_compare_in_a_folder_in_use_is_refused(compared, tmp_path):
    data, _, _ = compared
    errors = []

    def second():
        with pytest.raises(HafvtError, match="is in use by another process: wait") as raised:
            compare(data.folder, tmp_path / "out", models=["popularity"], budget="small")
        errors.append(raised.value)

    with folder_lock(tmp_path / "out"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert errors
    assert not (tmp_path / "out").exists()


def test_tune_twice_at_once_with_other_settings_refuses_one(small, tmp_path, train_command):
    train_command(FAKE_TRIAL)
    outcomes = []

    def search(seed):
        try:
            tune("sasrec", small, tmp_path / "out", trials=1, epochs=1, jobs=1, seed=seed)
            outcomes.append("finished")
        except HafvtError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=search, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted("with another seed" in outcome for outcome in outcomes) == [False, True], outcomes


def test_tune_with_a_full_disk_or_a_damaged_study_fails_in_one_line(small, tmp_path, train_command):
    train_command(FAKE_TRIAL)
    out = tmp_path / "out"
    tune("sasrec", small, out, trials=1, epochs=1, jobs=1)
    (out / "study.db").write_bytes(b"x" * 10_000)
    with pytest.raises(
        HafvtError, match=r"study\.db: file is not a database: check its permissions and the free space"
    ) as raised:
        tune("sasrec", small, out, trials=2, epochs=1, jobs=1)
    assert "\n" not in str(raised.value)
    (out / "settings.json").write_text("[]")
    with pytest.raises(HafvtError, match=r"settings\.json is damaged: restore it"):
        tune("sasrec", small, out, trials=2, epochs=1, jobs=1)


FULL_DISK = """
import resource, sys
from pathlib import Path
from hafvt.errors import HafvtError
from hafvt.experiments import comparison_runner, training_pool
from hafvt.experiments.compare import compare
from hafvt.experiments.tune import tune
command, data, root, *training_pool.HAFVT = sys.argv[1:]
comparison_runner.BUDGETS["small"] = comparison_runner.{budget!r}
run = {{
    "tune": lambda out: tune("sasrec", data, out, trials=1, epochs=1, jobs=1),
    "compare": lambda out: compare(data, out, models=["gru4rec", "popularity"], budget="small", jobs=1),
}}[command]
unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
for size in {sizes!r}:
    out = Path(root) / str(size)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
    try:
        run(out)
    except HafvtError as error:
        print(error, flush=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    run(out)
"""


@pytest.mark.slow
@pytest.mark.parametrize("command", ["tune", "compare"])
def test_full_disk_is_one_line_and_the_repeated_command_ends_well(compared, small, tmp_path, command):
    script, (data, out, _) = tmp_path / "script.py", compared
    script.write_text({"tune": FAKE_TRIAL, "compare": COPY_RUN.format(runs=str(out / "runs"))}[command])
    sizes = {"tune": (0, 200, 50_000), "compare": (0, 200, 5_000)}[command]
    source = FULL_DISK.format(budget=QUICK_BUDGET, sizes=sizes)
    folder = {"tune": small, "compare": data}[command].folder
    result = subprocess.run(
        [sys.executable, "-c", source, command, folder, tmp_path / "full", sys.executable, "-S", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stdout
    assert len(result.stdout.splitlines()) == len(sizes), result.stdout
