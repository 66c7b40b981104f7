"""Metrics of several models as text: a plain table for the terminal, a Markdown table for documents."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import chain

from hafvt.evaluation.list_metrics import ListResults, list_cells, list_header, list_metric_names
from hafvt.evaluation.metrics import METRICS_AT, MetricValue, Results
from hafvt.tables import align_columns, markdown_table, percent


def interval(metric_value: MetricValue) -> str:
    """Return the 95 % interval as "[11.80, 12.90]" in %, or "" where it is unknown."""
    bounds = (metric_value.low, metric_value.high)
    if any(bound is None or not math.isfinite(bound) for bound in bounds):
        return ""
    return f"[{percent(metric_value.low)}, {percent(metric_value.high)}]"


def domains_of(results: Mapping[str, Results | ListResults]) -> list[str]:
    """Return the domains of all models, with "overall" last."""
    return sorted(dict.fromkeys(chain.from_iterable(results.values())), key=lambda name: name == "overall")


def metrics_of(results: Mapping[str, Results]) -> list[str]:
    """Return the names of the metrics of all models, in the order of their first occurrence."""
    return list(dict.fromkeys(name for result in results.values() for row in result.values() for name in row))


def best_models(results: Mapping[str, Results], domain: str, metric: str) -> set[str]:
    """Return the models with the highest value; none where fewer than two models have a value."""
    values = {
        name: result[domain][metric].value
        for name, result in results.items()
        if metric in result.get(domain, {}) and math.isfinite(result[domain][metric].value)
    }
    if len(values) < 2:
        return set()
    return {name for name, value in values.items() if value == max(values.values())}


def results_markdown(results: Mapping[str, Results]) -> str:
    """Return a Markdown table of every metric in % with its interval, the best model of a domain in bold.

    Args:
        results: by model: by domain and "overall", each metric.
    """
    metrics = metrics_of(results)
    rows = []
    for domain in domains_of(results):
        for name in (name for name, result in results.items() if domain in result):
            cells = [domain, name]
            for metric in metrics:
                value = results[name][domain].get(metric, MetricValue(math.nan))
                mark = "**" if name in best_models(results, domain, metric) else ""
                cells.append(f"{mark}{percent(value.value)}{mark} {interval(value)}".rstrip())
            rows.append(cells)
    return markdown_table(["domain", "model", *(f"{metric} (%)" for metric in metrics)], rows, text_columns=2)


def plain_table(results: Mapping[str, Results], *, mark_best: bool = True) -> str:
    """Return a table for the terminal: values in %, 95 % intervals below, a star at the best of a domain.

    Args:
        results: by model: by domain and "overall", each metric.
        mark_best: mark the best row of each domain; False where the rows are one model under several rules.
    """
    mark_best = mark_best and len(results) > 1
    metrics = metrics_of(results)
    table = []
    for domain in domains_of(results):
        table.append([domain, *metrics])
        for name in (name for name, result in results.items() if domain in result):
            cells, intervals = [f"  {name}"], [""]
            for metric in metrics:
                value = results[name][domain].get(metric, MetricValue(math.nan))
                star = "*" if mark_best and name in best_models(results, domain, metric) else " "
                cells.append(f"{percent(value.value)}{star}")
                intervals.append(f"{interval(value)} ")
            table += [cells, intervals] if any(map(str.strip, intervals)) else [cells]
    legend = "in %, below each value its 95 % interval" + ("; * best of its domain" if mark_best else "")
    return "\n".join([*align_columns(table), legend])


def plain_table_at(results: Results) -> str:
    """Return a table for the terminal with a row for each domain and each k that all metrics of k have."""
    names = list(METRICS_AT)
    suffixes = {metric.partition("@")[2] for metric in metrics_of({"": results})}
    ks = sorted(int(suffix) for suffix in suffixes if suffix.isdigit())
    rows = [
        [f"  {domain} @{k}", *(percent(row[f"{name}@{k}"].value) for name in names)]
        for domain, row in results.items()
        for k in ks
        if all(f"{name}@{k}" in row for name in names)
    ]
    legend = "in %; results.json has the intervals"
    return "\n".join([*align_columns([["first k items", *names], *rows]), legend])


def plain_list_table(results: ListResults) -> str:
    """Return a table of the metrics of recommended lists for the terminal, one row per domain."""
    metrics = list_metric_names({"": results})
    rows = [[f"  {domain}", *list_cells(row, metrics)] for domain, row in results.items()]
    return "\n".join(align_columns([["lists of 10", *list_header(metrics)], *rows]))
