"""`hafvt compare` and `hafvt ablate`: compare models, or variants of HAF-VT, under equal conditions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hafvt.data.dataset import Dataset
from hafvt.data.repeats import CandidateRule
from hafvt.errors import ArgumentError, HafvtError
from hafvt.evaluation.protocols import Protocol, get_protocol
from hafvt.experiments.comparison_report import write_comparison
from hafvt.experiments.comparison_runner import BUDGETS, ComparedModel, ModelResult, run_comparison
from hafvt.experiments.search_space import TRAINING_OPTIONS, TUNING_FORMAT, default_settings
from hafvt.experiments.training_pool import read_settings
from hafvt.features.item_features import load_item_features
from hafvt.files import atomic_file, explained_read_errors, verify_files
from hafvt.models import MODELS, build_model, configure
from hafvt.reports.comparison import Bar, bars_svg
from hafvt.settings import Jobs, OutFolder, check_arguments, parse_yaml
from hafvt.training.run import fingerprint, model_item_features

TUNING_REMEDY = "repeat the search, which writes it again"
BudgetName = Literal["small", "full"]

ABLATION_VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "original": ((), False),
    "+ visual": (("image",), False),
    "+ textual": (("title",), False),
    "+ textual, hierarchy": (("title",), True),
    "+ visual, hierarchy": (("image",), True),
    "+ textual, visual, hierarchy": (("image", "title"), True),
}
"""Rows of the paper's Table 4: (modalities in addition to ids, whether attention is hierarchical)."""


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison; `str()` returns its tables and the paths of its files.

    Attributes:
        model_results: results of each model.
        text: the content of compare.md.
        folder: folder of compare.md, compare.tex, compare.json and the runs.
    """

    model_results: tuple[ModelResult, ...]
    text: str
    folder: Path

    def __str__(self) -> str:
        return f"{self.text}\nwrote {self.folder / 'compare.md'}, compare.tex and compare.json"


@check_arguments
def compare(
    data: str | Path | Dataset,
    out: OutFolder,
    *,
    models: list[str] | None = None,
    tuned: dict[str, str] | None = None,
    budget: BudgetName = "full",
    protocol: str = "full",
    candidates: CandidateRule = "auto",
    jobs: Jobs | None = None,
) -> Comparison:
    """Compare models with the same split, candidate items, training budget and hyperparameter search.

    A search selects each model's learning rate by validation MRR; the model then trains with each seed. The
    tables show test metrics, training time, memory and number of parameters. They also show paired tests over
    users of each model against the best other model: bootstrap and Wilcoxon, Holm-corrected within a column.
    On a dataset and protocol of the paper, they include its published results. To resume, repeat the command.

    Example: hafvt compare data/movies --out compare/movies --budget small

    Args:
        data: a dataset folder; run encode first, so that HAF-VT can use pictures and titles.
        out: folder to write the runs, compare.md, compare.tex and compare.json to.
        models: names of the models; default: all that support the dataset; a note below the tables names
            each model that does not. A model that you name must support the dataset.
        tuned: for a model's name, a folder written by tune (--tuned sasrec=tune/sasrec hafvt=tune/hafvt). Its
            best settings replace the search for a learning rate; a note below the tables says so. The
            default settings are trained as well, to refuse a table where they are better in validation.
        budget: small (1 seed, 12 epochs, last 20 items of a history) or full (3 seeds, 100 epochs, 50 items).
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        candidates: items that targets are ranked among, see evaluate.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: a setting is wrong, a training failed, or tuned settings are worse in validation than
            the default ones; finished trainings are kept.
    """
    ranking = get_protocol(protocol, candidates)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    names, tuned = models or list(MODELS), tuned or {}
    if len(set(names)) < len(names):
        raise ArgumentError(f"--models {' '.join(names)}: name each model once")
    for name in tuned:
        if name not in names:
            raise ArgumentError(f"--tuned {name}: choose among the compared models, {', '.join(names)}")
    tuned_models = {name: _tuned_model(dataset, name, Path(folder)) for name, folder in tuned.items()}
    notes = [
        f"{name}: settings of the search in {folder}. {_read_tuning_budget(Path(folder))}"
        for name, folder in tuned.items()
    ]
    compared_models = []
    for name in names:
        compared = tuned_models.get(name, ComparedModel(name, name))
        try:
            notes += [f"{name}: {note}" for note in model_notes(dataset, compared)]
        except HafvtError as error:
            if models:
                raise
            notes.append(f"{name} is left out: {error}")
        else:
            compared_models.append(compared)
    return _run_and_write(dataset, Path(out), compared_models, budget, ranking, jobs, notes)


@check_arguments
def ablate(
    data: str | Path | Dataset,
    out: OutFolder,
    *,
    budget: BudgetName = "full",
    protocol: str = "full",
    candidates: CandidateRule = "auto",
    jobs: Jobs | None = None,
) -> Comparison:
    """Switch titles, pictures and hierarchical attention of HAF-VT on and off, as in the paper's Table 4.

    The variant "original" attends to the ids of the merged history only. All variants have the budget, search
    and significance tests of compare. The figure ablate.svg shows each variant's MRR in the first domain.

    Example: hafvt ablate data/movies --out ablate/movies --budget small

    Args:
        data: a dataset folder with image and title vectors, written by encode.
        out: folder to write the runs, compare.md, compare.tex, compare.json and ablate.svg to.
        budget: small or full, see compare.
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        candidates: items that targets are ranked among, see evaluate.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: image or title vectors are missing, a setting is wrong, or a training failed.
    """
    ranking = get_protocol(protocol, candidates)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    variants = [
        ComparedModel(label, "hafvt", params={"modalities": ("id", *modalities), "hierarchy": hierarchy})
        for label, (modalities, hierarchy) in ABLATION_VARIANTS.items()
    ]
    # If vectors are missing, this raises now, not after hours of training.
    load_item_features(dataset, ("image", "title"))
    comparison = _run_and_write(dataset, Path(out), variants, budget, ranking, jobs, [])
    domain = dataset.domains[0].name
    bars = [_mrr_bar(result, domain) for result in comparison.model_results]
    with atomic_file(Path(out) / "ablate.svg") as temporary:
        temporary.write_text(bars_svg(f"MRR (%) on {domain}", bars), encoding="utf-8")
    return comparison


def _run_and_write(
    data: Dataset,
    out: Path,
    compared_models: Sequence[ComparedModel],
    budget_name: str,
    protocol: Protocol,
    jobs: int | None,
    notes: Sequence[str],
) -> Comparison:
    """Train and evaluate models, and write the files of the comparison."""
    budget = BUDGETS[budget_name]
    model_results = run_comparison(data, out, compared_models, budget, protocol, jobs)
    text = write_comparison(data, out, model_results, budget, protocol, notes)
    return Comparison(tuple(model_results), text, out)


def _mrr_bar(result: ModelResult, domain: str) -> Bar:
    """Return a bar of the MRR in % with its 95 % interval or, for several seeds, ± standard deviation."""
    mean, std = result.mean_and_std(domain, "MRR")
    low, high = result.seed_results[0][domain]["MRR"].low, result.seed_results[0][domain]["MRR"].high
    if std is not None:
        low, high = mean - std, mean + std
    if low is None or high is None:
        return Bar(result.label, 100 * mean)
    return Bar(result.label, 100 * mean, 100 * low, 100 * high)


def _tuned_model(data: Dataset, name: str, folder: Path) -> ComparedModel:
    """Return a model with the best settings of a `tune` search.

    Raises:
        HafvtError: the folder holds no search for this model on this dataset, or no trial has finished.
    """
    settings = read_settings(folder)
    if settings.get("model") != name or settings.get("dataset") != fingerprint(data):
        raise HafvtError(f"{folder} holds no search for {name} on {data.folder}: tune it there first")
    if settings.get("format") != TUNING_FORMAT:
        raise HafvtError(
            f"{folder} holds a search of an earlier version: tune {name} again in another folder"
        )
    if (metric := settings.get("metric", "MRR")) != "MRR":
        raise HafvtError(
            f"{folder} is a search by {metric}, but compare selects epochs by MRR: tune {name} by MRR, in "
            "another folder"
        )
    if not (folder / "best.yaml").exists():
        raise HafvtError(f"{folder} has no best.yaml yet: continue the search until a trial has finished")
    with explained_read_errors(folder / "best.yaml", TUNING_REMEDY):
        verify_files(folder, settings.get("sha256", {}), TUNING_REMEDY)
        best = parse_yaml((folder / "best.yaml").read_text(encoding="utf-8"))
        training = {option: best[option] for option in TRAINING_OPTIONS if option in best}
        preset, fixed = best["preset"], settings["params"]
        defaults = default_settings(name, preset, fixed)
        default_training = {option: defaults[option] for option in training}
        default_model = ComparedModel(f"{name} with default settings", name, preset, fixed, default_training)
        return ComparedModel(name, name, preset, best["params"], training, default_model)


def _read_tuning_budget(folder: Path) -> str:
    """Return what a `tune` search cost, in words."""
    with explained_read_errors(folder / "settings.json", TUNING_REMEDY):
        return str(read_settings(folder)["budget"])


def model_notes(data: Dataset, compared: ComparedModel) -> tuple[str, ...]:
    """Build a model to check that it supports the dataset, and return its notes for the report.

    Raises:
        HafvtError: the model does not support the dataset.
    """
    config = configure(compared.model, compared.preset, compared.params)
    return build_model(compared.model, model_item_features(data, compared.model, config), config).notes
