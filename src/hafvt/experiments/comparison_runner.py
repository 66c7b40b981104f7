"""Several models on equal terms: one data set, protocol, budget and selection; resumable, side by side."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import METRICS, Results
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.ranks import Float64
from hafvt.evaluation.results import read_results
from hafvt.evaluation.significance import PairedTest, holm, paired_test
from hafvt.experiments.training_pool import TrainingPool, keep_settings
from hafvt.files import read_json
from hafvt.models import configure
from hafvt.progress import Advance, progress
from hafvt.training.run import fingerprint

COLUMNS = ("MRR", "NDCG@5", "NDCG@10")  # those of the paper's tables


@dataclass(frozen=True)
class Budget:
    """What every model of a contest gets.

    Attributes:
        epochs: at most.
        learning_rates: tried for each model; the one of the highest validation MRR is taken.
        search_epochs: of each try.
        seeds: trainings with the rate that was chosen.
        max_length: longest history, in items.
        batch_size: histories per step.
        validate_every: epochs between two validations.
        patience: validations without a better one that end a training.
    """

    epochs: int
    learning_rates: tuple[float, ...]
    search_epochs: int
    seeds: int
    max_length: int
    batch_size: int
    validate_every: int
    patience: int

    def __str__(self) -> str:
        """One line."""
        rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
        return (
            f"{self.seeds} seed(s) of at most {self.epochs} epochs, histories of {self.max_length} items, "
            f"batches of {self.batch_size}; learning rate of {rates}, by validation after "
            f"{self.search_epochs} epochs; validation every {self.validate_every} epochs, "
            f"patience {self.patience}"
        )


BUDGETS = {
    "small": Budget(12, (1e-3, 3e-3), 3, 1, 20, 128, 3, 2),
    "full": Budget(100, (3e-3, 1e-3, 3e-4), 20, 3, 50, 128, 5, 4),
}


@dataclass(frozen=True)
class Candidate:
    """A model that takes part, under a label.

    Attributes:
        label: its name in tables.
        model: its name.
        preset: a named one.
        params: hyperparameters of its own.
        training: options of train in place of the budget's; a learning rate among them is not searched again.
    """

    label: str
    model: str
    preset: str = "default"
    params: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelResult:
    """What became of an entry.

    Attributes:
        entry: who.
        learning_rate: chosen.
        tried: validation MRR by learning rate, after the search.
        results: of each seed.
        users: by domain and metric, (users,): each user's mean over their targets and the seeds.
        epochs: best epoch of each seed.
        seconds: of training, mean of the seeds.
        peak_gib: memory of a training, the largest of the seeds.
        parameters: how many.
    """

    entry: Candidate
    learning_rate: float
    tried: dict[float, float]
    results: tuple[Results, ...]
    users: dict[tuple[str, str], Float64] = field(repr=False)
    epochs: tuple[int, ...] = ()
    seconds: float = 0.0
    peak_gib: float = 0.0
    parameters: int = 0

    def figure(self, domain: str, metric: str) -> tuple[float, float | None]:
        """Returns mean and standard deviation over the seeds; None for the latter where there is one."""
        values = [result[domain][metric].value for result in self.results]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


class ComparisonRunner:
    """Searches and trains the entries; what is finished is not run again."""

    def __init__(
        self, data: Dataset, out: Path, protocol: Protocol, budget: Budget, trainings: TrainingPool
    ) -> None:
        self.data, self.out, self.protocol, self.budget = data, out, protocol, budget
        self.trainings = trainings

    def train(self, entry: Candidate, rate: float, seed: int, epochs: int, test: bool) -> Path:
        """Trains one model, or goes on with it, and returns its folder."""
        folder = self.out / "runs" / slug(entry.label) / f"rate{rate:g}-seed{seed}"
        config = configure(entry.model, entry.preset)
        params = dict(entry.params)
        if hasattr(config, "max_length"):
            params.setdefault("max_length", self.budget.max_length)
        if (folder / "model.json").exists():
            about = read_json(folder / "model.json")
            _same(folder, about["config"], configure(entry.model, entry.preset, params).model_dump())
            _same(folder, about["training"], entry.training)
            done = about["training"]["epochs"]
            if done >= epochs and (not test or (folder / "results.json").exists()):
                return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        options = {
            "data": self.data.folder,
            "out": folder,
            "preset": entry.preset,
            "epochs": epochs,
            "batch_size": self.budget.batch_size,
            "learning_rate": rate,
            "protocol": self.protocol.name,
            "validate_every": self.budget.validate_every,
            "patience": self.budget.patience,
            "seed": seed,
            "test": test,
            **entry.training,
        }
        log = folder.with_suffix(".log")
        with log.open("ab") as file:
            process = self.trainings.start(entry.model, options, params, file)
        self.trainings.ended(process, log, entry.label)
        return folder

    def rates(self, entry: Candidate) -> tuple[float, ...]:
        """Returns the learning rates that are tried; one alone needs no search."""
        if "learning_rate" in entry.training:
            return (entry.training["learning_rate"],)
        return self.budget.learning_rates[: 1 if entry.model == "popularity" else None]

    def trainings_of(self, entry: Candidate) -> int:
        """Returns how many trainings an entry takes."""
        rates = len(self.rates(entry))
        return rates * (rates > 1) + (1 if entry.model == "popularity" else self.budget.seeds)

    def model_result(self, entry: Candidate, advance: Advance) -> ModelResult:
        """Searches, trains and reads what came of it."""
        fixed = entry.model == "popularity"  # learns nothing: all seeds are one
        rates = self.rates(entry)
        tried: dict[float, float] = {}
        for rate in rates:
            if len(rates) > 1:
                folder = self.train(entry, rate, 0, self.budget.search_epochs, test=False)
                tried[rate] = searched(folder, self.budget.search_epochs)
                advance(1, entry.label)
        best = max(tried, key=tried.__getitem__) if tried else rates[0]
        folders = []
        for seed in range(1 if fixed else self.budget.seeds):
            folders.append(self.train(entry, best, seed, self.budget.epochs, test=True))
            advance(1, entry.label)
        told = [read_json(folder / "model.json") for folder in folders]
        return ModelResult(
            entry,
            best,
            tried,
            tuple(read_results(folder) for folder in folders),
            _of_users(folders),
            tuple(one["best"]["epoch"] for one in told),
            float(np.mean([one["best"]["seconds"] for one in told])),
            max(one["best"]["peak_gib"] for one in told),
            told[0]["parameters"],
        )


def run_comparison(
    data: Dataset, out: Path, entries: Sequence[Candidate], budget: Budget, protocol: Protocol, jobs: int
) -> list[ModelResult]:
    """Trains and evaluates all entries, or goes on with it.

    Args:
        data: the data set.
        out: folder for the runs and for settings.json, which says what they are runs of.
        entries: who takes part; their labels differ.
        budget: what each of them gets.
        protocol: how targets are ranked, in validation and test.
        jobs: trainings side by side; each has its share of the processors.

    Raises:
        HafvtError: `out` holds another contest, or a training failed.
    """
    trainings = TrainingPool(jobs)
    settings = {"dataset": fingerprint(data), "protocol": protocol.name, "budget": asdict(budget)}
    keep_settings(out, settings, "a comparison")
    runner = ComparisonRunner(data, out, protocol, budget, trainings)
    total = sum(map(runner.trainings_of, entries))
    with progress("compare", total, "trainings", every_s=60.0) as advance:
        tasks = [partial(runner.model_result, entry, advance) for entry in entries]
        found = {model_result.entry.label: model_result for model_result in trainings.side_by_side(tasks)}
    return [found[entry.label] for entry in entries]


def against_best_other(model_results: Sequence[ModelResult]) -> dict[tuple[str, str, str], PairedTest]:
    """Returns each model's paired tests, p-values Holm-corrected within a column.

    Returns:
        By label, domain and metric: the model against the best of the others there.
    """
    found: dict[tuple[str, str, str], PairedTest] = {}
    if len(model_results) < 2:
        return found
    for domain, metric in dict.fromkeys(key for model_result in model_results for key in model_result.users):
        tests = {}
        for model_result in model_results:
            others = [other for other in model_results if other is not model_result]
            best = max(others, key=lambda other: other.figure(domain, metric)[0])
            tests[model_result.entry.label] = paired_test(
                model_result.users[domain, metric] - best.users[domain, metric]
            )
        bootstrap = holm([test.bootstrap for test in tests.values()])
        wilcoxon = holm([test.wilcoxon for test in tests.values()])
        for (label, test), b, w in zip(tests.items(), bootstrap, wilcoxon, strict=True):
            found[label, domain, metric] = PairedTest(test.difference, test.low, test.high, b, w)
    return found


def slug(label: str) -> str:
    """Returns a label as the name of a folder."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def searched(folder: Path, epochs: int) -> float:
    """Returns the best validation MRR of the first epochs, so that a longer training changes no choice."""
    lines = pl.read_ndjson(folder / "metrics.jsonl", infer_schema_length=None)
    return float(lines.filter(pl.col("epoch") <= epochs)["valid_mrr"].max())  # type: ignore[arg-type]


def _same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Refuses a finished run of other hyperparameters, such as those of an older release.

    Raises:
        HafvtError: it is one.
    """
    for key, value in wanted.items():
        now = list(value) if isinstance(value, tuple) else value
        if now is not None and found.get(key, now) != now:  # None is spelt out in a run
            told = f"{key}={found[key]}, now {now}"
            raise HafvtError(f"{folder} holds a run with {told}: move it away, or choose another folder")


def _of_users(folders: Sequence[Path]) -> dict[tuple[str, str], Float64]:
    """Returns each user's mean of each metric over their targets in a domain and over the seeds."""
    values = pl.concat(
        pl.read_parquet(folder / "ranks.parquet", columns=["user_id", "domain", "rank"]) for folder in folders
    )
    ranks = values["rank"].to_numpy()
    columns = [pl.Series(metric, METRICS[metric](ranks)) for metric in COLUMNS]
    means = values.with_columns(columns).group_by("domain", "user_id").agg(pl.mean(*COLUMNS)).sort("user_id")
    return {
        (str(domain), metric): part[metric].to_numpy()
        for (domain,), part in means.group_by("domain", maintain_order=True)
        for metric in COLUMNS
    }
