"""Train a model in this process: build it, run the training loop, save the run and rank the test targets."""

from __future__ import annotations

import logging
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
from hafvt.files import folder_lock, write_json
from hafvt.models import build_model, resolve_modalities
from hafvt.models.hyperparameters import ModelConfig, validate_config
from hafvt.ops.device import compute_dtype, select_device
from hafvt.progress import peak_memory_gib
from hafvt.training.checkpoint import load_checkpoint, save_checkpoint
from hafvt.training.config import TrainingConfig
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

logging.getLogger("lightning_fabric").setLevel(logging.WARNING)  # it announces its precision at every start


def run_training(
    model: str,
    model_config: ModelConfig,
    settings: dict[str, Any],
    data: str | Path | Dataset,
    folder: Path,
    *,
    resume: bool,
    test: bool,
    tensorboard: bool,
) -> Run:
    """Train a model in this process, see `hafvt.training.train.train`.

    Args:
        model: name of the model.
        model_config: hyperparameters of the model.
        settings: fields of `TrainingConfig`; `validate_every` and `patience` may be None, for the defaults of
            the protocol.
        data: the dataset or its folder.
        folder: folder of the run.
        resume: continue the run in the folder, if there is one.
        test: rank the test targets at the end.
        tensorboard: also write TensorBoard events.

    Returns:
        The finished run.

    Raises:
        HafvtError: a setting is wrong, the folder is in use, or the dataset lacks data that the model needs.
    """
    protocol = get_protocol(settings["protocol"])
    for name in ("validate_every", "patience"):
        if settings[name] is None:
            settings = {**settings, name: getattr(protocol, name)}
    config = validate_config("train", TrainingConfig, settings)
    fabric, dtype = create_fabric(config)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    item_features = model_item_features(dataset, model, model_config)
    model_config = resolve_modalities(model_config, item_features)
    run_settings = {
        "format": FORMAT,
        "model": model,
        "config": model_config.model_dump(mode="json"),
        "data": str(dataset.folder),
        "dataset": fingerprint(dataset),
        "features": feature_hashes(dataset, tuple(item_features.vectors)),
        **config.model_dump(exclude={"device", "checkpoint_every"}),
        "precision": str(dtype).removeprefix("torch."),
    }
    torch.manual_seed(config.seed)
    network = build_model(model, item_features, model_config)
    del item_features  # frees memory: the model holds its own copy
    process = {"rank": fabric.global_rank, "num_ranks": fabric.world_size}
    batches = TrainBatches(dataset, config.batch_size, network.max_length + 1, config.seed, **process)
    if len(batches) == 0:
        raise HafvtError(
            f"{dataset.folder}: no user has two training interactions: prepare it with other filters"
        )
    with folder_lock(folder) if fabric.is_global_zero else nullcontext():
        if fabric.is_global_zero:
            claim_folder(folder, run_settings, resume=resume)
        fabric.barrier()
        trainer = Trainer(fabric, network, dataset, batches, folder, config, protocol)
        trainer.fit(f"train {model}", tensorboard=tensorboard)
        if fabric.is_global_zero:
            publish(trainer, run_settings)
        fabric.barrier()
        run = open_run(folder, dataset)
        if test and len(dataset.test) > 0 and fabric.is_global_zero:
            test_ranks = rank_targets(run.models, dataset, "test", protocol).by_protocol
            write_results(folder, dataset, test_ranks, protocol)
    return run


def create_fabric(config: TrainingConfig) -> tuple[Fabric, torch.dtype]:
    """Return the Fabric object of a training, and the dtype of its matrix products.

    Raises:
        HafvtError: this machine has no such device.
    """
    device = select_device(config.device)
    dtypes = {"auto": compute_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = dtypes[config.precision]
    devices = 1 if device.index is None else [device.index]
    precision = "bf16-mixed" if dtype == torch.bfloat16 else "32-true"
    return Fabric(accelerator=device.type, devices=devices, precision=precision), dtype  # type: ignore[arg-type]


def publish(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Write the best weights and model.json into the run's folder. With these files the run is finished.

    Args:
        trainer: the trainer, whose `fit` has returned.
        settings: content of config.yaml.
    """
    state, device = trainer.state, trainer.fabric.device
    for path, name in zip(trainer.best_paths, weight_files(len(trainer.best_paths)), strict=True):
        save_checkpoint(trainer.folder / name, *load_checkpoint(path))
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else peak_memory_gib()
    summary: dict[str, Any] = {"epoch": max(state.best_epochs), "valid_mrr": state.best_mrr}
    if len(trainer.best_paths) > 1:
        summary["per_domain"] = {"epochs": state.best_epochs, "valid_mrrs": state.best_mrrs}
    summary |= {"seconds": round(state.seconds, 1), "epochs": state.epoch, "steps": state.step}
    summary["peak_gib"] = round(peak_gib, 3)
    write_json(trainer.folder / "model.json", describe_run(trainer.model, settings, summary))
