"""`hafvt compare` and `hafvt ablate`: models, or parts of HAF-VT, on equal terms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from hafvt.data.dataset import Dataset
from hafvt.data.sources.checks import find_scenario
from hafvt.errors import HafvtError
from hafvt.evaluation.protocols import Protocol, get_protocol
from hafvt.evaluation.significance import PairedTest
from hafvt.experiments.comparison_runner import (
    BUDGETS,
    COLUMNS,
    Budget,
    Candidate,
    ModelResult,
    against_best_other,
    run_comparison,
)
from hafvt.experiments.published import ABLATION, TABLES
from hafvt.features.item_features import load_item_features
from hafvt.files import atomic_file, read_json, write_json
from hafvt.models import MODELS, build_model, configure
from hafvt.reports.comparison import Row, bars_svg, figures_latex, figures_markdown
from hafvt.tables import markdown_table
from hafvt.training.run import fingerprint, model_item_features

SURE = 0.05  # below it, a difference is no chance

ORIGINAL = "original"
PARTS = {  # Table 4: what is on beside the ids
    ORIGINAL: ((), False),
    "+ visual": (("image",), False),
    "+ textual": (("title",), False),
    "+ textual, hierarchy": (("title",), True),
    "+ visual, hierarchy": (("image",), True),
    "+ textual, visual, hierarchy": (("image", "title"), True),
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found; as text, its tables."""

    model_results: tuple[ModelResult, ...]
    text: str
    folder: Path

    def __str__(self) -> str:
        """The tables, and where they are."""
        return f"{self.text}\nwrote {self.folder / 'compare.md'}, compare.tex and compare.json"


def compare(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    models: list[str] | None = None,
    tuned: dict[str, str] | None = None,
    budget: Literal["small", "full"] = "full",
    protocol: str = "full",
    jobs: int | None = None,
) -> Comparison:
    """Compares models on equal terms: the same split, negatives, budget, search and selection for all.

    For each model a learning rate is chosen by validation among as many as the budget says, then it is
    trained with as many seeds. Beside the figures stand paired tests over users against the best other model
    (bootstrap and Wilcoxon, Holm-corrected within a column), time, memory and parameters. Where scenario and
    protocol are the paper's, its own rows stand below ours. Started again, it goes on where it was.

    Example: hafvt compare data/movies --out compare/movies --budget small

    Args:
        data: the dataset; encode it first, so that HAF-VT sees pictures and titles.
        out: folder of the runs, of compare.md, compare.tex and compare.json.
        models: names; default: all. One that cannot take this many domains is left out, and said so.
        tuned: by model a folder of tune, whose best settings it takes in place of a search (--tuned
            sasrec=tune/sasrec hafvt=tune/hafvt); the table says so.
        budget: small (1 seed, 12 epochs, histories of 20 items) or full (3 seeds, 100 epochs, 50 items).
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        jobs: trainings side by side; default: one for each processor.

    Raises:
        HafvtError: a wrong setting, or a training failed; what is finished is kept.
    """
    ranking = get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    tuned, remarks = tuned or {}, []
    for name in tuned:
        if name not in (models or MODELS):
            raise HafvtError(f"--tuned {name}: it takes no part, those are {', '.join(models or MODELS)}")
    entries = [
        _tuned(dataset, name, Path(tuned[name])) if name in tuned else Candidate(name, name)
        for name in models or MODELS
    ]
    remarks += [f"{name}: settings of the search in {tuned[name]}. {_said(tuned[name])}" for name in tuned]
    for entry in list(entries):
        try:
            remarks += [f"{entry.label}: {note}" for note in _built(dataset, entry)]
        except HafvtError as error:
            if models:
                raise
            entries.remove(entry)
            remarks.append(f"{entry.label} is left out: {error}")
    return _comparison(dataset, Path(out), entries, _budget(budget), ranking, jobs, remarks)


def ablate(
    data: str | Path | Dataset,
    out: str | Path,
    *,
    budget: Literal["small", "full"] = "full",
    protocol: str = "full",
    jobs: int | None = None,
) -> Comparison:
    """Switches titles, pictures and hierarchical attention of HAF-VT on and off, as the paper's Table 4 does.

    The original framework attends to the merged history of ids alone. All variants get the same budget,
    search and tests as the models of compare; ablate.svg shows them.

    Example: hafvt ablate data/movies --out ablate/movies --budget small

    Args:
        data: the dataset, with the features image and title.
        out: folder of the runs, of compare.md, compare.tex, compare.json and ablate.svg.
        budget: small or full, see compare.
        protocol: full, c2dsr or sampled-unseen, see evaluate.
        jobs: trainings side by side; default: one for each processor.

    Raises:
        HafvtError: a feature is missing, a wrong setting, or a training failed.
    """
    ranking = get_protocol(protocol)
    dataset = data if isinstance(data, Dataset) else Dataset.open(data)
    entries = [
        Candidate(label, "hafvt", params={"modalities": ("id", *seen), "hierarchy": hierarchy})
        for label, (seen, hierarchy) in PARTS.items()
    ]
    load_item_features(dataset, ("image", "title"))  # what is missing is told before hours of training
    found = _comparison(dataset, Path(out), entries, _budget(budget), ranking, jobs, [])
    domain = dataset.domains[0].name
    bars: list[tuple[str, float, float | None, float | None]] = []
    for model_result in found.model_results:
        figure = model_result.results[0][domain]["MRR"]
        one = len(model_result.results) == 1
        bounds = (figure.low, figure.high) if one else _bounds(*model_result.figure(domain, "MRR"))
        low, high = (None if bound is None else 100 * bound for bound in bounds)
        bars.append((model_result.entry.label, 100 * model_result.figure(domain, "MRR")[0], low, high))
    with atomic_file(Path(out) / "ablate.svg") as temporary:
        temporary.write_text(bars_svg(f"MRR (%) on {domain}", bars), encoding="utf-8")
    return found


def _bounds(mean: float, deviation: float | None) -> tuple[float | None, float | None]:
    return (None, None) if deviation is None else (mean - deviation, mean + deviation)


def _tuned(data: Dataset, name: str, folder: Path) -> Candidate:
    """Returns a model with the best settings of a search."""
    held = read_json(folder / "settings.json")
    if (held.get("model"), held.get("dataset")) != (name, fingerprint(data)):
        raise HafvtError(f"{folder} holds no search for {name} on {data.folder}: tune it there first")
    if not (folder / "best.yaml").exists():
        raise HafvtError(f"{folder} has no best.yaml yet: let its search go on until a trial has ended")
    best = yaml.safe_load((folder / "best.yaml").read_text(encoding="utf-8"))
    training = {option: best[option] for option in ("learning_rate", "batch_size", "weight_decay")}
    return Candidate(name, name, best["preset"], best["params"], training)


def _said(folder: str) -> str:
    """Returns what the report of a search says of its budget."""
    lines = (Path(folder) / "report.md").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("Budget: "))


def _budget(name: str) -> Budget:
    if name not in BUDGETS:
        raise HafvtError(f"--budget {name}: choose {', '.join(BUDGETS)}")
    return BUDGETS[name]


def _built(data: Dataset, entry: Candidate) -> tuple[str, ...]:
    """Builds a model, so that what it cannot do is known before anything is trained; returns its notes."""
    config = configure(entry.model, entry.preset, entry.params)
    return build_model(entry.model, model_item_features(data, entry.model, config), config).notes


def _comparison(
    data: Dataset,
    out: Path,
    entries: Sequence[Candidate],
    budget: Budget,
    protocol: Protocol,
    jobs: int | None,
    remarks: Sequence[str],
) -> Comparison:
    model_results = run_comparison(
        data, out, entries, budget, protocol, (os.cpu_count() or 1) if jobs is None else jobs
    )
    tests = against_best_other(model_results)
    domains = [d.name for d in data.domains if d.name in model_results[0].results[0]]
    columns = [(domain, metric) for domain in domains for metric in COLUMNS]
    rows = []
    scenario = find_scenario(data) if protocol.in_paper else None
    published = TABLES[scenario.domains] if scenario else {}
    for model_result in model_results:
        marks = []
        for domain, metric in columns:
            best = max(other.figure(domain, metric)[0] for other in model_results)
            test = tests.get((model_result.entry.label, domain, metric))
            sure = test is not None and max(test.bootstrap, test.wilcoxon) < SURE
            leads = model_result.figure(domain, metric)[0] == best
            marks.append(("significant" if sure else "best") if leads and len(model_results) > 1 else "")
        figures = [model_result.figure(*column) for column in columns]
        percents = tuple((100 * m, None if sd is None else 100 * sd) for m, sd in figures)
        rows.append(Row(model_result.entry.label, percents, tuple(marks)))
        if model_result.entry.label in published and len(domains) == 2:
            told = published[model_result.entry.label]
            rows.append(
                Row(f"{model_result.entry.label}, paper", tuple((x, None) for x in told), ("",) * 6, True)
            )
        if scenario and scenario.domains == ("movie", "book") and model_result.entry.label in ABLATION:
            told = (ABLATION[model_result.entry.label], *(float("nan"),) * 5)
            rows.append(
                Row(f"{model_result.entry.label}, paper", tuple((x, None) for x in told), ("",) * 6, True)
            )
    said = (
        f"{len(data.test):,} test targets, each ranked among {protocol.describe(data)}; in %, mean"
        f"{' ± standard deviation over the seeds' if budget.seeds > 1 else ''}; bold: best of a column; *: "
        "better than the best other by bootstrap and Wilcoxon over users, p < .05 after Holm's correction."
    )
    text = "\n".join(
        [
            f"Budget of each model: {budget}.",
            "",
            said,
            "",
            figures_markdown(domains, COLUMNS, rows),
            _costs(model_results),
            *(f"\n{remark}" for remark in remarks),
        ]
    )
    with atomic_file(out / "compare.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_file(out / "compare.tex") as temporary:
        temporary.write_text(figures_latex(domains, COLUMNS, rows, said), encoding="utf-8")
    write_json(out / "compare.json", _json(model_results, tests, budget, protocol.name, columns))
    return Comparison(tuple(model_results), text, out)


def _costs(model_results: Sequence[ModelResult]) -> str:
    """Returns the table of what was chosen and what it took."""
    header = ["model", "learning rate (validation MRR, %)", "best epochs", "parameters", "minutes", "GiB"]
    cells = []
    for o in model_results:
        tried = ", ".join(
            f"{'**' * (rate == o.learning_rate)}{rate:g}{'**' * (rate == o.learning_rate)} ({100 * mrr:.2f})"
            for rate, mrr in o.tried.items()
        )
        epochs = ", ".join(map(str, o.epochs))
        cells.append(
            [
                o.entry.label,
                tried or (f"{o.learning_rate:g}, tuned" if o.entry.training else "–"),
                epochs,
                f"{o.parameters:,}",
                f"{o.seconds / 60:.1f}",
                f"{o.peak_gib:.2f}",
            ]
        )
    return markdown_table(header, cells, text_columns=2)


def _json(
    model_results: Sequence[ModelResult],
    tests: dict[tuple[str, str, str], PairedTest],
    budget: Budget,
    protocol: str,
    columns: Sequence[tuple[str, str]],
) -> dict[str, object]:
    return {
        "protocol": protocol,
        "budget": asdict(budget),
        "models": [
            {
                **asdict(o.entry),
                "learning_rate": o.learning_rate,
                "tried": {f"{rate:g}": mrr for rate, mrr in o.tried.items()},
                "best_epochs": o.epochs,
                "seconds": o.seconds,
                "peak_gib": o.peak_gib,
                "parameters": o.parameters,
                "results": [
                    {d: {m: asdict(f) for m, f in row.items()} for d, row in result.items()}
                    for result in o.results
                ],
                "against_best_other": {
                    f"{domain} {metric}": asdict(tests[o.entry.label, domain, metric])
                    for domain, metric in columns
                    if (o.entry.label, domain, metric) in tests
                },
            }
            for o in model_results
        ],
    }
