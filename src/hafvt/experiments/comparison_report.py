"""Write the tables of a comparison: compare.md, compare.tex and compare.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.data.sources.checks import find_scenario
from hafvt.evaluation.list_metrics import list_cells, list_header, list_metric_names, mean_of_known
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.results import results_to_json
from hafvt.evaluation.significance import PairedTest
from hafvt.experiments.comparison_runner import METRIC_COLUMNS, Budget, ModelResult, compare_with_best_other
from hafvt.experiments.published import ABLATION, TABLES
from hafvt.files import atomic_file, write_json
from hafvt.reports.comparison import Mark, ModelRow, comparison_latex, comparison_markdown
from hafvt.tables import markdown_table, percent

SIGNIFICANCE_LEVEL = 0.05

Column = tuple[str, str]
"""A domain and a metric."""

Tests = Mapping[tuple[str, str, str], PairedTest]
"""By label, domain and metric: the model against the best of the others."""


def write_comparison(
    data: Dataset,
    out: Path,
    model_results: Sequence[ModelResult],
    budget: Budget,
    protocol: Protocol,
    notes: Sequence[str],
) -> str:
    """Write the three files of a comparison and return the text of compare.md.

    Args:
        data: the dataset.
        out: folder of the files.
        model_results: one per model, in the order of the rows.
        budget: of each model.
        protocol: ranked the targets.
        notes: lines below the tables.
    """
    tests = compare_with_best_other(model_results)
    domains = [domain.name for domain in data.domains if domain.name in model_results[0].seed_results[0]]
    columns = [(domain, metric) for domain in domains for metric in METRIC_COLUMNS]
    rows = []
    for result in model_results:
        means = [result.mean_and_std(*column) for column in columns]
        percents = tuple((100 * mean, None if std is None else 100 * std) for mean, std in means)
        marks = tuple(_mark(result, column, model_results, tests) for column in columns)
        rows.append(ModelRow(result.label, percents, marks))
        if protocol.in_paper:
            rows += _published_rows(data, domains, result.label)
    description = (
        f"{len(data.test):,} test targets, each ranked among {protocol.describe(data)}; in %, mean"
        f"{' ± standard deviation over the seeds' * (budget.num_seeds > 1)}; bold: best of a column; *: "
        "better than the best other by bootstrap and Wilcoxon over users, p < .05 after Holm's correction."
    )
    table = comparison_markdown(domains, METRIC_COLUMNS, rows)
    note_lines = "".join(f"\n\n{note}" for note in notes)
    more_tables = "\n".join([_other_candidates_table(domains, model_results), _list_table(model_results)])
    cost_table = _cost_table(model_results)
    text = (
        f"Budget of each model: {budget}.\n\n{description}\n\n{table}\n{more_tables.lstrip()}"
        f"{cost_table}{note_lines}"
    )
    models = [_model_json(result, tests, columns) for result in model_results]
    with atomic_file(out / "compare.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    with atomic_file(out / "compare.tex") as temporary:
        latex = comparison_latex(domains, METRIC_COLUMNS, rows, description)
        temporary.write_text(latex, encoding="utf-8")
    content = {
        "protocol": protocol.name,
        "candidates": protocol.candidates,
        "budget": asdict(budget),
        "models": models,
    }
    write_json(out / "compare.json", content)
    return text


def _other_candidates_table(domains: Sequence[str], model_results: Sequence[ModelResult]) -> str:
    """Return the table by the other rule for items of the history; "" where no target is a repeat."""
    if not all(all(result.other_results) for result in model_results):
        return ""
    header = ["model", *(f"{domain} {metric}" for domain in domains for metric in METRIC_COLUMNS)]
    rows = []
    for result in model_results:
        cells = [result.label]
        for domain in domains:
            for metric in METRIC_COLUMNS:
                values = [other[domain][metric].value for other in result.other_results]
                cells.append(percent(float(np.mean(values))))
        rows.append(cells)
    note = (
        "Some targets are repeats, so the other candidates matter as well: items of the history are "
        "candidates below where they are none above, and the reverse."
    )
    return f"{note}\n\n{markdown_table(header, rows)}"


def _list_table(model_results: Sequence[ModelResult]) -> str:
    """Return the metrics of the recommended lists, mean of domains and seeds; "" where there are none."""
    results = {}
    for result in model_results:
        seeds = [
            next(reversed(lists.values())) for lists in result.list_results if lists
        ]  # overall, or the one
        results[result.label] = {
            "": {name: mean_of_known([row[name] for row in seeds]) for name in (seeds[0] if seeds else ())}
        }
    metrics = list_metric_names(results)
    if not metrics:
        return ""
    rows = [[label, *list_cells(result[""], metrics)] for label, result in results.items()]
    return (
        "Recommended lists of 10 items, mean of the domains "
        "(docs/explanation/evaluation.md defines the columns):\n\n"
        f"{markdown_table(['model', *list_header(metrics)], rows)}\n"
    )


def _mark(result: ModelResult, column: Column, model_results: Sequence[ModelResult], tests: Tests) -> Mark:
    """Return how a value is marked in its column."""
    best = max(other.mean_and_std(*column)[0] for other in model_results)
    if len(model_results) < 2 or result.mean_and_std(*column)[0] != best:
        return ""
    test = tests.get((result.label, *column))
    is_significant = test is not None and max(test.bootstrap, test.wilcoxon) < SIGNIFICANCE_LEVEL
    return "significant" if is_significant else "best"


def _published_rows(data: Dataset, domains: Sequence[str], label: str) -> list[ModelRow]:
    """Return what the paper's tables report for a model, where the dataset is a scenario of the paper."""
    scenario = find_scenario(data)
    values: list[tuple[float, ...]] = []
    if scenario and len(domains) == 2 and label in TABLES[scenario.domains]:
        values.append(TABLES[scenario.domains][label])
    if scenario and scenario.domains == ("movie", "book") and label in ABLATION:
        values.append((ABLATION[label], *(float("nan"),) * 5))
    no_marks: list[Mark] = [""] * (2 * len(METRIC_COLUMNS))
    return [
        ModelRow(f"{label}, paper", tuple((value, None) for value in row), no_marks, True) for row in values
    ]


def _cost_table(model_results: Sequence[ModelResult]) -> str:
    """Return a table of the learning rates tried, the best epochs, and the cost of training."""
    header = ["model", "learning rate (validation MRR, %)", "best epochs", "parameters", "minutes", "GiB"]
    rows = []
    for result in model_results:
        rates = []
        for rate, mrr in result.search_mrrs.items():
            mark = "**" if rate == result.learning_rate else ""
            rates.append(f"{mark}{rate:g}{mark} ({100 * mrr:.2f})")
        tuned = f"{result.learning_rate:g}, tuned" if result.compared.training else "–"
        rows.append(
            [
                result.label,
                ", ".join(rates) or tuned,
                ", ".join(map(str, result.best_epochs)),
                f"{result.num_parameters:,}",
                f"{result.mean_seconds / 60:.1f}",
                f"{result.peak_gib:.2f}",
            ]
        )
    return markdown_table(header, rows, text_columns=2)


def _model_json(result: ModelResult, tests: Tests, columns: Sequence[Column]) -> dict[str, object]:
    """Return what compare.json holds of a model."""
    return {
        **asdict(result.compared),
        "learning_rate": result.learning_rate,
        "tried": {f"{rate:g}": mrr for rate, mrr in result.search_mrrs.items()},
        "best_epochs": result.best_epochs,
        "seconds": result.mean_seconds,
        "peak_gib": result.peak_gib,
        "parameters": result.num_parameters,
        "results": [results_to_json(results) for results in result.seed_results],
        "other_candidates": [results_to_json(results) for results in result.other_results],
        "lists": result.list_results,
        "against_best_other": {
            f"{domain} {metric}": asdict(tests[result.label, domain, metric])
            for domain, metric in columns
            if (result.label, domain, metric) in tests
        },
    }
