"""Metrics of several models in the layout of the paper's Tables 2 and 3, as Markdown, LaTeX and SVG bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from hafvt.reports.charts import CHART_SIZE, Points, line_chart
from hafvt.reports.render import render
from hafvt.tables import ABSENT, markdown_table

Mark = Literal["significant", "best", ""]


@dataclass(frozen=True)
class ModelRow:
    """One row of a comparison table.

    Attributes:
        label: of the model.
        values: per column the mean in % and its standard deviation over seeds, None with one seed.
        marks: per column "significant" (best, and significantly better than the next), "best" or "".
        is_published: whether the row is copied from a paper; it is set in italics.
    """

    label: str
    values: tuple[tuple[float, float | None], ...]
    marks: Sequence[Mark]
    is_published: bool = False


class Bar(NamedTuple):
    """One horizontal bar with the bounds of its interval, if it has one, in the same unit."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def comparison_markdown(domains: Sequence[str], metrics: Sequence[str], rows: Sequence[ModelRow]) -> str:
    """Return a Markdown table: the best of a column in bold, with * where the difference is significant."""
    header = ["model", *(f"{domain} {metric}" for domain in domains for metric in metrics)]
    return markdown_table(header, (_cells(row, row.label, " ± ", "**{}**", "\\*", "*{}*") for row in rows))


def comparison_latex(
    domains: Sequence[str], metrics: Sequence[str], rows: Sequence[ModelRow], caption: str
) -> str:
    """Return the same table as LaTeX; it needs the package booktabs."""
    count = len(metrics)
    lines = [
        "\\begin{table}",
        f"\\caption{{{_latex(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * count * len(domains)}}}",
        "\\toprule",
        "".join(f" & \\multicolumn{{{count}}}{{c}}{{{_latex(domain)}}}" for domain in domains) + " \\\\",
        "Model" + "".join(f" & {_latex(metric)}" for _ in domains for metric in metrics) + " \\\\",
        "\\midrule",
    ]
    for row in rows:
        cells = _cells(row, _latex(row.label), "$\\pm$", "\\textbf{{{}}}", "$^*$", "\\textit{{{}}}")
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def bars_svg(title: str, bars: Sequence[Bar]) -> str:
    """Return a standalone SVG file of horizontal bars."""
    largest = max([bar.value if bar.high is None else bar.high for bar in bars] + [1e-9])
    return render("bars.svg", title=title, bars=bars, largest=largest) + "\n"


def lines_svg(title: str, places: Sequence[str], values: Mapping[str, Points]) -> str:
    """Return a standalone SVG file with a line for each model.

    Args:
        title: of the figure.
        places: labels of the places 0, 1, ... of the horizontal axis.
        values: by model, its (place, value) points; at least one model has a point.
    """
    chart = line_chart(title, values)
    assert chart is not None
    chart = chart._replace(x_ticks=[(x, places[int(label)]) for x, label in chart.x_ticks])
    return render("lines.svg", chart=chart, **CHART_SIZE) + "\n"


def _cells(row: ModelRow, label: str, plus_minus: str, bold: str, star: str, italic: str) -> list[str]:
    """Return the label and the values of a row in the given markup."""
    published = italic if row.is_published else "{}"
    cells = [published.format(label)]
    for value, mark in zip(row.values, row.marks, strict=True):
        text = plus_minus.join(_number(number) for number in value if number is not None)
        text = bold.format(text) if mark else text
        cells.append(published.format(text + (star if mark == "significant" else "")))
    return cells


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else ABSENT


def _latex(text: str) -> str:
    escaped = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    escaped["\\"] = "\\textbackslash{}"
    return "".join(escaped.get(char, char) for char in text)
