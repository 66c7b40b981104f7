"""`hafvt train`: checks the settings and trains. Importing this module does not import torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hafvt.data.dataset import Dataset
from hafvt.models import configure, default_learning_rate
from hafvt.training.config import Precision

if TYPE_CHECKING:
    from hafvt.training.run import Run


def train(
    model: str,
    data: str | Path | Dataset,
    out: str | Path,
    *,
    preset: str = "default",
    params: dict[str, Any] | None = None,
    epochs: int = 100,
    batch_size: int = 64,
    learning_rate: float | None = None,
    weight_decay: float = 0.0,
    ema_decay: float = 0.995,
    protocol: str = "full",
    validate_every: int | None = None,
    patience: int | None = None,
    seed: int = 0,
    precision: Precision = "auto",
    device: str = "auto",
    resume: bool = False,
    test: bool = True,
    tensorboard: bool = False,
    checkpoint_every: float = 300.0,
) -> Run:
    """Train a model, keep the weights of the best validation MRR, and rank the test targets once with them.

    The folder `out` receives config.yaml, metrics.jsonl, checkpoint/, model.safetensors and model.json, and
    for the test targets ranks.parquet and results.json. A stopped run continues with `resume` and ends with
    the same weights, bit for bit, on the same machine.

    Example: hafvt train hafvt data/movies --out runs/hafvt --epochs 100 --seed 0

    Args:
        model: hafvt, gru4rec, sasrec, srgnn, pinet, psjnet, mifn, tricdr, c2dsr or popularity.
        data: a dataset folder, written by prepare and encode.
        out: folder of the run.
        preset: named hyperparameters of the model, such as default or paper.
        params: single hyperparameters of the model, by name (--params.temperature 0.2).
        epochs: largest number of passes over the training histories.
        batch_size: users per step.
        learning_rate: step size of Adam; default: 0.003 for hafvt, except its preset paper, else 0.001.
        weight_decay: L2 coefficient of Adam.
        ema_decay: share of the averaged weights that each step keeps, from 0 and below 1. The averaged
            weights are validated and saved; 0 uses the weights of the last step.
        protocol: full, sampled-unseen or c2dsr; ranks the validation and test targets, see evaluate. Under
            c2dsr each domain keeps the weights of its own best epoch.
        validate_every: epochs between two validations; default: 2, and 5 under c2dsr.
        patience: validations without improvement that end the training, 0 for no early stop; default: 5, and
            0 under c2dsr.
        seed: of initial weights, order of users and dropout.
        precision: bf16, fp32, or auto for bf16 where the hardware multiplies it faster.
        device: cpu, cuda, cuda:N, mps, or auto for cuda where there is one.
        resume: continue the run in `out`, or start it if there is none.
        test: rank the test targets at the end. A search for hyperparameters does not.
        tensorboard: also write TensorBoard events into `out` (extra: track).
        checkpoint_every: seconds between checkpoints within an epoch; each epoch ends with one.

    Returns:
        The finished run, opened.

    Raises:
        HafvtError: a wrong setting, an `out` that is in use, or a dataset without what the model needs.
    """
    model_config = configure(model, preset, params)
    settings = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": default_learning_rate(model, preset) if learning_rate is None else learning_rate,
        "weight_decay": weight_decay,
        "ema_decay": ema_decay,
        "protocol": protocol,
        "validate_every": validate_every,
        "patience": patience,
        "seed": seed,
        "precision": precision,
        "device": device,
        "checkpoint_every": checkpoint_every,
    }
    from hafvt.training.session import run_training  # imports torch, which `hafvt train --help` does without

    return run_training(
        model, model_config, settings, data, Path(out), resume=resume, test=test, tensorboard=tensorboard
    )
