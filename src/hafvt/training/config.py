"""The settings of a training. This module does not import torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

Precision = Literal["auto", "bf16", "fp32"]
LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=100)]
EmaDecay = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; `hafvt.training.train.train` checks and explains each setting."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    ema_decay: float
    protocol: str
    validate_every: int
    patience: int
    seed: int
    precision: Precision
    device: str
    checkpoint_every: float
