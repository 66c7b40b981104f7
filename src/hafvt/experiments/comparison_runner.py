"""Train several models in parallel with one dataset, protocol and budget; resume after an interruption."""

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
from hafvt.experiments.training_pool import TrainingPool, save_or_check_settings
from hafvt.files import read_json
from hafvt.models import configure
from hafvt.progress import Advance, progress
from hafvt.training.run import fingerprint

METRIC_COLUMNS = ("MRR", "NDCG@5", "NDCG@10")  # the metrics of the paper's tables


@dataclass(frozen=True)
class Budget:
    """The training budget of every model in a comparison.

    Attributes:
        epochs: maximum number of epochs.
        learning_rates: learning rates to try; each model uses the one with the highest validation MRR.
        search_epochs: epochs of each training in the search for the learning rate.
        seeds: number of trainings with the best learning rate, each with another seed.
        max_length: number of items that a model reads of a history, the most recent ones.
        batch_size: histories per step.
        validate_every: epochs between two validations.
        patience: number of validations in a row without improvement after which a training stops.
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
        """Return the budget as one line of a report."""
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
    """A model that takes part in a comparison.

    Attributes:
        label: name of the candidate in tables, unique in a comparison.
        model: name of the model.
        preset: preset of the model.
        params: hyperparameters that differ from the preset.
        training: options of `train` that replace those of the budget. A `learning_rate` here replaces the
            search.
    """

    label: str
    model: str
    preset: str = "default"
    params: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def is_trained(self) -> bool:
        """Return whether training uses a learning rate and a seed; popularity only counts interactions."""
        return self.model != "popularity"

    def learning_rates(self, budget: Budget) -> tuple[float, ...]:
        """Return the learning rates to try; a single one needs no search."""
        if "learning_rate" in self.training:
            return (self.training["learning_rate"],)
        return budget.learning_rates if self.is_trained else budget.learning_rates[:1]

    def num_seeds(self, budget: Budget) -> int:
        """Return the number of trainings with the best learning rate."""
        return budget.seeds if self.is_trained else 1


@dataclass(frozen=True)
class ModelResult:
    """The results of one candidate.

    Attributes:
        candidate: the model.
        learning_rate: the best learning rate.
        tried: best validation MRR of the search by learning rate; empty without a search.
        results: test metrics of each seed.
        user_metrics: (users,) mean metric of each user over targets and seeds, by (domain, metric).
        epochs: best epoch of each seed.
        seconds: training time, mean over the seeds.
        peak_gib: peak memory of a training, maximum over the seeds.
        parameters: number of parameters.
    """

    candidate: Candidate
    learning_rate: float
    tried: dict[float, float]
    results: tuple[Results, ...]
    user_metrics: dict[tuple[str, str], Float64] = field(repr=False)
    epochs: tuple[int, ...] = ()
    seconds: float = 0.0
    peak_gib: float = 0.0
    parameters: int = 0

    @property
    def label(self) -> str:
        """Return the name of the candidate in tables."""
        return self.candidate.label

    def mean_and_std(self, domain: str, metric: str) -> tuple[float, float | None]:
        """Return mean and standard deviation over the seeds; the latter is None for one seed."""
        values = [result[domain][metric].value for result in self.results]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


class ComparisonRunner:
    """Finds the best learning rate of each candidate and trains it; skips finished trainings.

    Args:
        data: the dataset.
        out: folder of the runs.
        protocol: the evaluation protocol of validation and test.
        budget: training budget of each candidate.
        pool: runs the trainings.
    """

    def __init__(
        self, data: Dataset, out: Path, protocol: Protocol, budget: Budget, pool: TrainingPool
    ) -> None:
        self.data, self.out, self.protocol, self.budget, self.pool = data, out, protocol, budget, pool

    def train(self, candidate: Candidate, learning_rate: float, seed: int, epochs: int, test: bool) -> Path:
        """Start or resume one training, wait for its end, and return its folder.

        Args:
            candidate: the model.
            learning_rate: learning rate of the training.
            seed: seed of the training.
            epochs: maximum number of epochs.
            test: whether to evaluate on the test targets at the end.

        Raises:
            HafvtError: the training failed, or the folder holds a run with other hyperparameters.
        """
        folder = self.out / "runs" / slug(candidate.label) / f"rate{learning_rate:g}-seed{seed}"
        params = dict(candidate.params)
        if hasattr(configure(candidate.model, candidate.preset), "max_length"):
            params.setdefault("max_length", self.budget.max_length)
        if (folder / "model.json").exists():
            info = read_json(folder / "model.json")
            config = configure(candidate.model, candidate.preset, params).model_dump()
            _check_same_settings(folder, info["config"], config)
            _check_same_settings(folder, info["training"], candidate.training)
            is_long_enough = info["training"]["epochs"] >= epochs
            if is_long_enough and (not test or (folder / "results.json").exists()):
                return folder
        options = {
            "data": self.data.folder,
            "out": folder,
            "preset": candidate.preset,
            "epochs": epochs,
            "batch_size": self.budget.batch_size,
            "learning_rate": learning_rate,
            "protocol": self.protocol.name,
            "validate_every": self.budget.validate_every,
            "patience": self.budget.patience,
            "seed": seed,
            "test": test,
            **candidate.training,
        }
        log_path = folder.with_suffix(".log")
        process = self.pool.start(candidate.model, options, params, log_path)
        self.pool.wait(process, log_path, candidate.label)
        return folder

    def num_trainings(self, candidate: Candidate) -> int:
        """Return the number of trainings of a candidate."""
        rates = len(candidate.learning_rates(self.budget))
        return (rates if rates > 1 else 0) + candidate.num_seeds(self.budget)

    def run(self, candidate: Candidate, advance: Advance) -> ModelResult:
        """Search for a candidate's learning rate, train with each seed, and return the results.

        Args:
            candidate: the model.
            advance: moves the progress bar after each training.
        """
        rates = candidate.learning_rates(self.budget)
        tried: dict[float, float] = {}
        for rate in rates if len(rates) > 1 else ():
            folder = self.train(candidate, rate, 0, self.budget.search_epochs, test=False)
            tried[rate] = best_valid_mrr(folder, self.budget.search_epochs)
            advance(1, candidate.label)
        best_rate = max(tried, key=tried.__getitem__) if tried else rates[0]
        folders = []
        for seed in range(candidate.num_seeds(self.budget)):
            folders.append(self.train(candidate, best_rate, seed, self.budget.epochs, test=True))
            advance(1, candidate.label)
        infos = [read_json(folder / "model.json") for folder in folders]
        return ModelResult(
            candidate,
            best_rate,
            tried,
            results=tuple(read_results(folder) for folder in folders),
            user_metrics=read_user_metrics(folders),
            epochs=tuple(info["best"]["epoch"] for info in infos),
            seconds=float(np.mean([info["best"]["seconds"] for info in infos])),
            peak_gib=max(info["best"]["peak_gib"] for info in infos),
            parameters=infos[0]["parameters"],
        )


def run_comparison(
    data: Dataset,
    out: Path,
    candidates: Sequence[Candidate],
    budget: Budget,
    protocol: Protocol,
    jobs: int | None,
) -> list[ModelResult]:
    """Train and evaluate all candidates and return their results in the same order; resumes if interrupted.

    Args:
        data: the dataset.
        out: folder of the runs and of settings.json, which identifies the comparison.
        candidates: the models; their labels differ.
        budget: training budget of each candidate.
        protocol: the evaluation protocol of validation and test.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: `out` holds another comparison, or a training failed.
    """
    pool = TrainingPool(jobs)
    settings = {"dataset": fingerprint(data), "protocol": protocol.name, "budget": asdict(budget)}
    save_or_check_settings(out, settings, "a comparison")
    runner = ComparisonRunner(data, out, protocol, budget, pool)
    total = sum(map(runner.num_trainings, candidates))
    with progress("compare", total, "trainings", every_s=60.0) as advance:
        tasks = [partial(runner.run, candidate, advance) for candidate in candidates]
        results = {result.label: result for result in pool.run(tasks)}
    return [results[candidate.label] for candidate in candidates]


def compare_with_best_other(model_results: Sequence[ModelResult]) -> dict[tuple[str, str, str], PairedTest]:
    """Return paired tests of each model against the best other model, Holm-corrected over the models.

    Args:
        model_results: results of all models.

    Returns:
        Tests by (label, domain, metric); empty for a single model.
    """
    corrected: dict[tuple[str, str, str], PairedTest] = {}
    if len(model_results) < 2:
        return corrected
    for domain, metric in dict.fromkeys(key for result in model_results for key in result.user_metrics):
        tests = {}
        for result in model_results:
            others = [other for other in model_results if other is not result]
            best = max(others, key=lambda other: other.mean_and_std(domain, metric)[0])
            differences = result.user_metrics[domain, metric] - best.user_metrics[domain, metric]
            tests[result.label] = paired_test(differences)
        bootstrap_p = holm([test.bootstrap for test in tests.values()])
        wilcoxon_p = holm([test.wilcoxon for test in tests.values()])
        for (label, test), p_b, p_w in zip(tests.items(), bootstrap_p, wilcoxon_p, strict=True):
            corrected[label, domain, metric] = PairedTest(test.difference, test.low, test.high, p_b, p_w)
    return corrected


def slug(label: str) -> str:
    """Return a folder name for a label: lower-case letters and digits, joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def best_valid_mrr(folder: Path, epochs: int) -> float:
    """Return the best validation MRR of a run's first `epochs` epochs; a finished run may have more."""
    metrics = pl.read_ndjson(folder / "metrics.jsonl", infer_schema_length=None)
    return float(metrics.filter(pl.col("epoch") <= epochs)["valid_mrr"].max())  # type: ignore[arg-type]


def read_user_metrics(folders: Sequence[Path]) -> dict[tuple[str, str], Float64]:
    """Return the metric of each user, a mean over the user's targets in all folders, by domain and metric."""
    rows = pl.concat(
        pl.read_parquet(folder / "ranks.parquet", columns=["user_id", "domain", "rank"]) for folder in folders
    )
    ranks = rows["rank"].to_numpy()
    columns = [pl.Series(metric, METRICS[metric](ranks)) for metric in METRIC_COLUMNS]
    grouped = rows.with_columns(columns).group_by("domain", "user_id")
    means = grouped.agg(pl.mean(*METRIC_COLUMNS)).sort("user_id")
    return {
        (str(domain), metric): domain_means[metric].to_numpy()
        for (domain,), domain_means in means.group_by("domain", maintain_order=True)
        for metric in METRIC_COLUMNS
    }


def _check_same_settings(folder: Path, saved: dict[str, Any], requested: dict[str, Any]) -> None:
    """Check that a finished run has the requested settings; an older version may have had other defaults.

    Raises:
        HafvtError: a setting differs.
    """
    for key, value in requested.items():
        value = list(value) if isinstance(value, tuple) else value
        # None means the default, whose value the run stores.
        if value is not None and saved.get(key, value) != value:
            raise HafvtError(
                f"{folder} holds a run with {key}={saved[key]}, now {value}: "
                "move it away, or choose another folder"
            )
