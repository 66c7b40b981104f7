"""The training loop: `hafvt train`."""

from __future__ import annotations

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from lightning_fabric import Fabric

from hafvt.data.batches import TrainBatches
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError, missing_package
from hafvt.evaluation.metrics import domain_mrrs, mean_mrr
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.results import write_results
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.files import LOCK_NAME, atomic_file, lock_folder, write_json
from hafvt.models import build_model, configure, default_learning_rate, resolve_modalities
from hafvt.ops.dtype import compute_dtype
from hafvt.progress import peak_memory_gib, progress
from hafvt.training.checkpoint import load, pack, save, unpack
from hafvt.training.ema import EmaWeights
from hafvt.training.run import (
    Run,
    describe,
    feature_hashes,
    fingerprint,
    model_item_features,
    open_run,
    weight_files,
)

Precision = Literal["auto", "bf16", "fp32"]


@dataclass
class Progress:
    """How far a training has come; all of it is in a checkpoint, so that a resumed run goes on alike."""

    epoch: int = 0  # the epoch under way, from 0
    batch: int = 0  # batches of it that are done
    step: int = 0  # optimizer steps done
    loss: float = 0.0  # sum of the losses of this epoch's batches
    seconds: float = 0.0  # time spent training and validating
    # Of what is selected, one for all domains or, under c2dsr, one for each:
    best_epochs: list[int] = field(default_factory=list)  # epochs done at the best validation
    best_mrrs: list[float] = field(default_factory=list)


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
    """Trains a model; the weights of the best validation MRR are kept; test is touched once, at the end.

    The folder `out` gets config.yaml, metrics.jsonl and checkpoint/, at the end model.safetensors, model.json
    and, of the test targets, ranks.parquet and results.json. A run that was stopped goes on
    with `resume` and ends with the same weights, bit for bit, on the same machine.

    Example: hafvt train hafvt --data data/movies --out runs/hafvt --epochs 100 --seed 0

    Args:
        model: hafvt, gru4rec, sasrec, srgnn, pinet, psjnet, mifn, tricdr, c2dsr or popularity.
        data: a dataset folder, made by prepare and encode.
        out: the run's folder.
        preset: a named configuration of the model, such as default, unmixed or paper.
        params: single hyperparameters of the model, by name (--params.temperature 0.2).
        epochs: passes over the training histories, at most.
        batch_size: users per step.
        learning_rate: of Adam; default: 0.003 for hafvt, 0.001 for its preset paper and all others.
        weight_decay: L2 coefficient of Adam.
        ema_decay: how much of the running average of the weights each step keeps; the averaged weights are
            validated and kept. 0 takes the weights as they are.
        protocol: how validation and, at the end, test rank their targets: full, c2dsr or sampled-unseen, see
            evaluate. Under c2dsr each domain keeps the weights of its own best epoch.
        validate_every: epochs between two validations; default: 2, and 5 under c2dsr.
        patience: stop after so many validations without a better one; 0 never stops early; default: 5, and 0
            under c2dsr.
        seed: of weights, order and dropout.
        precision: bf16 or fp32; auto takes bf16 where the hardware multiplies it faster.
        device: cpu, cuda, or auto.
        resume: go on with the run that is in `out`, or start it if there is none.
        test: rank the test targets at the end; not where a search for hyperparameters compares runs.
        tensorboard: also write TensorBoard events into `out` (extra: track).
        checkpoint_every: seconds between checkpoints within an epoch; one is written after every epoch too.

    Returns:
        The finished run, opened.

    Raises:
        HafvtError: a wrong setting, an `out` that is in use, or a dataset that lacks what the model needs.
    """
    out = Path(out)
    ranking = get_protocol(protocol)
    validate_every = ranking.validate_every if validate_every is None else validate_every
    patience = ranking.patience if patience is None else patience
    if learning_rate is None:
        learning_rate = default_learning_rate(model, preset)
    _check(epochs=epochs, batch_size=batch_size, validate_every=validate_every, learning_rate=learning_rate)
    if not 0 <= ema_decay < 1:
        raise HafvtError(f"--ema-decay must be at least 0 and below 1, not {ema_decay}")
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    config = configure(model, preset, params)
    fabric, dtype = _fabric(device, precision)
    catalog = model_item_features(dataset, model, config)
    config = resolve_modalities(config, catalog)
    settings: dict[str, Any] = {
        "model": model,
        "config": config.model_dump(mode="json"),
        "data": str(dataset.folder),
        "dataset": fingerprint(dataset),
        "features": feature_hashes(dataset, tuple(catalog.vectors)),
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "ema_decay": ema_decay,
        "protocol": protocol,
        "validate_every": validate_every,
        "patience": patience,
        "seed": seed,
        "precision": str(dtype).removeprefix("torch."),
        "epochs": epochs,
    }
    torch.manual_seed(seed)
    net = build_model(model, catalog, config)
    del catalog  # the model holds the frozen vectors as it needs them
    batches = TrainBatches(dataset, batch_size, net.max_length + 1, seed)
    if len(batches) == 0:
        raise HafvtError(
            f"{dataset.folder}: no user has two training interactions: prepare it with other filters"
        )
    with lock_folder(out):
        _claim(out, settings, resume)
        weights = [p for p in net.parameters() if p.requires_grad]
        if not weights:
            epochs = validate_every = 1
        optimizer = (  # fused, as the plain one makes temporary copies as large as the item table
            torch.optim.Adam(weights, lr=learning_rate, weight_decay=weight_decay, fused=True)
            if weights
            else None
        )
        selected = len(dataset.domains) if ranking.checkpoint_per_domain else 1
        state = Progress(best_epochs=[0] * selected, best_mrrs=[-1.0] * selected)
        net.to(fabric.device)
        average = EmaWeights(net, ema_decay)
        last_path = out / "checkpoint" / "last.safetensors"
        best_paths = [out / "checkpoint" / f"best{number or ''}.safetensors" for number in range(selected)]
        if last_path.exists():
            tensors, held = load(last_path)
            unpack(tensors, net, optimizer, average.weights)
            state = Progress(**held)
        _truncate(out / "metrics.jsonl", state)
        if optimizer is not None:
            _, optimizer = fabric.setup(net, optimizer)

        def checkpoint() -> None:
            save(last_path, pack(net, optimizer, average.weights), asdict(state))

        def validate() -> float:
            _, ranks = rank_targets(
                [net] * len(dataset.domains), dataset, "valid", ranking, device=fabric.device
            )
            mrr = mean_mrr(ranks)
            for number, found in enumerate(domain_mrrs(ranks, selected) if selected > 1 else [mrr]):
                if found > state.best_mrrs[number]:
                    state.best_mrrs[number], state.best_epochs[number] = found, state.epoch
                    save(best_paths[number], pack(net), {"epoch": state.epoch, "valid_mrr": found})
            return mrr

        log = _Log(out, tensorboard)
        started, saved = time.monotonic() - state.seconds, time.monotonic()
        total = epochs * len(batches) * batch_size
        with (
            progress(f"train {model}", total, "histories", done=state.step * batch_size) as advance,
            _stoppable() as stop,
        ):
            mrr = -1.0
            while not _finished(state, epochs, validate_every, patience):
                net.train()
                for batch in batches.epoch(state.epoch, first=state.batch):
                    if optimizer is not None:
                        torch.manual_seed((seed << 32) + state.step)  # any step can be taken again alike
                        optimizer.zero_grad(set_to_none=True)
                        with fabric.autocast():  # Fabric itself gives it to `forward` alone
                            loss = net.loss(batch.to(fabric.device))
                        fabric.backward(loss)
                        optimizer.step()
                        state.loss += _finite(float(loss.detach()), state, learning_rate)
                    state.batch += 1
                    state.step += 1
                    average.update(state.step)
                    state.seconds = time.monotonic() - started
                    advance(batch_size, _note(state, mrr))
                    if stop() or time.monotonic() - saved > checkpoint_every:
                        checkpoint()
                        saved = time.monotonic()
                    if stop():
                        raise KeyboardInterrupt
                state.epoch += 1
                line: dict[str, Any] = {
                    "epoch": state.epoch,
                    "step": state.step,
                    "loss": state.loss / len(batches),
                }
                if state.epoch % validate_every == 0 or state.epoch == epochs:
                    with average.in_place():
                        mrr = line["valid_mrr"] = validate()
                state.seconds = time.monotonic() - started
                log.write({**line, "seconds": round(state.seconds, 2)})
                state.batch, state.loss = 0, 0.0
                checkpoint()
                saved = time.monotonic()
        for path, name in zip(best_paths, weight_files(selected), strict=True):
            save(out / name, *load(path))
        best: dict[str, Any] = {"epoch": max(state.best_epochs), "valid_mrr": sum(state.best_mrrs) / selected}
        if selected > 1:
            best["of_each_domain"] = {"epochs": state.best_epochs, "valid_mrrs": state.best_mrrs}
        best["seconds"], best["epochs"], best["steps"] = round(state.seconds, 1), state.epoch, state.step
        best["peak_gib"] = round(_peak_gib(fabric.device), 3)
        write_json(out / "model.json", describe(model, net, config, settings, best))
        run = open_run(out, dataset)
        if test and len(dataset.test) > 0:  # the one time that the test targets are looked at
            _, ranks = rank_targets(run.models, dataset, "test", ranking)
            write_results(out, dataset, ranks, ranking)
        return run


def _check(**positive: float) -> None:
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise HafvtError(f"--{name.replace('_', '-')} must be above 0, not {value}")


def _fabric(device: str, precision: Precision) -> tuple[Fabric, torch.dtype]:
    """Returns the fabric and the dtype of the encoders' and the softmax's products."""
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if kind not in ("cpu", "cuda"):
        raise HafvtError(f"--device {device}: choose cpu, cuda or auto")
    if kind == "cuda" and not torch.cuda.is_available():
        raise HafvtError("--device cuda: torch sees no CUDA device: use --device cpu")
    dtypes = {"auto": compute_dtype(torch.device(kind)), "bf16": torch.bfloat16, "fp32": torch.float32}
    if precision not in dtypes:
        raise HafvtError(f"--precision {precision}: choose {', '.join(dtypes)}")
    dtype = dtypes[precision]
    fabric = Fabric(
        accelerator=kind, devices=1, precision="bf16-mixed" if dtype == torch.bfloat16 else "32-true"
    )
    return fabric, dtype


def _claim(out: Path, settings: dict[str, Any], resume: bool) -> None:
    """Makes the run's folder, or checks that what is there is this very run."""
    path = out / "config.yaml"
    if not path.exists():
        if out.exists() and any(path.name != LOCK_NAME for path in out.iterdir()):
            raise HafvtError(f"{out} is not empty and holds no run: choose another folder")
        with atomic_file(path) as temporary:
            temporary.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
        return
    if not resume:
        raise HafvtError(f"{out} holds a run already: choose another folder, or go on with --resume true")
    held = yaml.safe_load(path.read_text(encoding="utf-8"))
    # The folder of the data may have moved; a longer training than first planned is welcome.
    ignored = ("data", "epochs", "patience")
    other = [key for key in settings if key not in ignored and held.get(key) != settings[key]]
    if other:
        was = ", ".join(f"{key} was {held.get(key)!r}" for key in other)
        raise HafvtError(
            f"{out} holds a run of other settings ({was}): resume with those, or choose another folder"
        )


def _peak_gib(device: torch.device) -> float:
    """Returns the most memory that this process held, on a GPU that of torch's tensors there."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return peak_memory_gib()


def _finished(state: Progress, epochs: int, validate_every: int, patience: int) -> bool:
    waited = (state.epoch - max(state.best_epochs)) // validate_every
    return state.epoch >= epochs or 0 < patience <= waited


def _truncate(path: Path, state: Progress) -> None:
    """Drops the lines of epochs that a resumed run will do again."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = []
    for line in lines:
        try:
            if json.loads(line)["epoch"] <= state.epoch:
                kept.append(line)
        except (json.JSONDecodeError, KeyError):
            break  # half a line, written as the run was killed
    with atomic_file(path) as temporary:
        temporary.write_text("".join(line + "\n" for line in kept), encoding="utf-8")


def _finite(loss: float, state: Progress, learning_rate: float) -> float:
    if not math.isfinite(loss):
        raise HafvtError(
            f"the loss is {loss} at step {state.step}: choose a --learning-rate below {learning_rate}"
        )
    return loss


def _note(state: Progress, mrr: float) -> str:
    best = sum(state.best_mrrs) / len(state.best_mrrs)
    found = f"  valid MRR {mrr:.2%} (best {best:.2%})" if mrr >= 0 else f"  best MRR {best:.2%}" * (best >= 0)
    return f"epoch {state.epoch + 1}  loss {state.loss / max(state.batch, 1):.4f}{found}"


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Turns Ctrl-C and SIGTERM into a question, so that no step is cut in half; asked twice, they act."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    held = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)


class _Log:
    """metrics.jsonl, and TensorBoard where wanted."""

    def __init__(self, out: Path, tensorboard: bool) -> None:
        self.path = out / "metrics.jsonl"
        self.writer: Any = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise missing_package("track", "tensorboard") from None
            self.writer = SummaryWriter(str(out / "tensorboard"))

    def write(self, line: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if self.writer is not None:
            for key in ("loss", "valid_mrr"):
                if key in line:
                    self.writer.add_scalar(key, line[key], line["epoch"])
            self.writer.flush()
