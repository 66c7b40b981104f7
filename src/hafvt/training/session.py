"""Train a model in this process: build it, run the training loop, save the run and rank the test targets."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml

from hafvt.data.batches import TrainBatches
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError, warn
from hafvt.evaluation.protocols import Protocol, get_protocol
from hafvt.evaluation.results import write_results
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.files import atomic_file, explained_read_errors, is_temporary, read_json, sha256, write_json
from hafvt.folders import folder_lock
from hafvt.models import MODELS, build_model, resolve_config
from hafvt.models.hyperparameters import ModelConfig
from hafvt.ops.collectives import all_reduce_max_, barrier, global_count, process_group
from hafvt.ops.device import compute_dtype, process_device
from hafvt.ops.shards import Shard
from hafvt.processes import num_processes, process_index
from hafvt.progress import peak_memory_gib
from hafvt.training.callbacks import Callback
from hafvt.training.checkpoint import verify_checkpoint
from hafvt.training.config import TrainingConfig, validation_key
from hafvt.training.initialize import copy_weights, inherit_features, open_initial_run
from hafvt.training.run import (
    FORMAT,
    Run,
    current_format,
    feature_hashes,
    fingerprint,
    model_item_features,
    open_run,
    weight_files,
)
from hafvt.training.run_catalog import write_catalog
from hafvt.training.trainer import RETRAIN_REMEDY, Trainer


@process_group()
def run_training(
    model: str,
    model_config: ModelConfig,
    config: TrainingConfig,
    data: str | Path | Dataset,
    folder: Path,
    *,
    resume: bool,
    test: bool,
    callbacks: Sequence[Callback] = (),
    init_from: Path | None = None,
) -> Run:
    """Train the model of a name in this process and return the run, see `hafvt.training.train.train`.

    If torchrun started this process, the others train with it. `on_train_end` of callbacks is not called.
    """
    protocol, device = get_protocol(config.protocol, config.candidates), process_device(config.device)
    dtypes = {"auto": compute_dtype(device), "bf16": torch.bfloat16, "fp32": torch.float32}
    dtype = dtypes[config.precision]
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    shard = catalog_shard(model, dataset, protocol) if config.shard_catalog else None
    item_features = model_item_features(dataset, model, model_config, shard=shard)
    initial = None if init_from is None else open_initial_run(init_from, dataset)
    if initial is not None:
        item_features = inherit_features(item_features, initial)
    model_config = resolve_config(model_config, item_features)
    settings = {
        "format": FORMAT,
        "model": model,
        "config": model_config.model_dump(mode="json"),
        "data": str(dataset.folder),
        "dataset": fingerprint(dataset),
        "features": feature_hashes(dataset, tuple(item_features.vectors)),
        # Others do not change the result, or only by rounding.
        **config.model_dump(exclude={"device", "checkpoint_every", "shard_catalog"}),
        "precision": str(dtype).removeprefix("torch."),
    }
    if initial is not None:
        settings["init_from"], settings["init_weights"] = str(init_from), initial.run.manifest["sha256"]
    torch.manual_seed(config.seed)
    # Of each weight, training holds the gradient, Adam's two moments and the average.
    copies = 5 if device.type == "cpu" else 1
    network = build_model(model, item_features, model_config, copies=copies)
    del item_features  # frees memory: the model holds its own copy
    if initial is not None:
        copy_weights(network, initial)
    batches = TrainBatches(
        dataset,
        config.batch_size,
        network.max_length + 1,
        config.seed,
        process_index=process_index(),
        num_processes=num_processes(),
        with_times=network.uses_times,
    )
    if len(batches) == 0:
        raise HafvtError(
            f"{dataset.folder}: no user has two training interactions: prepare it with other filters"
        )
    is_first = process_index() == 0
    with folder_lock(folder) if is_first else nullcontext():
        if is_first:
            claim_folder(folder, settings, resume=resume)
        barrier()
        for callback in callbacks:
            callback.on_train_start(settings)
        trainer = Trainer(network, dataset, batches, folder, config, protocol, device, dtype)
        trainer.fit(f"train {model}", callbacks=callbacks, validate_first=initial is not None)
        save_run(trainer, settings)
        if initial is None:
            warn_of_early_best(trainer)
        models = trainer.load_best() if shard else None
        del trainer, network, initial  # frees memory for the model of the run
        barrier()
        run = open_run(folder, dataset, models)
        if test and len(dataset.test) > 0:
            test_ranks = rank_targets(run.models, dataset, "test", protocol, with_lists=True).by_protocol
            write_results(folder, dataset, test_ranks, protocol)
        barrier()
        if shard is not None:
            del run, models  # frees memory for the whole model
            run = open_run(folder, dataset, None if is_first else ())
    return run


def warn_of_early_best(trainer: Trainer) -> None:
    """Warn if later validations brought no improvement over one of the first two epochs."""
    best, num_epochs = max(trainer.state.best_epochs), trainer.state.epoch
    if process_index() == 0 and trainer.optimizer is not None and best <= 2 and num_epochs > best:
        warn(
            f"the best epoch is {best} of {num_epochs}: the model may learn too fast or overfit: try a "
            f"--learning-rate below {trainer.config.learning_rate:g}, or --validate-every 1 for a closer look"
        )


def catalog_shard(model: str, data: Dataset, protocol: Protocol) -> Shard | None:
    """Return the rows of item tables that this process holds; None in a training of one process.

    Raises:
        HafvtError: the model or the protocol needs whole tables.
    """
    if not MODELS[model].model_class.can_shard_catalog:
        names = [name for name, entry in MODELS.items() if entry.model_class.can_shard_catalog]
        raise HafvtError(
            f"{model} keeps its item tables whole in every process: leave out --shard-catalog, or train "
            f"{' or '.join(names)}"
        )
    if protocol.checkpoint_per_domain:
        raise HafvtError(
            f"the protocol {protocol.name} keeps whole weights for each domain: leave out --shard-catalog, "
            "or choose --protocol full"
        )
    ranges = [(domain.start, domain.stop) for domain in data.domains]
    return Shard.of_ranges(ranges, process_index(), num_processes()) if num_processes() > 1 else None


def claim_folder(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """Write config.yaml into a new folder, or into that of a run with the same settings, to `resume` it.

    A resumed run may differ in `patience`, the paths of the dataset and of `init_from` and, with a constant
    learning rate, in `epochs`.

    Raises:
        HafvtError: the folder holds other files, a run without `resume`, or a run of other settings or of
            more epochs.
    """
    path = folder / "config.yaml"
    if path.exists():
        if not resume:
            raise HafvtError(
                f"{folder} holds a run already: continue it with --resume, or choose another folder"
            )
        with explained_read_errors(path, RETRAIN_REMEDY):
            saved = current_format(folder, yaml.safe_load(path.read_text(encoding="utf-8")))
            changes = changed_settings(saved, settings)
        if changes:
            raise HafvtError(
                f"{folder} holds a run of other settings ({', '.join(changes)}): resume with those, or "
                "choose another folder"
            )
        log = folder / "metrics.jsonl"  # one line per epoch
        num_epochs = log.read_bytes().count(b"\n") if log.exists() else 0
        if num_epochs > settings["epochs"]:
            raise HafvtError(
                f"{folder} has trained {num_epochs} epochs already: resume with --epochs {num_epochs} or more"
            )
    elif folder.exists() and not all(map(is_temporary, folder.iterdir())):
        raise HafvtError(f"{folder} is not empty and holds no run: choose another folder")
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def changed_settings(saved: dict[str, Any], settings: dict[str, Any]) -> list[str]:
    """Return the saved values of all settings that a continued run may not change: "seed was 0"."""
    hashes = {"dataset", "features"}
    may_differ = hashes | {"config", "data", "patience", "init_from"}
    if settings["schedule"] == "constant":
        may_differ |= {"epochs"}
    changes = [f"the {name} changed" for name in sorted(hashes) if saved[name] != settings[name]]
    values, saved_values = (
        {k: v for k, v in part.items() if k not in may_differ}
        | {f"params.{k}": v for k, v in part["config"].items()}
        for part in (settings, saved)
    )
    defaults = TrainingConfig().model_dump()  # of settings that an earlier version did not have
    saved_values = {name: defaults.get(name) for name in values} | saved_values
    names = [name for name in values | saved_values if values.get(name) != saved_values.get(name)]
    return changes + [f"{name} was {saved_values.get(name)!r}" for name in names]


def save_run(trainer: Trainer, settings: dict[str, Any]) -> None:
    """Write the best weights and model.json, with `settings`, into the run's folder: the run is finished.

    Process 0 writes; `peak_gib` is the memory of the largest process.
    """
    state, device, folder = trainer.state, trainer.device, trainer.folder
    peak_gib = torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else peak_memory_gib()
    numbers = {name: weight.numel() for name, weight in trainer.model.named_parameters()}
    num_sharded = global_count(sum(numbers.get(name, 0) for name in trainer.model.sharded_names))
    num_parameters = num_sharded + sum(p.numel() for p in trainer.replicated_weights)
    greatest_peak_gib = torch.tensor(peak_gib)
    all_reduce_max_([greatest_peak_gib])
    if process_index() > 0:
        return
    files = dict(zip(weight_files(len(trainer.best_paths)), trainer.best_paths, strict=True))
    for path in files.values():
        verify_checkpoint(path)
    hashes = {name: sha256(path) for name, path in files.items()}
    # There may be no previous model.json, or a damaged one.
    with suppress(HafvtError, LookupError, TypeError, AttributeError):
        previous = read_json(folder / "model.json")
        # Until model.json is replaced, the previous and the new weights are valid.
        valid_hashes = {name: f"{hashes[name]} {value}" for name, value in previous["sha256"].items()}
        write_json(folder / "model.json", previous | {"sha256": valid_hashes}, checksum=True)
    model = trainer.model
    write_catalog(
        folder,
        trainer.data,
        settings["dataset"],
        tuple(settings["features"]),
        relations=model.uses_relations,
        times=bool(settings["config"].get("use_request_date")),
    )
    for name, path in files.items():
        with atomic_file(folder / name, path.stat().st_size) as temporary:
            shutil.copyfile(path, temporary)
    key = validation_key(trainer.config.metric)
    best: dict[str, Any] = {"epoch": max(state.best_epochs), key: state.best_value}
    if len(files) > 1:
        best["per_domain"] = {"epochs": state.best_epochs, f"{key}s": state.best_values}
    best |= {"seconds": round(state.seconds, 1), "epochs": state.epoch, "steps": state.step}
    manifest = {
        "format": FORMAT,
        "model": settings["model"],
        "config": settings["config"],
        "data": str(Path(settings["data"]).resolve()),
        "dataset": settings["dataset"],
        "parameters": num_parameters,
        "training": settings,
        "best": best | {"peak_gib": round(float(greatest_peak_gib), 3)},
        "valid_mrrs": {str(line["epoch"]): line["valid_mrr"] for line in state.log if "valid_mrr" in line},
        "processes": num_processes(),
        "versions": {"hafvt": version("hafvt"), "torch": torch.__version__},
        "sha256": hashes,
    }
    write_json(folder / "model.json", manifest, checksum=True)
