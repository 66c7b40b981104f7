"""Loggers get settings, curves, results and files; a resumed run continues; a failure ends no training."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest

import hafvt
from hafvt.cli import main
from hafvt.errors import HafvtError, HafvtWarning
from hafvt.evaluation.results import read_results
from hafvt.training import loggers, tracking
from tests.training.conftest import SMALL_SASREC
from tests.training.test_train import read_log

SETTINGS = {"params": SMALL_SASREC, "batch_size": 8, "patience": 0}


class Recorder:
    """A logger in memory with the methods of Lightning's loggers; fails while `is_down`."""

    def __init__(self) -> None:
        self.params, self.metrics, self.status, self.is_down = [], [], [], False

    def log_hyperparams(self, params):
        self.check()
        self.params.append(params)

    def log_metrics(self, metrics, step=None):
        self.check()
        self.metrics.append((step, metrics))

    def finalize(self, status):
        self.status.append(status)

    def check(self):
        if self.is_down:
            raise ConnectionError("the network is gone\nfor good")


class StandIn(Recorder):
    """A logger by name that takes tables and files, too; all of them are kept in `opened`."""

    opened: ClassVar[list[StandIn]] = []

    def __init__(self, place, name, run_id):
        super().__init__()
        self.place, self.name, self.run_id, self.tables, self.files = place, name, run_id or "id-1", [], {}
        StandIn.opened.append(self)

    def log_table(self, name, columns, rows):
        self.tables.append((name, columns, rows))

    def log_files(self, files):
        self.files |= {file.name: file.read_text(encoding="utf-8") for file in files}


@pytest.fixture
def stand_in(monkeypatch):
    """Stand-ins take the place of MLflow."""
    monkeypatch.setitem(loggers.LOGGERS, "mlflow", loggers.LoggerKind(StandIn, "mlflow", ()))
    StandIn.opened = []
    return StandIn.opened


def test_logger_gets_settings_curve_results_and_files(training_data, tmp_path, stand_in):
    run = hafvt.train("sasrec", training_data, tmp_path / "run", epochs=2, **SETTINGS, logger="mlflow:films")
    (logger,) = stand_in
    assert (logger.place, logger.name, logger.status) == ("films", "run", ["success"])
    (params,) = logger.params
    assert params["params.width"] == 8
    assert params["epochs"] == 2
    log = read_log(run.folder)
    for (step, metrics), line in zip(logger.metrics, log, strict=False):
        assert step == line["epoch"]
        assert metrics.items() >= {k: v for k, v in line.items() if k not in ("epoch", "step")}.items()
        assert metrics["steps"] == line["step"]
    results = read_results(run.folder)
    assert logger.metrics[-1][1]["test/overall/NDCG_at_10"] == results["overall"]["NDCG@10"].value
    ((name, columns, rows),) = logger.tables
    assert (name, columns[:2]) == ("results", ["domain", "MRR"])
    assert rows[-1][:2] == ["overall", results["overall"]["MRR"].value]
    assert set(logger.files) == {"config.yaml", "metrics.jsonl", "results.json", "model_card.md"}
    assert "# sasrec on data" in logger.files["model_card.md"]
    assert run.loggers == ("mlflow:films",)


def test_resumed_run_continues_the_tracked_run_with_the_epochs_that_it_lacks(
    training_data, tmp_path, stand_in
):
    options = {**SETTINGS, "test": False}
    hafvt.train("sasrec", training_data, tmp_path / "run", epochs=2, **options, logger=["mlflow"])
    hafvt.train("sasrec", training_data, tmp_path / "run", epochs=3, **options, resume=True)
    hafvt.train(
        "sasrec", training_data, tmp_path / "run", epochs=4, **options, logger=["mlflow"], resume=True
    )
    first, second = stand_in
    assert first.run_id == second.run_id == "id-1"
    steps = [[step for step, metrics in logger.metrics if "loss" in metrics] for logger in stand_in]
    assert steps == [[1, 2], [3, 4]]
    assert len(first.params) == 1
    assert second.params == []


def test_logger_that_fails_gives_one_line_and_is_sent_all_later(training_data, tmp_path, monkeypatch):
    repaired = []

    class Failing(Recorder):
        def log_metrics(self, metrics, step=None):
            self.is_down = step == 2 and not repaired
            super().log_metrics(metrics, step)

    logger = Failing()

    class Repair(hafvt.Callback):
        def on_epoch_end(self, epoch, metrics):
            repaired.extend([True] * (epoch == 3))

    with pytest.warns(HafvtWarning) as warnings:
        hafvt.train(
            *("sasrec", training_data, tmp_path / "run"),
            epochs=4,
            **SETTINGS,
            logger=[logger],
            callbacks=[Repair()],
        )
    texts = [str(warning.message) for warning in warnings if "logger" in str(warning.message)]
    assert texts == [
        "--logger Failing failed in the training of run (ConnectionError: the network is gone for good): "
        "it goes on, and tries again later"
    ]
    assert [step for step, metrics in logger.metrics if "loss" in metrics] == [1, 2, 3, 4]
    assert logger.status == ["success"]
    assert not (tmp_path / "run" / "tracking.json").exists()


def test_logger_that_cannot_be_reached_ends_no_training(training_data, tmp_path, monkeypatch, capfd):
    def refuse(*arguments):
        raise OSError("no route to host")

    monkeypatch.setitem(loggers.LOGGERS, "wandb", loggers.LoggerKind(refuse, "wandb", ()))
    words = ["train", "sasrec", str(training_data.folder), "--out", str(tmp_path / "run"), "--epochs", "2"]
    assert main([*words, "--test", "false", "--params.width", "8", "--logger", "wandb:shop"]) == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "no route" in line]
    assert len(lines) == 2  # when it fails first, and at the end
    assert lines[0].startswith(
        "hafvt train: warning: --logger wandb:shop failed in the training of run (OSErr"
    )
    assert len(read_log(tmp_path / "run")) == 2


def test_failed_training_ends_the_tracked_run_as_failed(training_data, tmp_path, stand_in):
    class Broken(hafvt.Callback):
        def on_epoch_end(self, epoch, metrics):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        hafvt.train(
            *("sasrec", training_data, tmp_path / "run"), **SETTINGS, logger="mlflow", callbacks=[Broken()]
        )
    assert stand_in[0].status == ["failed"]


@pytest.mark.parametrize("name", ["comet", "tensorboard:folder", "mlflow:", ""])
def test_unknown_logger_is_refused_before_any_work(training_data, tmp_path, name):
    with pytest.raises(HafvtError, match=r"choose tensorboard, mlflow\[:EXPERIMENT\] or wandb\[:PROJECT\]"):
        hafvt.train("sasrec", training_data, tmp_path / "run", logger=name)
    assert not (tmp_path / "run").exists()


def test_object_that_is_no_logger_is_refused(training_data, tmp_path):
    with pytest.raises(HafvtError, match="is no logger"):
        hafvt.train("sasrec", training_data, tmp_path / "run", logger=[object()])


@pytest.mark.parametrize("name", list(loggers.LOGGERS))
def test_missing_package_names_the_extra(training_data, tmp_path, name, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda package: None)
    with pytest.raises(HafvtError, match=rf"pip install 'hafvt\[{loggers.LOGGERS[name].extra}\]'"):
        hafvt.train("sasrec", training_data, tmp_path / "run", logger=name)
    assert not (tmp_path / "run").exists()


def train_with(logger: str, data: Path, out: Path) -> None:
    words = ["train", "sasrec", str(data), "--out", str(out), "--epochs", "2", "--params.width", "8"]
    assert main([*words, "--logger", logger]) == 0


def test_tensorboard_has_curve_settings_and_model_card(training_data, tmp_path):
    pytest.importorskip("lightning_fabric")
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    train_with("tensorboard", training_data.folder, tmp_path / "run")
    events = accumulator.EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [line["loss"] for line in read_log(tmp_path / "run")]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert {"settings/text_summary", "results/text_summary", "model_card.md/text_summary"} <= set(
        events.Tags()["tensors"]
    )


def test_logger_of_lightning_gets_the_curve(training_data, tmp_path):
    module = pytest.importorskip("lightning_fabric.loggers.csv_logs")
    logger = module.CSVLogger(tmp_path / "logs", name="shop", version="a")
    hafvt.train("sasrec", training_data, tmp_path / "run", epochs=2, **SETTINGS, test=False, logger=[logger])
    rows = pl.read_csv(tmp_path / "logs" / "shop" / "a" / "metrics.csv")
    log = read_log(tmp_path / "run")
    assert rows["step"].unique().sort().to_list() == [1, 2]
    assert rows["loss"].drop_nulls().to_list() == pytest.approx([line["loss"] for line in log])
    assert rows["valid_mrr"].drop_nulls().to_list() == pytest.approx([log[1]["valid_mrr"]])


@pytest.mark.slow
def test_mlflow_in_a_local_database_has_the_run(training_data, tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    train_with("mlflow:films", training_data.folder, tmp_path / "run")
    database = sqlite3.connect(tmp_path / "mlflow.db")
    losses = [
        row[0] for row in database.execute("select value from metrics where key = 'loss' order by step")
    ]
    assert losses == pytest.approx([line["loss"] for line in read_log(tmp_path / "run")])
    assert database.execute("select name, status from runs").fetchall() == [("run", "FINISHED")]
    assert database.execute("select value from params where key = 'params.width'").fetchall() == [("8",)]
    (report,) = tmp_path.rglob("artifacts/report.html")
    text = report.read_text(encoding="utf-8")
    assert "User examples" not in text
    assert "User examples" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_wandb_offline_keeps_the_run_in_local_files(training_data, tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name, value in (("MODE", "offline"), ("DIR", str(tmp_path)), ("CACHE_DIR", str(tmp_path / "cache"))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    train_with("wandb:shop", training_data.folder, tmp_path / "run")
    record = json.loads((tmp_path / "run" / tracking.TRACKING).read_text())["wandb:shop"]
    assert record["epochs"] == 2
    folders = sorted((tmp_path / "wandb").glob(f"offline-run-*-{record['run_id']}"))
    assert folders
    content = (folders[0] / f"run-{record['run_id']}.wandb").read_bytes()
    assert b"valid_mrr" in content
