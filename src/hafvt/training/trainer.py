"""The training loop: steps, validations, checkpoints and early stopping."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from hafvt.data.batches import Batch, TrainBatches
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import domain_means, get_metric, mean_metric, mean_mrr
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.files import explained_read_errors
from hafvt.models.base import Model
from hafvt.ops.collectives import (
    all_reduce_gradients,
    all_reduce_max_,
    all_reduce_sum,
    barrier,
    broadcast_,
    is_distributed,
    is_orphan,
)
from hafvt.processes import process_index
from hafvt.progress import Advance, progress
from hafvt.training.callbacks import Callback
from hafvt.training.checkpoint import pack, save_checkpoint, unpack
from hafvt.training.config import TrainingConfig, validation_key
from hafvt.training.ema import EmaWeights
from hafvt.training.interrupt import deferred_interrupts
from hafvt.training.metrics_log import MetricsLog
from hafvt.training.optimizer import RowAdam
from hafvt.training.schedule import make_scheduler
from hafvt.training.sharded_checkpoint import load_slices, save_slices, save_unsharded, sharded_tensor_names

MAX_CHECKPOINT_TIME_SHARE = 0.03
"""Largest share of the training time spent on checkpoints, so that large models write fewer of them."""
RETRAIN_REMEDY = "train the model again in another folder"
"""End of the messages about files that cannot be used: what the user can do."""


@dataclass
class TrainingState:
    """The progress of a training. Checkpoints contain it, so that a resumed training continues identically.

    Attributes:
        epoch, batch, step: finished epochs, batches of the current epoch, and optimizer steps.
        loss_sum: sum of the losses of the current epoch's batches.
        seconds: time of training and validation, interrupted runs included.
        best_epochs: epoch with the highest value of the metric in validation: one entry for all domains
            together, or one per domain; 0 before the first validation.
        best_values: value of the metric at each of `best_epochs`; -1 before the first validation.
        log: the lines of metrics.jsonl, one per finished epoch.
    """

    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    best_epochs: list[int] = field(default_factory=list)
    best_values: list[float] = field(default_factory=list)
    log: list[dict[str, float]] = field(default_factory=list)

    @property
    def best_value(self) -> float:
        """Return the mean of `best_values`, negative before the first validation."""
        return sum(self.best_values) / len(self.best_values)


class Trainer:
    """Trains a model, validates it, and saves its best weights. Resumes from the last checkpoint in `folder`.

    Several processes hold the same weights. Each has its part of the batches, and their gradients are summed.
    Each ranks its part of the validation targets. Process 0 writes the files.

    Args:
        model: is trained in place, on `device`.
        data: the dataset of the validation targets.
        batches: training histories of this process.
        folder: of the run; checkpoints are in its subfolder checkpoint.
        config: settings of the training.
        protocol: how validation targets are ranked.
        device: for all computations.
        dtype: of matrix products, float32 or bfloat16.

    Attributes:
        epochs, validate_every: those of `config`, or 1 for a model without parameters.
        state: progress of the training.
        ema: moving averages of the weights, which are validated and saved.
        optimizer: None for a model without parameters.
        scheduler: changes the learning rate after each step; None for a constant one.
        replicated_weights: weights that all processes hold whole; their gradients are summed.
        sharded_tensors: names of the tensors of a checkpoint that are slices of tables.
        last_path, best_paths: files of the last checkpoint and of the best weights, one or one per domain.
    """

    def __init__(
        self,
        model: Model,
        data: Dataset,
        batches: TrainBatches,
        folder: Path,
        config: TrainingConfig,
        protocol: Protocol,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model, self.data, self.batches, self.device, self.dtype = model, data, batches, device, dtype
        self.folder, self.config, self.protocol = folder, config, protocol
        model.to(device)
        broadcast_weights(model)
        parameters = [p for p in model.parameters() if p.requires_grad]
        # A model without parameters, such as popularity, has one epoch, in which nothing is trained.
        self.epochs, self.validate_every = (config.epochs, config.validate_every) if parameters else (1, 1)
        num_checkpoints = len(data.domains) if protocol.checkpoint_per_domain else 1
        self.state = TrainingState(best_epochs=[0] * num_checkpoints, best_values=[-1.0] * num_checkpoints)
        self.ema = EmaWeights(model, config.ema_decay)
        self.optimizer: torch.optim.Optimizer | None = None
        self.replicated_weights = [
            weight for name, weight in model.named_parameters() if name not in model.sharded_names
        ]
        if parameters:  # fused=True: other implementations allocate temporary copies of the item table
            self.optimizer = RowAdam(
                parameters, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
            )
        self.sharded_tensors = sharded_tensor_names(model, model.sharded_names, self.optimizer)
        checkpoints = folder / "checkpoint"
        self.last_path = checkpoints / "last.safetensors"
        self.best_paths = [checkpoints / f"best{index or ''}.safetensors" for index in range(num_checkpoints)]
        if has_checkpoint(self.last_path):
            tensors, state = self.load_checkpoint_slices(self.last_path)
            with explained_read_errors(self.last_path, RETRAIN_REMEDY):
                unpack(tensors, model, self.optimizer, self.ema.state)
                state.setdefault("best_values", state.pop("best_mrrs", None))  # its name up to version 0.2.0
                self.state = TrainingState(**state)
        self.scheduler: LambdaLR | None = None
        if self.optimizer is not None:
            num_steps = self.epochs * len(batches)
            self.scheduler = make_scheduler(
                self.optimizer, config.schedule, config.warmup_steps, num_steps, self.state.step
            )
        self.started_at = time.monotonic() - self.state.seconds  # as if the run had never been interrupted
        self.last_checkpoint_at, self.checkpoint_seconds = time.monotonic(), 0.0

    def fit(self, title: str, *, callbacks: Sequence[Callback] = (), validate_first: bool = False) -> None:
        """Train until the last epoch, or until `patience` validations in a row bring no improvement.

        `title` is that of the progress bar. After each epoch, a callback of a process may stop all. With
        `validate_first`, the initial weights are validated, too, and kept if they remain the best.

        Raises:
            HafvtError: the loss is not finite.
            KeyboardInterrupt: Ctrl-C or SIGTERM, after the current step and a checkpoint.
        """
        log = MetricsLog(self.folder, self.state.log) if process_index() == 0 else None
        state, batch_size, is_stopped = self.state, self.config.batch_size, False
        num_histories = self.epochs * len(self.batches) * batch_size
        with (
            progress(title, num_histories, "histories", done=state.step * batch_size) as advance,
            deferred_interrupts() as is_interrupted,
        ):
            value = -1.0
            if validate_first and state.step == 0:
                value = self.validate()[validation_key(self.config.metric)]
            while not (self.is_finished() or is_stopped):
                self.train_epoch(advance, is_interrupted, value)
                state.epoch += 1
                metrics = {
                    "epoch": state.epoch,
                    "step": state.step,
                    "loss": state.loss_sum / len(self.batches),
                }
                if self.scheduler is not None:
                    (rate,), (factor,) = self.scheduler.base_lrs, self.scheduler.lr_lambdas
                    metrics["learning_rate"] = float(rate) * factor(state.step - 1)  # of the last step
                if state.epoch % self.validate_every == 0 or state.epoch == self.epochs:
                    metrics |= self.validate()
                    value = metrics[validation_key(self.config.metric)]
                state.seconds = time.monotonic() - self.started_at
                state.log.append({**metrics, "seconds": round(state.seconds, 2)})
                if log is not None:
                    log.write(state.log[-1])
                state.batch, state.loss_sum = 0, 0.0
                called_at = time.monotonic()
                stops = [bool(callback.on_epoch_end(state.epoch, state.log[-1])) for callback in callbacks]
                self.started_at += time.monotonic() - called_at
                # With the long timeout, as process 0 may have written the best weights.
                is_due, is_stopped = map(
                    bool, all_reduce_sum([self.is_checkpoint_due(0.0), any(stops)], long_timeout=True)
                )
                if is_stopped and "valid_mrr" not in state.log[-1]:
                    state.log[-1] |= self.validate()
                    log = MetricsLog(self.folder, state.log) if log is not None else None
                if is_due or is_stopped or self.is_finished():
                    self.write_checkpoint()

    def is_finished(self) -> bool:
        """Return whether all epochs are done or `patience` validations in a row brought no improvement."""
        num_without_improvement = (self.state.epoch - max(self.state.best_epochs)) // self.validate_every
        return self.state.epoch >= self.epochs or 0 < self.config.patience <= num_without_improvement

    def train_epoch(self, advance: Advance, is_interrupted: Callable[[], bool], value: float) -> None:
        """Train the remaining batches of the current epoch; `value` is that of the last validation, or -1."""
        state, metric = self.state, self.config.metric
        self.model.train()
        for batch in self.batches.epoch(state.epoch, first=state.batch):
            if self.optimizer is not None:
                state.loss_sum += self.train_step(batch)
            state.batch += 1
            state.step += 1
            self.ema.update(state.step)
            state.seconds = time.monotonic() - self.started_at
            note = f"  valid {metric} {value:.2%}" if value >= 0 else ""
            note += f"  best {metric} {state.best_value:.2%}" if state.best_value >= 0 else ""
            advance(
                self.config.batch_size,
                f"epoch {state.epoch + 1}  loss {state.loss_sum / state.batch:.4f}{note}",
            )
            is_due = self.is_checkpoint_due(self.config.checkpoint_every)
            interrupted, is_due = map(bool, all_reduce_sum([is_interrupted() or is_orphan(), is_due]))
            if interrupted or is_due:
                self.write_checkpoint()
            if interrupted:
                raise KeyboardInterrupt

    def train_step(self, batch: Batch) -> float:
        """Take one optimizer step and return the loss.

        Raises:
            HafvtError: the loss is not finite.
        """
        assert self.optimizer is not None
        torch.manual_seed(step_seed(self.config.seed, self.state.step, process_index()))
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            loss = self.model.loss(batch.to(self.device))
        (value,) = all_reduce_sum([float(loss.detach())])
        if not math.isfinite(value):
            step, rate = self.state.step, self.config.learning_rate
            raise HafvtError(f"the loss is {value} at step {step}: choose a --learning-rate below {rate}")
        loss.backward()  # type: ignore[no-untyped-call]
        all_reduce_gradients(self.replicated_weights)
        self.ema.update_rows(self.state.step)
        self.optimizer.step()
        if self.scheduler is not None:
            self.scheduler.step()
        return value

    def validate(self) -> dict[str, float]:
        """Rank the validation targets with the averaged weights; save these if the metric is the best.

        Returns:
            The mean of the domains' MRRs and, if it is another one, of the metric.
        """
        metric, key = get_metric(self.config.metric), validation_key(self.config.metric)
        state, models = self.state, [self.model] * len(self.data.domains)
        all_reduce_counters(self.model)
        with self.ema.applied(state.step):
            ranks = rank_targets(
                models,
                self.data,
                "valid",
                self.protocol,
                max_users=self.config.validate_users,
                device=self.device,
            ).by_protocol
            mean, num_checkpoints = mean_metric(ranks, metric), len(state.best_values)
            values = domain_means(ranks, num_checkpoints, metric) if num_checkpoints > 1 else [mean]
            for index, value in enumerate(values):
                if value > state.best_values[index]:
                    state.best_values[index], state.best_epochs[index] = value, state.epoch
                    self.save_best(self.best_paths[index], {"epoch": state.epoch, key: value})
        return {"valid_mrr": mean_mrr(ranks), key: mean}

    def save_best(self, path: Path, metadata: dict[str, Any]) -> None:
        """Write the weights of the model, with the rows of all processes."""
        if self.model.shard is not None:
            save_unsharded(path, pack(self.model), self.sharded_tensors, self.model.shard, metadata)
        elif process_index() == 0:
            save_checkpoint(path, pack(self.model), metadata)

    def load_checkpoint_slices(self, path: Path) -> tuple[dict[str, Tensor], Any]:
        """Return the tensors and the state of a checkpoint; of sharded tables, the rows of this process."""
        ranges = [(domain.start, domain.stop) for domain in self.model.domains]
        return load_slices(path, self.sharded_tensors, ranges, self.model.shard, RETRAIN_REMEDY)

    def load_best(self) -> list[Model]:
        """Return the model of each domain, on the CPU, with its best weights; they are one model."""
        unpack(self.load_checkpoint_slices(self.best_paths[0])[0], self.model.cpu())
        return [self.model] * len(self.data.domains)

    def is_checkpoint_due(self, min_interval: float) -> bool:
        """Return whether process 0 wants to write a checkpoint; False in other processes.

        It does `min_interval` seconds after the last one, or later if checkpoints would take more than
        `MAX_CHECKPOINT_TIME_SHARE` of the time.
        """
        interval = max(min_interval, self.checkpoint_seconds / MAX_CHECKPOINT_TIME_SHARE)
        return process_index() == 0 and time.monotonic() - self.last_checkpoint_at > interval

    def write_checkpoint(self) -> None:
        """Write the checkpoint from which a resumed training continues."""
        started_at = time.monotonic()
        all_reduce_counters(self.model)
        if self.model.shard is not None or process_index() == 0:
            tensors = pack(self.model, self.optimizer, self.ema.state)
            save_slices(self.last_path, tensors, self.sharded_tensors, asdict(self.state))
        barrier()
        self.checkpoint_seconds = time.monotonic() - started_at
        self.last_checkpoint_at = time.monotonic()


def broadcast_weights(model: Model) -> None:
    """Replace the weights and clusters by those of process 0, as clusters may differ between machines.

    Slices of tables stay as they are.
    """
    if not is_distributed():
        return
    state = model.state_dict()
    for name, tensor in state.items():
        if name not in model.sharded_names:
            broadcast_(tensor)
    model.load_state_dict(state)  # recomputes what depends on the tensors


def all_reduce_counters(model: nn.Module) -> None:
    """Replace each counter of a model, such as that of `TrainedPositions`, by its maximum over processes.

    Counters are the integer scalars of the model's state.
    """
    all_reduce_max_([t for t in model.state_dict().values() if t.ndim == 0 and not t.is_floating_point()])


def has_checkpoint(path: Path) -> bool:
    """Return whether a checkpoint exists.

    Raises:
        HafvtError: it exists only on the machines of some processes.
    """
    exists = path.exists()
    if exists != bool(broadcast_(torch.tensor(int(exists)))):
        raise HafvtError(f"{path} is not on all machines: choose a folder on a disk that they share")
    return exists


def step_seed(seed: int, step: int, process_index: int) -> int:
    """Return the seed of all random numbers of a step in a process.

    It is independent of earlier steps, so that resuming changes no result, and process 0 has that of a single
    process.
    """
    if process_index > 0:
        return int(np.random.SeedSequence([seed, step, process_index]).generate_state(1, np.uint64)[0])
    return (seed << 32) + step  # keeps the steps of seeds such as 0 and 1 apart
