"""`tune --storage`: processes with folders of their own share one study, and a killed trial is run again."""

from __future__ import annotations

import csv
import subprocess
import sys
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState

from hafvt.errors import HafvtError
from hafvt.experiments import study_storage
from hafvt.experiments.study import verify_study
from hafvt.experiments.study_storage import StudyStorage
from hafvt.experiments.tune import tune
from tests.experiments.test_tune import fake_training, outcomes, start_search, wait_for
from tests.ports import free_port

__all__ = ["fake_training"]

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@contextmanager
def grpc_proxy(path):
    """Runs Optuna's proxy of an SQLite database; yields its URL."""
    pytest.importorskip("grpc", reason="Optuna's proxy needs grpcio")
    port = free_port()
    code = (
        "import optuna\n"
        f"storage = optuna.storages.RDBStorage('sqlite:///{path}')\n"
        f"optuna.storages.run_grpc_proxy_server(storage, host='127.0.0.1', port={port})\n"
    )
    with subprocess.Popen([sys.executable, "-W", "ignore", "-c", code]) as process:
        yield f"grpc://127.0.0.1:{port}"
        process.kill()


@pytest.fixture(params=["sqlite", "journal", "grpc"])
def storage_url(request, tmp_path):
    if request.param == "grpc":
        with grpc_proxy(tmp_path / "shared.db") as url:
            yield url
    else:
        yield {"sqlite": f"sqlite:///{tmp_path}/shared.db", "journal": f"{tmp_path}/shared.log"}[
            request.param
        ]


def read_rows(folder):
    return list(csv.DictReader((folder / "trials.csv").open()))


@pytest.mark.slow
def test_tune_in_processes_with_a_storage_shares_trials_and_runs_a_killed_one_again(
    small, tmp_path, fake_training, storage_url
):
    settings = {"trials": 5, "epochs": 2, "jobs": 1, "storage": storage_url}
    killed = start_search(fake_training(pause=60), small, tmp_path / "killed", **settings)
    wait_for((tmp_path / "killed" / "trials" / "0000").exists)
    killed.kill()
    killed.communicate()
    command = fake_training(pause=0.1)
    processes = [start_search(command, small, tmp_path / name, **settings) for name in ("a", "b")]
    errors = [process.communicate()[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    result = tune("sasrec", small, tmp_path / "a", **settings)
    assert [trial.number for trial in result.trials] == list(range(5))
    assert {trial.state for trial in result.trials} <= {"finished", "stopped early"}
    assert result.trials[0].params["learning_rate"] == 1e-3  # the default settings
    trained = [path.name for name in ("a", "b") for path in (tmp_path / name / "trials").glob("*/")]
    assert sorted(trained) == [f"{number:04d}" for number in range(5)]  # each once
    assert read_rows(tmp_path / "a") == read_rows(tmp_path / "b") or len(read_rows(tmp_path / "b")) == 5
    other = tune("sasrec", small, tmp_path / "other", **settings)  # a folder that ran none of them
    assert outcomes(other) == outcomes(result)


def test_tune_with_a_storage_keeps_studies_of_other_settings_apart(small, tmp_path, fake_training):
    fake_training()
    url = f"sqlite:///{tmp_path}/shared.db"
    settings = {"trials": 1, "epochs": 1, "jobs": 1, "storage": url}
    for seed in (0, 1):
        result = tune("sasrec", small, tmp_path / f"out{seed}", seed=seed, **settings)
        assert [trial.number for trial in result.trials] == [0]
    names = [study.study_name for study in RDBStorage(url).get_all_studies()]
    assert len(set(names)) == 2
    assert all(name.startswith("sasrec-") for name in names)
    (tmp_path / "shared.db").unlink()
    with pytest.raises(HafvtError, match=r"shared.db does not hold the trials of .*out0"):
        tune("sasrec", small, tmp_path / "out0", **settings)


def test_tune_stopped_on_a_server_queues_its_trial_again(small, tmp_path, fake_training, monkeypatch):
    monkeypatch.setattr(StudyStorage, "file", None)  # as if the database were on a server
    settings = {"trials": 2, "epochs": 1, "jobs": 1, "storage": f"sqlite:///{tmp_path}/shared.db"}
    fake_training(pause=30)
    with pytest.raises(HafvtError, match="no trial has ended"):
        tune("sasrec", small, tmp_path / "out", minutes=0.005, **settings)
    fake_training()
    result = tune("sasrec", small, tmp_path / "out", **settings)
    assert [(trial.number, trial.state) for trial in result.trials] == [(0, "finished"), (1, "finished")]


def test_journal_trial_without_new_heartbeats_is_stale(tmp_path, monkeypatch):
    storage = StudyStorage(tmp_path, str(tmp_path / "log")).open()
    study = study_storage.optuna.create_study(storage=storage)
    trial = study.ask()
    storage.record_heartbeat(trial._trial_id)
    assert storage._get_stale_trial_ids(study._study_id) == []
    monkeypatch.setattr(study_storage, "GRACE_S", -1.0)
    assert storage._get_stale_trial_ids(study._study_id) == [trial._trial_id]
    storage.record_heartbeat(trial._trial_id)
    assert storage._get_stale_trial_ids(study._study_id) == []
    study_storage.optuna.storages.fail_stale_trials(study)
    assert [t.state for t in study.trials] == [TrialState.FAIL, TrialState.WAITING]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "give sqlite:///FILE"),
        ("redis://127.0.0.1", "give sqlite:///FILE"),
        ("grpc://somewhere", "give grpc://HOST:PORT"),
        ("grpc://somewhere:0", "give grpc://HOST:PORT"),
        ("sqlite://", "name a file, as in sqlite:///study.db"),
        ("nothing://host/db", "cannot be opened .*nothing"),
        ("postgresql+pg8000://me:secret@127.0.0.1:1/db", "needs a package: pip install pg8000"),
        ("/nothing/at/all/study.log", "there is no folder /nothing/at/all"),
        ("sqlite:////nothing/at/all/study.db", "there is no folder /nothing/at/all"),
        ("/", "this is a folder: name a file"),
    ],
)
def test_tune_with_a_wrong_storage_names_the_option(small, tmp_path, url, message):
    with pytest.raises(HafvtError, match=message) as raised:
        tune("sasrec", small, tmp_path / "out", trials=1, storage=url)
    assert "--storage" in str(raised.value)
    assert "secret" not in str(raised.value)


def test_error_of_a_server_is_not_called_damage(tmp_path):
    class UnreachableStudy:
        def get_trials(self, **options):
            raise ConnectionError("the server has gone")

    with pytest.raises(ConnectionError):
        verify_study(
            UnreachableStudy(), SimpleNamespace(out=tmp_path), StudyStorage(tmp_path, "grpc://localhost:1")
        )
