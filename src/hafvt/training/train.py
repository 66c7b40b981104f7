"""`hafvt train`: from settings to a finished run."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric

from hafvt.data.batches import TrainBatches
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.results import write_results
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.files import lock_folder, write_json
from hafvt.models import build_model, configure, default_learning_rate, resolve_modalities
from hafvt.models.hyperparameters import validate_config
from hafvt.ops.device import select_device
from hafvt.ops.dtype import compute_dtype
from hafvt.progress import peak_memory_gib
from hafvt.training.checkpoint import load_checkpoint, save_checkpoint
from hafvt.training.config import Precision, TrainingConfig
from hafvt.training.run import (
    FORMAT,
    Run,
    claim_folder,
    describe_run,
    feature_hashes,
    fingerprint,
    model_item_features,
    open_run,
    weight_files,
)
from hafvt.training.trainer import Trainer


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
    ranking = get_protocol(protocol)
    model_config = configure(model, preset, params)
    rate = default_learning_rate(model, preset) if learning_rate is None else learning_rate
    values = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": rate,
        "weight_decay": weight_decay,
        "ema_decay": ema_decay,
        "protocol": protocol,
        "validate_every": ranking.validate_every if validate_every is None else validate_every,
        "patience": ranking.patience if patience is None else patience,
        "seed": seed,
        "precision": precision,
        "device": device,
        "checkpoint_every": checkpoint_every,
    }
    config = validate_config("train", TrainingConfig, values)
    fabric, dtype = create_fabric(config)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    item_features = model_item_features(dataset, model, model_config)
    model_config = resolve_modalities(model_config, item_features)
    settings = {
        "format": FORMAT,
        "model": model,
        "config": model_config.model_dump(mode="json"),
        "data": str(dataset.folder),
        "dataset": fingerprint(dataset),
        "features": feature_hashes(dataset, tuple(item_features.vectors)),
        **config.model_dump(exclude={"device", "checkpoint_every"}),
        "precision": str(dtype).removeprefix("torch."),
    }
    torch.manual_seed(seed)
    network = build_model(model, item_features, model_config)
    del item_features  # frees memory: the model has its own tables
    ranks = {"rank": fabric.global_rank, "num_ranks": fabric.world_size}
    batches = TrainBatches(dataset, batch_size, network.max_length + 1, seed, **ranks)
    if len(batches) == 0:
        raise HafvtError(
            f"{dataset.folder}: no user has two training interactions: prepare it with other filters"
        )
    folder = Path(out)
    with lock_folder(folder) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            claim_folder(folder, settings, resume=resume)
        fabric.barrier()
        trainer = Trainer(fabric, network, dataset, batches, folder, config, ranking)
        trainer.fit(f"train {model}", tensorboard=tensorboard)
        if fabric.is_global_zero:
            publish(trainer, settings)
        fabric.barrier()
        run = open_run(folder, dataset)
        if test and len(dataset.test) > 0 and fabric.is_global_zero:
            test_ranks = rank_targets(run.models, dataset, "test", ranking).by_protocol
            write_results(folder, dataset, test_ranks, ranking)
    return run


def create_fabric(config: TrainingConfig) -> tuple[Fabric, torch.dtype]:
    """Return the Fabric object of a training, and the number format of its matrix products.

    Raises:
        HafvtError: there is no such device.
    """
    device = select_device(config.device)
    dtypes = {"auto": compute_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = dtypes[config.precision]
    devices = 1 if device.index is None else [device.index]
    precision = "bf16-mixed" if dtype == torch.bfloat16 else "32-true"
    return Fabric(accelerator=device.type, devices=devices, precision=precision), dtype  # type: ignore[arg-type]


def publish(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Write the best weights and model.json into the run's folder, which make it a finished run.

    Args:
        trainer: after `fit`.
        settings: content of config.yaml.
    """
    state, device = trainer.state, trainer.fabric.device
    for path, name in zip(trainer.best_paths, weight_files(len(trainer.best_paths)), strict=True):
        save_checkpoint(trainer.folder / name, *load_checkpoint(path))
    peak = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else peak_memory_gib()
    best: dict[str, Any] = {"epoch": max(state.best_epochs), "valid_mrr": state.best_mrr}
    if len(trainer.best_paths) > 1:
        best["per_domain"] = {"epochs": state.best_epochs, "valid_mrrs": state.best_mrrs}
    best |= {"seconds": round(state.seconds, 1), "epochs": state.epoch, "steps": state.step}
    best["peak_gib"] = round(peak, 3)
    write_json(trainer.folder / "model.json", describe_run(trainer.model, settings, best))
