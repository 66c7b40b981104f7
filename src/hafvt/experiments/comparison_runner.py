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
from hafvt.evaluation.list_metrics import ListResults
from hafvt.evaluation.metrics import METRICS, Results
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.ranks import Float64
from hafvt.evaluation.results import read_list_results, read_other_results, read_results, verify_ranks
from hafvt.evaluation.significance import PairedTest, holm, paired_test
from hafvt.experiments.training_pool import TrainingPool, save_or_check_settings
from hafvt.files import explained_read_errors, explained_write_errors
from hafvt.folders import folder_lock
from hafvt.models import MODELS, configure
from hafvt.progress import Advance, progress
from hafvt.training.run import fingerprint, read_model_file

RUN_REMEDY = "remove its folder and repeat the command, which trains the model again"
METRIC_COLUMNS = ("MRR", "NDCG@5", "NDCG@10")  # the metrics of the paper's tables


@dataclass(frozen=True)
class Budget:
    """The training budget of every model in a comparison.

    Attributes:
        epochs: maximum number of epochs.
        learning_rates: learning rates to try; each model uses the one with the highest validation MRR.
        search_epochs: epochs of each training in the search for the learning rate.
        num_seeds: number of trainings with the best learning rate, each with another seed.
        max_length: number of items that a model reads of a history, the most recent ones.
        batch_size: histories per step.
        validate_every: epochs between two validations.
        patience: number of validations in a row without improvement after which a training stops.
    """

    epochs: int
    learning_rates: tuple[float, ...]
    search_epochs: int
    num_seeds: int
    max_length: int
    batch_size: int
    validate_every: int
    patience: int

    def __str__(self) -> str:
        """Return the budget as one line of a report."""
        rates = ", ".join(f"{rate:g}" for rate in self.learning_rates)
        return (
            f"{self.num_seeds} seed(s) of at most {self.epochs} epochs, histories of {self.max_length} "
            f"items, batches of {self.batch_size}; learning rate of {rates}, by validation after "
            f"{self.search_epochs} epochs; validation every {self.validate_every} epochs, "
            f"patience {self.patience}"
        )


BUDGETS = {
    "small": Budget(12, (1e-3, 3e-3), 3, 1, 20, 128, 3, 2),
    "full": Budget(100, (3e-3, 1e-3, 3e-4), 20, 3, 50, 128, 5, 4),
}


@dataclass(frozen=True)
class ComparedModel:
    """A model with the settings of its trainings in a comparison.

    Attributes:
        label: name in tables, unique in a comparison.
        model: name of the model.
        preset: preset of the model.
        params: hyperparameters that differ from the preset.
        training: options of `train` that replace those of the budget. A `learning_rate` here replaces the
            search.
        default_model: of a tuned model, the same model with default settings; it must not be better.
    """

    label: str
    model: str
    preset: str = "default"
    params: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    default_model: ComparedModel | None = None

    def searched_rates(self, budget: Budget) -> tuple[float, ...]:
        """Return the learning rates to search; none for a fixed rate, or without weights to train."""
        has_search = "learning_rate" not in self.training and MODELS[self.model].has_weights
        return budget.learning_rates if has_search and len(budget.learning_rates) > 1 else ()

    def num_seeds(self, budget: Budget) -> int:
        """Return the number of trainings with the best learning rate."""
        return budget.num_seeds if MODELS[self.model].has_weights else 1


@dataclass(frozen=True)
class ModelResult:
    """The results of one compared model.

    Attributes:
        compared: the model with its settings.
        learning_rate: the best learning rate.
        search_mrrs: best validation MRR of each searched learning rate; empty without a search.
        seed_results: test metrics of each seed.
        list_results: of each seed, metrics of the recommended lists; empty for protocols that draw negatives.
        other_results: of each seed, test metrics by the other rule for items of the history; empty without
            repeats.
        user_metrics: (users,) mean metric of each user over targets and seeds, by (domain, metric).
        user_targets: (users,) number of targets of each user, by domain; empty: one each.
        best_epochs: epoch of the kept weights of each seed.
        mean_seconds: training time, mean over the seeds.
        peak_gib: peak memory of a training, maximum over the seeds.
        num_parameters: number of trained parameters.
    """

    compared: ComparedModel
    learning_rate: float
    search_mrrs: dict[float, float]
    seed_results: tuple[Results, ...]
    user_metrics: dict[tuple[str, str], Float64] = field(repr=False)
    best_epochs: tuple[int, ...] = ()
    list_results: tuple[ListResults, ...] = ()
    other_results: tuple[Results, ...] = ()
    user_targets: dict[str, Float64] = field(default_factory=dict, repr=False)
    mean_seconds: float = 0.0
    peak_gib: float = 0.0
    num_parameters: int = 0

    @property
    def label(self) -> str:
        """The name of the model in tables."""
        return self.compared.label

    def mean_and_std(self, domain: str, metric: str) -> tuple[float, float | None]:
        """Return mean and standard deviation over the seeds; the latter is None for one seed."""
        values = [results[domain][metric].value for results in self.seed_results]
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class ComparisonRunner:
    """Finds the best learning rate of each compared model and trains it; skips finished trainings.

    Attributes:
        data: the dataset.
        out: folder of the comparison; the trainings are in its folder `runs`.
        protocol: ranks validation and test targets.
        budget: training budget of each model.
        pool: runs the trainings.
    """

    data: Dataset
    out: Path
    protocol: Protocol
    budget: Budget
    pool: TrainingPool

    def num_trainings(self, compared: ComparedModel) -> int:
        """Return the number of trainings of a model."""
        num_seeds = compared.num_seeds(self.budget) * (2 if compared.default_model else 1)
        return len(compared.searched_rates(self.budget)) + num_seeds

    def run(self, compared: ComparedModel, advance: Advance) -> ModelResult:
        """Search for a model's learning rate, train with each seed, and return the results.

        Args:
            compared: the model.
            advance: moves the progress bar after each training.
        """
        search_mrrs: dict[float, float] = {}
        for rate in compared.searched_rates(self.budget):
            folder = self.train(compared, rate, 0, self.budget.search_epochs, test=False)
            search_mrrs[rate] = best_valid_mrr(folder, self.budget.search_epochs)
            advance(1, compared.label)
        fixed_rate = compared.training.get("learning_rate", self.budget.learning_rates[0])
        best_rate = max(search_mrrs, key=search_mrrs.__getitem__, default=fixed_rate)
        folders = []
        for seed in range(compared.num_seeds(self.budget)):
            folders.append(self.train(compared, best_rate, seed, self.budget.epochs, test=True))
            advance(1, compared.label)
        if compared.default_model is not None:
            self.check_tuned_model(compared.label, folders, compared.default_model, advance)
        with explained_read_errors(folders[0].parent, RUN_REMEDY):
            infos = [read_model_file(folder, RUN_REMEDY) for folder in folders]
            for folder in folders:
                verify_ranks(folder)
            user_metrics, user_targets = read_user_metrics(folders)
            return ModelResult(
                compared,
                best_rate,
                search_mrrs,
                seed_results=tuple(map(read_results, folders)),
                list_results=tuple(map(read_list_results, folders)),
                other_results=tuple(map(read_other_results, folders)),
                user_metrics=user_metrics,
                user_targets=user_targets,
                best_epochs=tuple(info["best"]["epoch"] for info in infos),
                mean_seconds=float(np.mean([info["best"]["seconds"] for info in infos])),
                peak_gib=max(info["best"]["peak_gib"] for info in infos),
                num_parameters=infos[0]["parameters"],
            )

    def check_tuned_model(
        self, label: str, folders: Sequence[Path], default_model: ComparedModel, advance: Advance
    ) -> None:
        """Train a model with default settings; raise HafvtError if it is better than the tuned `folders`."""
        rate = default_model.training.get("learning_rate", self.budget.learning_rates[0])
        default_mrrs = []
        for seed in range(len(folders)):
            folder = self.train(default_model, rate, seed, self.budget.epochs, test=False)
            default_mrrs.append(best_valid_mrr(folder, self.budget.epochs))
            advance(1, default_model.label)
        tuned_mrrs = [best_valid_mrr(folder, self.budget.epochs) for folder in folders]
        require_tuned_is_best(label, tuned_mrrs, default_mrrs)

    def train(
        self, compared: ComparedModel, learning_rate: float, seed: int, epochs: int, test: bool
    ) -> Path:
        """Start or resume one training, wait for its end, and return its folder.

        Raises:
            HafvtError: the training failed, or the folder holds a run with other hyperparameters.
        """
        folder = self.out / "runs" / slug(compared.label) / f"rate{learning_rate:g}-seed{seed}"
        params = dict(compared.params)
        if hasattr(configure(compared.model, compared.preset), "max_length"):
            params.setdefault("max_length", self.budget.max_length)
        if (folder / "model.json").exists():
            info = read_model_file(folder, RUN_REMEDY)
            config = configure(compared.model, compared.preset, params).model_dump()
            with explained_read_errors(folder / "model.json", RUN_REMEDY):
                _check_same_settings(folder, info["config"], config)
                training = {"model": compared.model, "dataset": fingerprint(self.data), "seed": seed}
                training |= {"learning_rate": learning_rate, **compared.training}
                _check_same_settings(folder, info["training"], training)
                is_long_enough = info["training"]["epochs"] >= epochs
            if is_long_enough and (not test or (folder / "results.json").exists()):
                return folder
        options = {
            "data": self.data.folder,
            "out": folder,
            "preset": compared.preset,
            "epochs": epochs,
            "batch_size": self.budget.batch_size,
            "learning_rate": learning_rate,
            "protocol": self.protocol.name,
            "candidates": self.protocol.candidates,
            "validate_every": self.budget.validate_every,
            "patience": self.budget.patience,
            "seed": seed,
            "test": test,
            **compared.training,
        }
        log_path = folder.with_name(f"{folder.name}.log")
        process = self.pool.start(compared.model, options, params, log_path)
        self.pool.wait(process, log_path, compared.label)
        return folder


def run_comparison(
    data: Dataset,
    out: Path,
    compared_models: Sequence[ComparedModel],
    budget: Budget,
    protocol: Protocol,
    jobs: int | None,
) -> list[ModelResult]:
    """Train and evaluate models and return their results in the same order; resumes if interrupted.

    Args:
        data: the dataset.
        out: folder of the runs and of settings.json, which identifies the comparison.
        compared_models: the models; their labels differ.
        budget: training budget of each model.
        protocol: the evaluation protocol of validation and test.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: `out` holds another comparison or is in use, or a training failed.
    """
    pool = TrainingPool(jobs)
    settings = {"dataset": fingerprint(data), "protocol": protocol.name, "budget": asdict(budget)}
    settings["candidates"] = protocol.candidates
    runner = ComparisonRunner(data, out, protocol, budget, pool)
    total = sum(map(runner.num_trainings, compared_models))
    with folder_lock(out), explained_write_errors(out):
        save_or_check_settings(out, settings, "a comparison")
        with progress("compare", total, "trainings", every_s=60.0) as advance:
            tasks = [partial(runner.run, compared, advance) for compared in compared_models]
            results = {result.label: result for result in pool.run(tasks)}
    return [results[compared.label] for compared in compared_models]


def compare_with_best_other(model_results: Sequence[ModelResult]) -> dict[tuple[str, str, str], PairedTest]:
    """Return paired tests of each model against the best other model, Holm-corrected over the models.

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
            tests[result.label] = paired_test(differences, result.user_targets.get(domain))
        bootstrap_p = holm([test.bootstrap for test in tests.values()])
        wilcoxon_p = holm([test.wilcoxon for test in tests.values()])
        for (label, test), p_b, p_w in zip(tests.items(), bootstrap_p, wilcoxon_p, strict=True):
            corrected[label, domain, metric] = PairedTest(test.difference, test.low, test.high, p_b, p_w)
    return corrected


def require_tuned_is_best(label: str, tuned_mrrs: Sequence[float], default_mrrs: Sequence[float]) -> None:
    """Raise HafvtError if the mean validation MRR of tuned settings is below that of default settings."""
    tuned, default = float(np.mean(tuned_mrrs)), float(np.mean(default_mrrs))
    if tuned < default:
        raise HafvtError(
            f"{label}: the tuned settings have a validation MRR of {tuned:.2%}, the default settings "
            f"{default:.2%}: "
            "tune it with more trials, or use its default settings"
        )


def slug(label: str) -> str:
    """Return a folder name for a label: lower-case letters and digits, joined by hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")


def best_valid_mrr(folder: Path, epochs: int) -> float:
    """Return the best validation MRR of a run's first `epochs` epochs; a finished run may have more."""
    with explained_read_errors(folder / "model.json", RUN_REMEDY):
        mrrs = read_model_file(folder, RUN_REMEDY)["valid_mrrs"]
        return max(float(mrr) for epoch, mrr in mrrs.items() if int(epoch) <= epochs)


def read_user_metrics(
    folders: Sequence[Path],
) -> tuple[dict[tuple[str, str], Float64], dict[str, Float64]]:
    """Return the mean metric of each user over the targets in all folders, and the users' numbers of targets.

    Targets without another candidate are left out, as in all metrics.

    Returns:
        (users,) means by domain and metric, and (users,) numbers of targets by domain, in equal order.
    """
    columns = ["user_id", "domain", "rank", "candidates"]
    rows = pl.concat(pl.read_parquet(folder / "ranks.parquet", columns=columns) for folder in folders)
    rows = rows.filter((pl.col("candidates") > 1) | pl.col("rank").is_infinite())
    ranks = rows["rank"].to_numpy()
    metrics = [pl.Series(metric, METRICS[metric](ranks)) for metric in METRIC_COLUMNS]
    grouped = rows.with_columns(metrics).group_by("domain", "user_id")
    means = grouped.agg(pl.mean(*METRIC_COLUMNS), targets=pl.len() / len(folders)).sort("user_id")
    by_domain = {str(domain): part for (domain,), part in means.group_by("domain", maintain_order=True)}
    return (
        {(domain, m): part[m].to_numpy() for domain, part in by_domain.items() for m in METRIC_COLUMNS},
        {domain: part["targets"].to_numpy() for domain, part in by_domain.items()},
    )


def _check_same_settings(folder: Path, saved: dict[str, Any], requested: dict[str, Any]) -> None:
    """Raise HafvtError unless a finished run has the requested settings; None requests the default."""
    for key, value in requested.items():
        value = list(value) if isinstance(value, tuple) else value
        if value is not None and saved.get(key, value) != value:
            raise HafvtError(
                f"{folder} holds a run with {key}={saved[key]}, now {value}: "
                "move it away, or choose another folder"
            )
