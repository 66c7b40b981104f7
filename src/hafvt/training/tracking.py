"""Tracking: sends a training to the loggers of `train --logger`, whatever happens to them."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hafvt.errors import ArgumentError, warn
from hafvt.evaluation.results import read_results
from hafvt.files import explained_read_errors, read_json, write_json
from hafvt.training.callbacks import Callback
from hafvt.training.loggers import FileLogger, Logger, check_logger, open_logger
from hafvt.training.model_card import model_card
from hafvt.training.run import Run

TRACKING = "tracking.json"
"""In the folder of a run: by logger, the id of the tracked run and the number of epochs that it has."""
RETRY_SECONDS = 300.0
"""Time between two tries of a logger that has failed, as each may wait for the network."""
SENT_FILES = ("config.yaml", "metrics.jsonl", "results.json")
SETTINGS_APART = ("format", "config", "features")


class Tracking(Callback):
    """Sends settings, curves, results and files to loggers.

    A logger that fails ends no training: a warning names it, and what it lacks is sent later. The loggers of
    a resumed training continue the same tracked runs.

    Args:
        loggers: names such as "mlflow:films", or loggers of Lightning.
        name: of the run.

    Raises:
        HafvtError: a name is wrong, or a package is missing.
    """

    def __init__(self, loggers: Sequence[str | Logger], name: str) -> None:
        self.channels = [Channel(logger, name) for logger in loggers]

    def use_folder(self, folder: Path) -> None:
        """Set the folder of the run, which is another one after `train --overwrite`."""
        for channel in self.channels:
            channel.folder = folder

    def on_train_start(self, settings: Mapping[str, Any]) -> None:
        """Connect to the loggers and send the settings."""
        for channel in self.channels:
            channel.settings = flat_settings(settings)
            channel.try_sending()

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float]) -> None:
        """Send the epochs that the loggers lack."""
        for channel in self.channels:
            channel.try_sending()

    def on_train_end(self, run: Run) -> None:
        """Send the results, the model card and other files, and end the tracked runs."""
        self.use_folder(run.folder)
        for channel in self.channels:
            channel.run = run
        self.close("success")

    def close(self, status: str) -> None:
        """End the tracked runs as "success" or "failed"."""
        for channel in self.channels:
            if status == "failed" and channel.logger is None:  # nothing was sent
                continue
            channel.status = status
            channel.try_sending(at_end=True)


class Channel:
    """One logger of a training: what was sent, and what remains to be sent."""

    def __init__(self, logger: str | Logger, name: str) -> None:
        self.folder, self.name, self.status = Path(), name, ""
        self.settings: dict[str, Any] = {}
        self.run: Run | None = None
        self.files: Sequence[Path] = ()
        self.key = logger if isinstance(logger, str) else ""
        self.logger: Logger | None = None if isinstance(logger, str) else logger
        self.label = self.key or type(logger).__name__
        self.next_try = 0.0
        self.num_epochs, self.run_id, self.has_failed = 0, "", False
        if isinstance(logger, str):
            check_logger(logger)
        elif not all(hasattr(logger, name) for name in ("log_hyperparams", "log_metrics", "finalize")):
            raise ArgumentError(f"--logger {logger!r} is no logger: give a name or a logger of Lightning")

    def try_sending(self, *, at_end: bool = False) -> None:
        """Send what the logger lacks; a failure becomes one warning."""
        if time.monotonic() < self.next_try and not at_end:
            return
        try:
            self._send()
        except Exception as error:  # whatever the library of the logger raises
            self.next_try = time.monotonic() + RETRY_SECONDS
            if not self.has_failed or at_end:
                reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                remedy = "the logger lacks a part of it" if at_end else "it goes on, and tries again later"
                warn(f"--logger {self.label} failed in the training of {self.name} ({reason}): {remedy}")
            self.has_failed = True

    def _send(self) -> None:
        """Connect if necessary, and send settings, epochs and, at the end, results and files."""
        if self.logger is None:
            saved = self._read().get(self.key, {})
            self.num_epochs = int(saved.get("epochs", 0))
            logger = open_logger(self.key, self.folder, self.name, str(saved.get("run_id", "")))
            self.logger, self.run_id = logger, logger.run_id
            self._write()
        if self.settings and self.num_epochs == 0:
            with suppress(NotImplementedError):  # as the CSVLogger of Lightning Fabric has it
                self.logger.log_hyperparams(self.settings)
        self.settings = {}
        for line in read_lines(self.folder)[self.num_epochs :]:
            epoch = int(line["epoch"])
            values = {"steps" if name == "step" else name: value for name, value in line.items()}
            del values["epoch"]
            self.logger.log_metrics(values, step=epoch)
            self.num_epochs = epoch
        self._write()
        if self.run is not None:
            self._send_results(self.logger, self.run)
            self.run = None
        if self.files and isinstance(self.logger, FileLogger):
            self.logger.log_files(self.files)
        if self.status:
            self.logger.finalize(self.status)
            self.status = ""

    def _send_results(self, logger: Logger, run: Run) -> None:
        """Send the metrics of the test targets, as values and as a table, and the files of the run."""
        best = run.manifest["best"]
        values = {"best_epoch": float(best["epoch"]), "parameters": float(run.manifest["parameters"])}
        has_results = (run.folder / "results.json").exists()
        results = read_results(run.folder) if has_results else {}
        for domain, row in results.items():
            values |= {f"test/{domain}/{name.replace('@', '_at_')}": m.value for name, m in row.items()}
        logger.log_metrics(values, step=self.num_epochs)
        if not isinstance(logger, FileLogger):
            return
        if results:
            names = list(next(iter(results.values())))
            rows = [[domain, *(row[name].value for name in names)] for domain, row in results.items()]
            logger.log_table("results", ["domain", *names], rows)
        with tempfile.TemporaryDirectory() as folder:
            card = Path(folder) / "model_card.md"
            card.write_text(model_card(run), encoding="utf-8")
            files = [run.folder / name for name in SENT_FILES]
            logger.log_files([card, *(file for file in files if file.exists())])

    def _read(self) -> dict[str, Any]:
        """Return what earlier trainings of this run have sent, by logger."""
        path = self.folder / TRACKING
        return dict(read_json(path)) if path.exists() else {}

    def _write(self) -> None:
        if self.key:
            record = {"run_id": self.run_id, "epochs": self.num_epochs}
            write_json(self.folder / TRACKING, {**self._read(), self.key: record})


def read_lines(folder: Path) -> list[dict[str, float]]:
    """Return the epochs in a run's metrics.jsonl."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    with explained_read_errors(path, "train the model again"):
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def flat_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of config.yaml with hyperparameters as "params.width"."""
    values = {name: value for name, value in settings.items() if name not in SETTINGS_APART}
    return values | {f"params.{name}": value for name, value in settings["config"].items()}


def send_files(run: Run, files: Sequence[Path]) -> None:
    """Send more files to the named loggers of the training that returned a run, such as a report."""
    for key in run.loggers:
        channel = Channel(key, run.folder.name)
        channel.folder, channel.files, channel.status = run.folder, files, "success"
        channel.try_sending(at_end=True)
