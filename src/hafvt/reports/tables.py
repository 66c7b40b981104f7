"""Results as text: a Markdown table for documents, a plain one for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from hafvt.evaluation.metrics import MetricValue, Results

__all__ = ["MetricValue", "aligned", "best_models", "domains_of", "interval", "markdown_table", "metrics_of"]
__all__ += ["percent", "plain_table", "results_markdown"]

ABSENT = "–"


def percent(fraction: float | None) -> str:
    """Returns 0.1234 as "12.34", without the sign; what is no number as a dash."""
    return f"{100 * fraction:.2f}" if fraction is not None and math.isfinite(fraction) else ABSENT


def interval(figure: MetricValue) -> str:
    """Returns the 95 % interval as "[11.80, 12.90]" in %, nothing where there is none."""
    known = [bound for bound in (figure.low, figure.high) if bound is not None and math.isfinite(bound)]
    return f"[{percent(known[0])}, {percent(known[1])}]" if len(known) == 2 else ""


def _margin(figure: MetricValue) -> str:
    """Returns half the interval's width as " ±0.55", which takes less room than its bounds."""
    if not interval(figure) or figure.low is None or figure.high is None:
        return ""
    return f" ±{percent((figure.high - figure.low) / 2)}"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def domains_of(results: Mapping[str, Results]) -> list[str]:
    """Returns the domains of all models, and "overall" after them where it is among them."""
    names = _distinct(chain.from_iterable(results.values()))
    return sorted(names, key=lambda name: name == "overall")


def metrics_of(results: Mapping[str, Results]) -> list[str]:
    """Returns the metrics of all models in the order in which they first occur."""
    return _distinct(chain.from_iterable(row for result in results.values() for row in result.values()))


def best_models(results: Mapping[str, Results], domain: str, metric: str) -> set[str]:
    """Returns the models whose figure is highest; none where fewer than two have one."""
    found = {
        name: result[domain][metric].value
        for name, result in results.items()
        if metric in result.get(domain, {}) and math.isfinite(result[domain][metric].value)
    }
    return (
        {name for name, value in found.items() if value == max(found.values())} if len(found) > 1 else set()
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Returns a Markdown table.

    Args:
        header: names of the columns.
        rows: the cells; pipes in them are escaped, line breaks become spaces.
        text_columns: so many leading columns are set left, the others right.
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    return "\n".join(line(cells) for cells in [header, rule, *rows]) + "\n"


def results_markdown(results: Mapping[str, Results]) -> str:
    """Returns domain, model and every metric in % with its interval, the best of a domain in bold.

    Args:
        results: by model: per domain and "overall", each metric.
    """
    metrics = metrics_of(results)
    rows = []
    for domain in domains_of(results):
        for name in (name for name, result in results.items() if domain in result):
            cells = [domain, name]
            for metric in metrics:
                figure = results[name][domain].get(metric, MetricValue(math.nan))
                mark = "**" if name in best_models(results, domain, metric) else ""
                cells.append(f"{mark}{percent(figure.value)}{mark} {interval(figure)}".rstrip())
            rows.append(cells)
    return markdown_table(["domain", "model", *(f"{metric} (%)" for metric in metrics)], rows, text_columns=2)


def plain_table(results: Mapping[str, Results], *, stars: bool = True) -> str:
    """Returns a table for the terminal: in %, ± half the 95 % interval, a star at the best of a domain.

    Args:
        results: by model: per domain and "overall", each metric.
        stars: mark the best; not where the rows are one model's by several rules.
    """
    stars = stars and len(results) > 1
    metrics = metrics_of(results)
    table = []
    for domain in domains_of(results):
        table.append([domain, *metrics])
        for name in (name for name, result in results.items() if domain in result):
            cells = [f"  {name}"]
            for metric in metrics:
                figure = results[name][domain].get(metric, MetricValue(math.nan))
                star = "*" if stars and name in best_models(results, domain, metric) else " "
                cells.append(f"{percent(figure.value)}{_margin(figure)}{star}")
            table.append(cells)
    legend = "in %, ± half the 95 % interval" + ("; * best of its domain" if stars else "")
    return "\n".join([*aligned(table), legend])


def aligned(rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Returns rows of cells as lines: so many leading columns are set left, the others right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in rows
    )
    return [line.rstrip() for line in lines]
