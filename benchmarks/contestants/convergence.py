"""Training to convergence: validation MRR over processor time, for models of any library.

It needs hafvt, whose evaluation ranks the scores of all, but none of the packages that hafvt only trains
with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import cpu_seconds
from torch import Tensor, nn

from hafvt.data.batches import Batch, TrainBatches
from hafvt.data.dataset import Dataset
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.features.table import FeatureTable
from hafvt.models.base import Model

PROTOCOL = get_protocol("full", "unseen")
UNKNOWN_ITEM = -1e30
"""Score of items that a library cannot score: below all others."""

Score = Callable[[list[np.ndarray]], Tensor]
"""Histories of at most `max_length` items, the oldest first -> scores of all items, (B, items)."""


@dataclass
class Trial:
    """What a contestant is given: a dataset, settings, where to write, and when to stop.

    Attributes:
        settings: of the model, as in `rivals.py`.
        epochs: the most that are trained.
        patience: epochs without a better validation MRR that end the training.
        cpu_s: processor seconds after which no further epoch starts.
    """

    data: Dataset
    settings: dict[str, Any]
    out: Path
    epochs: int
    patience: int
    cpu_s: float


def read_trial() -> Trial:
    """Return the trial that the command line describes; seeds the generators of torch and numpy."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--settings", type=json.loads, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--patience", type=int, required=True)
    parser.add_argument("--cpu-s", type=float, required=True)
    options = vars(parser.parse_args())
    torch.manual_seed(0)
    np.random.seed(0)  # RecTools draws from it
    torch.set_num_threads(1)
    return Trial(**{**options, "data": Dataset.open(options["data"])})


def train_histories(data: Dataset) -> list[np.ndarray]:
    """Return the training items of each user, oldest first, without validation and test targets."""
    starts = np.asarray(data.offsets[:-1])
    return [
        np.asarray(data.items[start : start + length])
        for start, length in zip(starts, data.train_lengths, strict=True)
    ]


def train_windows(data: Dataset, length: int, epoch: int = 0) -> list[np.ndarray]:
    """Return the windows of `length` inputs and a target that our models train with in an epoch."""
    starts, stops = TrainBatches(data, 1, length + 1, seed=0).windows(epoch)
    return [np.asarray(data.items[start:stop]) for start, stop in zip(starts, stops, strict=True)]


def content_vectors(data: Dataset) -> np.ndarray:
    """Return the frozen vectors of all items, all modalities side by side, zero where there are none."""
    tables = [FeatureTable.open(data.folder / "features" / name).rows for name in data.feature_names]
    return np.concatenate(tables, axis=1).astype(np.float32)


def longest_input(data: Dataset, limit: int) -> int:
    """Return the longest history that training reads, at most `limit`: later positions stay untrained."""
    return min(limit, int(np.max(data.train_lengths)) - 1)


class ExternalModel(Model):
    """Scores of another library, to be ranked as those of our own models.

    Args:
        network: the module whose weights are trained, saved and restored.
        score: computes the scores.
        data: the dataset.
        max_length: the longest history that `score` takes, in items.
    """

    def __init__(self, network: nn.Module, score: Score, data: Dataset, max_length: int) -> None:
        super().__init__()
        self.network, self.score, self.domains, self.max_length = network, score, data.domains, max_length

    def loss(self, batch: Batch) -> Tensor:
        """The library trains its network itself."""
        raise NotImplementedError

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`."""
        lengths = batch.lengths.tolist()
        histories = [row[:length] for row, length in zip(batch.items.numpy(), lengths, strict=True)]
        items = self.score(histories)
        if candidates is not None:
            return items.gather(1, candidates)
        return items[:, self.domains[domain].start : self.domains[domain].stop]


@dataclass
class TrainingCurve:
    """Validation MRR over the processor seconds of training; those of validation do not count.

    Attributes:
        points: epoch, processor seconds and validation MRR of each validation.
    """

    trial: Trial
    points: list[tuple[int, float, float]] = field(default_factory=list)
    cpu_s: float = 0.0

    def __post_init__(self) -> None:
        self.resumed_at = cpu_seconds()

    def pause(self) -> None:
        """Stop the clock, before a validation."""
        self.cpu_s += cpu_seconds() - self.resumed_at

    def add(self, mrr: float, epoch: int | None = None) -> bool:
        """Add a validation, print it, start the clock again, and return whether the training ends."""
        self.points.append((epoch or len(self.points) + 1, round(self.cpu_s, 2), mrr))
        print(f"epoch {self.points[-1][0]}  CPU {self.cpu_s:.0f} s  validation MRR {mrr:.4%}", flush=True)
        self.resumed_at = cpu_seconds()
        return self.has_converged() or self.points[-1][0] >= self.trial.epochs or self.is_cut()

    def best(self) -> tuple[int, float, float]:
        """Return the first point with the highest MRR."""
        return max(self.points, key=lambda point: point[2])

    def has_converged(self) -> bool:
        """Return whether `patience` epochs brought no higher MRR."""
        return self.points[-1][0] - self.best()[0] >= self.trial.patience

    def is_cut(self) -> bool:
        """Return whether the processor time is used up."""
        return self.cpu_s >= self.trial.cpu_s

    def write(self, model: Model, version: str) -> None:
        """Rank the test targets, once, by the best weights, and write all that the tables need."""
        ranks = rank_targets([model] * len(model.domains), self.trial.data, "test", PROTOCOL).half_ties
        np.savez_compressed(self.trial.out / "ranks.npz", ranks=ranks.ranks, domains=ranks.domains)
        facts = {
            "version": version,
            "settings": self.trial.settings,
            "parameters": (parameters := sum(p.numel() for p in model.parameters())),
            "converged": parameters == 0 or self.has_converged(),
            "curve": self.points,
        }
        (self.trial.out / "trial.json").write_text(json.dumps(facts))  # the last file: the trial is done


class ExternalCurve(TrainingCurve):
    """The curve of an external model: validates it and keeps its best weights."""

    def validate(self, model: ExternalModel, epoch: int | None = None) -> bool:
        """Rank the validation targets after an epoch and return whether the training ends."""
        self.pause()
        data = self.trial.data
        mrr = mean_mrr(rank_targets([model] * len(data.domains), data, "valid", PROTOCOL).half_ties)
        if not self.points or mrr > self.best()[2]:
            self.weights = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
        return self.add(mrr, epoch)

    def finish(self, model: ExternalModel, version: str) -> None:
        """Restore the best weights and write the trial."""
        model.network.load_state_dict(self.weights)
        self.write(model, version)
