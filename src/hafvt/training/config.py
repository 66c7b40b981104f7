"""The settings of a training. This module does not import torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from hafvt.data.repeats import CandidateRule
from hafvt.models import find_model
from hafvt.models.hyperparameters import ModelConfig
from hafvt.settings import Count, PositiveCount, Seed

RUN_FILES = (
    *("config.yaml", "metrics.jsonl", "checkpoint", "catalog", "added_items", "index", "cold"),
    *("ranks.parquet", "results.json", "report.html", "tensorboard", "tracking.json"),
    *("test-*", "valid", "valid-*"),  # results of `evaluate`
)
"""What commands write into the folder of a run, beside model.json and the weights."""
Precision = Literal["auto", "bf16", "fp32"]
Schedule = Literal["constant", "linear", "cosine"]
LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=100)]
EmaDecay = Annotated[float, Field(ge=0, lt=1)]
PositiveUsers = Annotated[int, Field(ge=1, le=2**31)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]


class TrainingConfig(ModelConfig):
    """How a model is trained; `hafvt.training.train.train` explains each setting."""

    epochs: PositiveCount = 100
    batch_size: PositiveCount = 64
    learning_rate: LearningRate = 1e-3
    schedule: Schedule = "constant"
    warmup_steps: Count = 0
    weight_decay: WeightDecay = 0.0
    ema_decay: EmaDecay = 0.995
    protocol: str = "full"
    candidates: CandidateRule = "auto"
    metric: str = "MRR"
    validate_every: PositiveCount = 2
    patience: Count = 5
    seed: Seed = 0
    precision: Precision = "auto"
    device: str = "auto"
    checkpoint_every: Seconds = 300.0
    validate_users: PositiveUsers | None = None
    shard_catalog: bool = False


def validation_key(metric: str) -> str:
    """Return the name of the validation results of a metric in metrics.jsonl and model.json."""
    return f"valid_{metric.lower()}"


def train_arguments(model: str, options: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Return the arguments after `hafvt` of a training.

    Args:
        model: name of the model.
        options: of `hafvt train`, by name; None leaves an option out.
        params: hyperparameters of the model, by name.
    """
    values = {name: value for name, value in options.items() if value is not None}
    loggers = [f"--logger={logger}" for logger in values.pop("logger", ())]
    values |= {f"params.{name}": value for name, value in params.items()}
    texts = {name: str(v) if isinstance(v, str | Path) else json.dumps(v) for name, v in values.items()}
    options_of_command = (f"--{name}={text}" for name, text in texts.items())
    return ["train", model, *module_arguments(model), *options_of_command, *loggers]


def module_arguments(model: str) -> list[str]:
    """Return the option by which another process knows a model that is not of this package."""
    module = find_model(model).module
    return [] if module.startswith("hafvt.") else [f"--model-module={module}"]
