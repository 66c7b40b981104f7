"""`hafvt compare` and `hafvt ablate`: compare models, or variants of HAF-VT, on equal terms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import yaml

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.protocols import get_protocol
from hafvt.experiments.comparison_report import write_comparison
from hafvt.experiments.comparison_runner import BUDGETS, Candidate, ModelResult, run_comparison
from hafvt.experiments.search_space import TRAINING_OPTIONS
from hafvt.features.item_features import load_item_features
from hafvt.files import atomic_file, read_json
from hafvt.models import MODELS, build_model, configure
from hafvt.reports.comparison import Bar, bars_svg
from hafvt.training.run import fingerprint, model_item_features

BudgetName = Literal["small", "full"]

ABLATION_VARIANTS: dict[str, tuple[tuple[str, ...], bool]] = {
    "original": ((), False),
    "+ visual": (("image",), False),
    "+ textual": (("title",), False),
    "+ textual, hierarchy": (("title",), True),
    "+ visual, hierarchy": (("image",), True),
    "+ textual, visual, hierarchy": (("image", "title"), True),
}
"""Rows of the paper's Table 4: the modalities beside the ids, and whether attention is hierarchical."""


@dataclass(frozen=True)
class Comparison:
    """The results of a comparison; as text, its tables.

    Attributes:
        model_results: one per model.
        text: the content of compare.md.
        folder: compare.md, compare.tex, compare.json and the runs.
    """

    model_results: tuple[ModelResult, ...]
    text: str
    folder: Path

    def __str__(self) -> str:
        """The tables and the names of the files."""
        return f"{self.text}\nwrote {self.folder / 'compare.md'}, compare.tex and compare.json"


def compare(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    models: list[str] | None = None,
    tuned: dict[str, str] | None = None,
    budget: BudgetName = "full",
    protocol: str = "full",
    jobs: int | None = None,
) -> Comparison:
    """Compare models on equal terms: all have the same split, candidates, budget, search and selection.

    Each model takes the learning rate with the best validation MRR, then trains with several seeds. The
    tables show test metrics, paired tests over users against the best other model (bootstrap and Wilcoxon,
    Holm-corrected within a column), time, memory and parameters. On a dataset and protocol of the paper,
    the published rows stand below ours. A repeated call resumes.

    Example: hafvt compare data/movies --out compare/movies --budget small

    Args:
        data: a dataset folder; encode it first, so that HAF-VT reads pictures and titles.
        out: folder of the runs, of compare.md, compare.tex and compare.json.
        models: names; default: all. By default, a model that does not support the number of domains is left
            out, with a remark.
        tuned: by model a folder of tune, whose best settings replace the search for a learning rate
            (--tuned sasrec=tune/sasrec hafvt=tune/hafvt); a remark says so.
        budget: small (1 seed, 12 epochs, histories of 20 items) or full (3 seeds, 100 epochs, 50 items).
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: a wrong setting, or a training failed; finished trainings are kept.
    """
    get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    names, tuned = models or list(MODELS), tuned or {}
    for name in tuned:
        if name not in names:
            raise HafvtError(f"--tuned {name}: choose among the compared models, {', '.join(names)}")
    tuned_candidates = {name: _tuned_candidate(dataset, name, Path(tuned[name])) for name in tuned}
    remarks = [
        f"{name}: settings of the search in {folder}. {_read_tuning_budget(Path(folder))}"
        for name, folder in tuned.items()
    ]
    candidates = []
    for name in names:
        candidate = tuned_candidates.get(name, Candidate(name, name))
        try:
            remarks += [f"{name}: {note}" for note in _model_notes(dataset, candidate)]
        except HafvtError as error:
            if models:
                raise
            remarks.append(f"{name} is left out: {error}")
        else:
            candidates.append(candidate)
    return _run(dataset, Path(out), candidates, budget, protocol, jobs, remarks)


def ablate(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    budget: BudgetName = "full",
    protocol: str = "full",
    jobs: int | None = None,
) -> Comparison:
    """Switch titles, pictures and hierarchical attention of HAF-VT on and off, as in the paper's Table 4.

    The original framework attends to the merged history of ids only. All variants have the same budget,
    search and tests as the models of compare; ablate.svg shows them.

    Example: hafvt ablate data/movies --out ablate/movies --budget small

    Args:
        data: a dataset folder with the features image and title.
        out: folder of the runs, of compare.md, compare.tex, compare.json and ablate.svg.
        budget: small or full, see compare.
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        jobs: number of parallel trainings; default: one per processor.

    Raises:
        HafvtError: a feature is missing, a wrong setting, or a training failed.
    """
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    candidates = [
        Candidate(label, "hafvt", params={"modalities": ("id", *modalities), "hierarchy": hierarchy})
        for label, (modalities, hierarchy) in ABLATION_VARIANTS.items()
    ]
    load_item_features(dataset, ("image", "title"))  # refuses a missing feature before hours of training
    comparison = _run(dataset, Path(out), candidates, budget, protocol, jobs, [])
    domain = dataset.domains[0].name
    bars = [_mrr_bar(result, domain) for result in comparison.model_results]
    with atomic_file(Path(out) / "ablate.svg") as temporary:
        temporary.write_text(bars_svg(f"MRR (%) on {domain}", bars), encoding="utf-8")
    return comparison


def _run(
    data: Dataset,
    out: Path,
    candidates: Sequence[Candidate],
    budget: str,
    protocol: str,
    jobs: int | None,
    remarks: Sequence[str],
) -> Comparison:
    """Train and evaluate the candidates and write the tables."""
    if budget not in BUDGETS:
        raise HafvtError(f"--budget {budget}: choose {', '.join(BUDGETS)}")
    ranking = get_protocol(protocol)
    model_results = run_comparison(data, out, candidates, BUDGETS[budget], ranking, jobs)
    text = write_comparison(data, out, model_results, BUDGETS[budget], ranking, remarks)
    return Comparison(tuple(model_results), text, out)


def _mrr_bar(result: ModelResult, domain: str) -> Bar:
    """Return the MRR in % with its 95 % interval or, for several seeds, ± its standard deviation."""
    mean, std = result.mean_and_std(domain, "MRR")
    low, high = result.results[0][domain]["MRR"].low, result.results[0][domain]["MRR"].high
    if std is not None:
        low, high = mean - std, mean + std
    if low is None or high is None:
        return Bar(result.label, 100 * mean)
    return Bar(result.label, 100 * mean, 100 * low, 100 * high)


def _tuned_candidate(data: Dataset, name: str, folder: Path) -> Candidate:
    """Return a model with the best settings of a search.

    Raises:
        HafvtError: the folder holds no search for this model on this dataset, or no trial has finished.
    """
    settings = read_json(folder / "settings.json")
    if (settings.get("model"), settings.get("dataset")) != (name, fingerprint(data)):
        raise HafvtError(f"{folder} holds no search for {name} on {data.folder}: tune it there first")
    if not (folder / "best.yaml").exists():
        raise HafvtError(f"{folder} has no best.yaml yet: continue the search until a trial has finished")
    best = yaml.safe_load((folder / "best.yaml").read_text(encoding="utf-8"))
    training = {option: best[option] for option in TRAINING_OPTIONS}
    return Candidate(name, name, best["preset"], best["params"], training)


def _read_tuning_budget(folder: Path) -> str:
    """Return the line of a search's report.md that describes its budget."""
    lines = (folder / "report.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("Budget: "))


def _model_notes(data: Dataset, candidate: Candidate) -> tuple[str, ...]:
    """Build a model and return its notes.

    Raises:
        HafvtError: the model does not support the dataset; this is known before any training.
    """
    config = configure(candidate.model, candidate.preset, candidate.params)
    return build_model(candidate.model, model_item_features(data, candidate.model, config), config).notes
