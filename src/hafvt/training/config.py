"""The settings of a training. This module does not import torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hafvt.data.repeats import CandidateRule
from hafvt.models.hyperparameters import ModelConfig
from hafvt.settings import Count, PositiveCount, Seed

Precision = Literal["auto", "bf16", "fp32"]
LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=100)]
EmaDecay = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]


class TrainingConfig(ModelConfig):
    """How a model is trained; `hafvt.training.train.train` explains each setting."""

    epochs: PositiveCount = 100
    batch_size: PositiveCount = 64
    learning_rate: LearningRate = 1e-3
    weight_decay: WeightDecay = 0.0
    ema_decay: EmaDecay = 0.995
    protocol: str = "full"
    candidates: CandidateRule = "auto"
    validate_every: PositiveCount = 2
    patience: Count = 5
    seed: Seed = 0
    precision: Precision = "auto"
    device: str = "auto"
    checkpoint_every: Seconds = 300.0
