"""Loggers: where `train --logger` sends a training. TensorBoard by Lightning Fabric, MLflow and W&B.

A logger has the methods of Lightning's loggers, so that these work in `hafvt.train(..., logger=[...])`, too.
"""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from hafvt.errors import ArgumentError, missing_package
from hafvt.tables import markdown_table

FINISH_SECONDS = 300
"""Longest time that W&B may take at the end of a training to send what it has not sent yet."""
TEXT_FILES = (".md", ".yaml")
"""Endings of files that TensorBoard shows as text."""


class Logger(Protocol):
    """The methods of Lightning's loggers that a training calls."""

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Log all settings of the training, once."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values by name; `step` is the number of the epoch."""

    def finalize(self, status: str) -> None:
        """End with the status "success" or "failed"."""


@runtime_checkable
class FileLogger(Logger, Protocol):
    """A logger that also takes a table and files.

    Attributes:
        run_id: by which a resumed training continues the same tracked run.
    """

    run_id: str

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""

    def log_files(self, files: Sequence[Path]) -> None:
        """Log files by name."""


class TensorBoardFiles:
    """Writes TensorBoard events into a folder."""

    def __init__(self, folder: Path, name: str, run_id: str) -> None:
        from lightning_fabric.loggers.tensorboard import TensorBoardLogger

        self.run_id = run_id
        self.logger = TensorBoardLogger(folder, name="", version="", default_hp_metric=False)

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Log settings as text."""
        self.log_table("settings", ["setting", "value"], list(params.items()))

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values."""
        self.logger.log_metrics(metrics, step)
        self.logger.save()

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table as text."""
        cells = [[f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
        self.logger.experiment.add_text(name, markdown_table(list(columns), cells, text_columns=1))

    def log_files(self, files: Sequence[Path]) -> None:
        """Log those files that are text for readers."""
        for file in files:
            if file.suffix in TEXT_FILES:
                self.logger.experiment.add_text(file.name, file.read_text(encoding="utf-8"))

    def finalize(self, status: str) -> None:
        """Close the file of events."""
        self.logger.finalize(status)


class MlflowRun:
    """Logs into an experiment of MLflow, on the server or in the database that MLFLOW_TRACKING_URI names."""

    def __init__(self, experiment: str, name: str, run_id: str) -> None:
        # Few and short tries, as the training waits for them; nothing is sent to the authors of MLflow.
        for variable, value in (
            ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"),
            ("MLFLOW_HTTP_REQUEST_TIMEOUT", "20"),
            ("MLFLOW_DISABLE_TELEMETRY", "true"),
        ):
            os.environ.setdefault(variable, value)
        from mlflow import MlflowClient

        for library in ("mlflow", "alembic"):
            logging.getLogger(library).setLevel(logging.WARNING)
        self.client, self.run_id = MlflowClient(), run_id
        if run_id:
            self.client.update_run(run_id, status="RUNNING")
            return
        experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME", "hafvt")
        experiment_entity = self.client.get_experiment_by_name(experiment)
        experiment_id = (
            self.client.create_experiment(experiment)
            if experiment_entity is None
            else experiment_entity.experiment_id
        )
        self.run_id = self.client.create_run(experiment_id, run_name=name).info.run_id

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Log settings."""
        from mlflow.entities import Param

        self.client.log_batch(self.run_id, params=[Param(name, str(value)) for name, value in params.items()])

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        values = [Metric(name, value, now, step or 0) for name, value in metrics.items()]
        self.client.log_batch(self.run_id, metrics=values)

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table as JSON, which MLflow's page shows as a table."""
        content = {"columns": list(columns), "data": [list(row) for row in rows]}
        self.client.log_dict(self.run_id, content, f"{name}.json")

    def log_files(self, files: Sequence[Path]) -> None:
        """Log files."""
        for file in files:
            self.client.log_artifact(self.run_id, str(file))

    def finalize(self, status: str) -> None:
        """End the run of MLflow."""
        self.client.set_terminated(self.run_id, "FINISHED" if status == "success" else "FAILED")


class WandbRun:
    """Logs into a project of Weights & Biases, or into local files with WANDB_MODE=offline."""

    def __init__(self, project: str, name: str, run_id: str) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # to the authors of W&B
        import wandb

        self.wandb, self.run_id = wandb, run_id or secrets.token_hex(8)
        self.run = wandb.init(
            project=project or os.environ.get("WANDB_PROJECT", "hafvt"),
            name=name,
            id=self.run_id,
            resume="allow",
            settings=wandb.Settings(
                console="off",
                silent=True,
                save_code=False,
                init_timeout=60,
                finish_timeout=FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self.run.define_metric("*", step_metric="epoch")

    def log_hyperparams(self, params: dict[str, Any]) -> None:
        """Log settings."""
        self.run.config.update(params, allow_val_change=True)  # type: ignore[no-untyped-call]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Log values."""
        self.run.log({**metrics, "epoch": step})

    def log_table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table."""
        self.run.log({name: self.wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def log_files(self, files: Sequence[Path]) -> None:
        """Log files as an artifact of the run."""
        artifact = self.wandb.Artifact(f"run-{self.run_id}", type="run")
        for file in files:
            artifact.add_file(str(file))
        self.run.log_artifact(artifact)

    def finalize(self, status: str) -> None:
        """End the run of W&B, which first sends what it has not sent yet."""
        self.run.finish(exit_code=0 if status == "success" else 1)


class LoggerKind(NamedTuple):
    """A logger by name: its class, and the extra and the packages that it needs."""

    make: Any
    extra: str
    packages: tuple[str, ...]


LOGGERS = {
    "tensorboard": LoggerKind(TensorBoardFiles, "track", ("lightning_fabric", "tensorboard")),
    "mlflow": LoggerKind(MlflowRun, "mlflow", ("mlflow",)),
    "wandb": LoggerKind(WandbRun, "wandb", ("wandb",)),
}


def check_logger(text: str) -> None:
    """Check the name of a logger, such as "mlflow:films".

    Raises:
        HafvtError: there is none of this name, or its package is not installed.
    """
    name, colon, place = text.partition(":")
    if name not in LOGGERS or (colon and (name == "tensorboard" or not place)):
        raise ArgumentError(
            f"--logger is {text[:80]!r}: choose tensorboard, mlflow[:EXPERIMENT] or wandb[:PROJECT]"
        )
    for package in LOGGERS[name].packages:
        if find_spec(package) is None:
            raise missing_package(LOGGERS[name].extra, package.replace("_", "-"))


def open_logger(text: str, run_folder: Path, run_name: str, run_id: str) -> FileLogger:
    """Connect to a logger by its name, and to its run `run_id` if that is not empty."""
    name, _, place = text.partition(":")
    target = run_folder / "tensorboard" if name == "tensorboard" else place
    logger: FileLogger = LOGGERS[name].make(target, run_name, run_id)
    return logger
