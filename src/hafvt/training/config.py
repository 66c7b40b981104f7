"""The settings of a training, validated before anything is created."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from hafvt.models.hyperparameters import ModelConfig
from hafvt.settings import Count, PositiveCount, Seed

Precision = Literal["auto", "bf16", "fp32"]
LearningRate = Annotated[float, Field(gt=0, le=100)]
WeightDecay = Annotated[float, Field(ge=0, le=100)]
EmaDecay = Annotated[float, Field(ge=0, lt=1)]
Seconds = Annotated[float, Field(gt=0, le=1e9)]


class TrainingConfig(ModelConfig):
    """How a model is trained; the model's own hyperparameters are a class beside the model."""

    epochs: PositiveCount = 100
    """Largest number of passes over the training histories."""

    batch_size: PositiveCount = 64
    """Users per step and process."""

    learning_rate: LearningRate = 1e-3
    """Step size of Adam."""

    weight_decay: WeightDecay = 0.0
    """L2 coefficient of Adam."""

    ema_decay: EmaDecay = 0.995
    """Share of the averaged weights that each step keeps; 0 uses the weights of the last step."""

    protocol: str = "full"
    """Name of the evaluation protocol that ranks validation and test targets."""

    validate_every: PositiveCount = 2
    """Epochs between two validations."""

    patience: Count = 5
    """Validations without improvement that end the training; 0 never ends it early."""

    seed: Seed = 0
    """Seed of the initial weights, of the order of users and of dropout."""

    precision: Precision = "auto"
    """Number format of matrix products; auto selects bf16 where the hardware multiplies it faster."""

    device: str = "auto"
    """Where the model is trained: auto, cpu, cuda, cuda:N or mps."""

    checkpoint_every: Seconds = 300.0
    """Seconds between two checkpoints within an epoch."""
