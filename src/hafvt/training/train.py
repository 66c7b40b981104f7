"""`hafvt train`: checks the settings and trains a model. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hafvt.data.dataset import Dataset
from hafvt.data.repeats import CandidateRule
from hafvt.errors import ArgumentError, HafvtError
from hafvt.evaluation.metrics import get_metric
from hafvt.folders import FolderKind, atomic_folder
from hafvt.models import MODELS, configure
from hafvt.processes import num_processes, process_index
from hafvt.settings import Count, Device, Devices, Folder, OutFolder, PositiveCount, Seed, check_arguments
from hafvt.training.callbacks import Callback
from hafvt.training.config import (
    RUN_FILES,
    EmaDecay,
    LearningRate,
    PositiveUsers,
    Precision,
    Schedule,
    Seconds,
    TrainingConfig,
    WeightDecay,
    train_arguments,
)
from hafvt.training.hub_download import local_folder
from hafvt.training.loggers import Logger

if TYPE_CHECKING:
    from hafvt.training.run import Run

RUN_FOLDER = FolderKind("a finished run", "model.json", RUN_FILES)


@check_arguments
def train(
    model: str,
    data: str | Path | Dataset,
    out: OutFolder,
    *,
    preset: str = "default",
    params: dict[str, Any] | None = None,
    epochs: PositiveCount = 100,
    batch_size: PositiveCount = 64,
    learning_rate: LearningRate | None = None,
    schedule: Schedule = "constant",
    warmup_steps: Count = 0,
    weight_decay: WeightDecay = 0.0,
    ema_decay: EmaDecay = 0.995,
    protocol: str = "full",
    candidates: CandidateRule = "auto",
    metric: str = "MRR",
    validate_every: PositiveCount | None = None,
    validate_users: PositiveUsers | None = None,
    patience: Count | None = None,
    seed: Seed = 0,
    precision: Precision = "auto",
    device: Device = "auto",
    devices: Devices = 1,
    shard_catalog: bool = False,
    init_from: Folder | None = None,
    resume: bool = False,
    overwrite: bool = False,
    test: bool = True,
    logger: list[str] | str | list[str | Logger] | None = None,
    callbacks: Sequence[Callback] = (),
    checkpoint_every: Seconds = 300.0,
) -> Run:
    """Train a model, keep the weights of the best validation, and rank the test targets with them.

    Writes config.yaml, metrics.jsonl, checkpoint/, model.safetensors and model.json into the folder `out`;
    for the test targets, also ranks.parquet and results.json. With `resume`, an interrupted run continues.
    On the same machine it ends with exactly the weights of an uninterrupted run.

    Example: hafvt train hafvt data/movies --out runs/hafvt --epochs 100 --seed 0

    Args:
        model: hafvt, hafvt-paper, gru4rec, sasrec, srgnn, pinet, psjnet, mifn, tricdr, c2dsr, item-knn,
            popularity, recent-popularity or seasonal-popularity.
        data: a dataset folder, written by prepare; image and title vectors are added by encode.
        out: folder to write the run to.
        preset: name of a set of hyperparameters of the model, such as default or paper.
        params: hyperparameters of the model that differ from the preset, by name (--params.temperature 0.2).
        epochs: maximum number of passes over the training histories.
        batch_size: users per step, one training history each, over all processes.
        learning_rate: step size of Adam; default: 0.003 for hafvt, else 0.001.
        schedule: of the learning rate: constant, or linear or cosine, which fall to 0 at the last epoch.
        warmup_steps: number of first steps in which the learning rate rises from 0.
        weight_decay: L2 coefficient of Adam; with sampled softmaxes, it acts on the rows of a step alone.
        ema_decay: decay of the exponential moving average of the weights, from 0 to below 1. The averaged
            weights are validated and saved; with 0 they are the weights of the last step.
        protocol: evaluation protocol of validation and test, see evaluate: full, sampled-unseen or c2dsr.
            With c2dsr, the run saves separate weights for each domain, from the domain's best epoch.
        candidates: items that targets are ranked among, see evaluate; recommend lists the same.
        metric: decides what the best epoch is and when training stops early: MRR, or NDCG, HR, recall,
            precision, MAP or MRR of the first k items, such as NDCG@10; the mean of the domains.
        validate_every: epochs between two validations; default: 2, or 5 with c2dsr.
        validate_users: number of users whose validation targets are ranked, always the same ones, where there
            are millions; default: all users.
        patience: stop after this many validations in a row without improvement; 0 never stops early;
            default: 5, or 0 with c2dsr.
        seed: seed of the initial weights, the order of users and dropout.
        precision: bf16, fp32, or auto, which is bf16 on hardware that multiplies it faster than fp32.
        device: cpu, cuda, cuda:N, mps, or auto, which is cuda if available.
        devices: processes that train together on this machine, with cuda each on a GPU of its own; for
            several machines see torchrun in the documentation.
        shard_catalog: with several processes, each holds a slice of the item tables, their moments, averages
            and vectors, in place of all; hafvt and sasrec only.
        init_from: a finished run of the same model on an earlier dataset, to start from its weights. Its
            hyperparameters are the defaults. Items and domains are matched by their ids and names; new ones
            start with random weights. The optimizer starts anew. For models with weights.
        resume: continue the run in `out`, or start it if there is none.
        overwrite: replace a finished run in `out` once the new one is finished; until then, the old one
            stays. An interrupted training starts anew.
        test: rank the test targets at the end. Switch this off while you choose hyperparameters.
        logger: tensorboard, mlflow[:EXPERIMENT], wandb[:PROJECT] or several of them, which get settings,
            curves, results, model card and report; in Python also loggers of Lightning. A resumed run
            continues there.
        callbacks: objects of classes that extend `hafvt.Callback`; not with `devices`.
        checkpoint_every: seconds between checkpoints within an epoch; epochs also end with a checkpoint.
            There are fewer if checkpoints would take more than 3 % of the time.

    Returns:
        The finished run.

    Raises:
        HafvtError: a setting is wrong, `out` is in use, or the dataset lacks data that the model needs.
    """
    options = dict(locals())
    for name in ("model", "params", "devices", "out", "overwrite", "logger", "callbacks"):
        del options[name]
    model_config = configure(model, preset, params)
    get_metric(metric)  # reports a wrong name before any work
    # These import torch, which --help does not need.
    from hafvt.evaluation.protocols import get_protocol
    from hafvt.training.initialize import initial_config
    from hafvt.training.run import open_run
    from hafvt.training.session import run_training
    from hafvt.training.tracking import Tracking

    loggers = [logger] if isinstance(logger, str) else list(logger or ())
    names = [name for name in loggers if isinstance(name, str)]
    if devices > 1 and (callbacks or len(names) < len(loggers)):
        raise ArgumentError("--devices starts other processes, without objects: use torchrun for callbacks")
    tracking = Tracking(loggers, Path(out).name)
    own_callbacks = [tracking, *callbacks] if process_index() == 0 else []
    if init_from is not None:
        init_from = local_folder(init_from)
        model_config = initial_config(model, Path(init_from), preset, params or {})
        if shard_catalog:
            raise ArgumentError("--init-from needs whole item tables: leave out --shard-catalog")
    if devices > 1 and num_processes() > 1:
        raise HafvtError("--devices starts processes, as torchrun does: leave out one of them")
    rules = get_protocol(protocol, candidates)
    config = TrainingConfig(
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=MODELS[model].learning_rate if learning_rate is None else learning_rate,
        schedule=schedule,
        warmup_steps=warmup_steps,
        weight_decay=weight_decay,
        ema_decay=ema_decay,
        protocol=protocol,
        candidates=candidates,
        metric=metric,
        validate_every=rules.validate_every if validate_every is None else validate_every,
        patience=rules.patience if patience is None else patience,
        seed=seed,
        precision=precision,
        device=device,
        checkpoint_every=checkpoint_every,
        validate_users=validate_users,
        shard_catalog=shard_catalog,
    )

    def train_into(folder: Path) -> Run:
        if devices == 1:
            initial = None if init_from is None else Path(init_from)
            tracking.use_folder(folder)
            try:
                return run_training(
                    *(model, model_config, config, data, folder),
                    resume=resume,
                    test=test,
                    callbacks=own_callbacks,
                    init_from=initial,
                )
            except BaseException:
                tracking.close("failed")
                raise
        from hafvt.training.launch import launch_processes

        options["data"] = data.folder if isinstance(data, Dataset) else data
        options["out"], options["logger"] = folder, names
        launch_processes(train_arguments(model, options, params or {}), devices, folder)
        return open_run(folder, data)

    if not overwrite or not Path(out).exists():
        run = train_into(Path(out))
    else:
        if resume or num_processes() > 1:
            raise ArgumentError("--overwrite trains anew, without torchrun: leave out --resume and torchrun")
        with atomic_folder(out, RUN_FOLDER, overwrite=True) as temporary:
            train_into(temporary)
        run = open_run(out, data)
    for callback in own_callbacks if devices == 1 else ():
        callback.on_train_end(run)
    return replace(run, loggers=tuple(names))
