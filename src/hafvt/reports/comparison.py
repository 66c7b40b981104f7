"""Metrics of several models in the layout of the paper's Tables 2 and 3, as Markdown, LaTeX and SVG bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

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


@dataclass(frozen=True)
class Bar:
    """One horizontal bar with an optional interval, all in the same unit.

    Attributes:
        label: left of the bar.
        value: length of the bar.
        low: lower bound of the interval; None without interval.
        high: upper bound of the interval; None without interval.
    """

    label: str
    value: float
    low: float | None = None
    high: float | None = None


def comparison_markdown(domains: Sequence[str], metrics: Sequence[str], rows: Sequence[ModelRow]) -> str:
    """Return a Markdown table: the best of a column in bold, with * where the difference is significant."""
    header = ["model", *(f"{domain} {metric}" for domain in domains for metric in metrics)]
    cells = []
    for row in rows:
        texts = []
        for (mean, deviation), mark in zip(row.values, row.marks, strict=True):
            text = _number(mean) + ("" if deviation is None else f" ± {_number(deviation)}")
            text = f"**{text}**" if mark else text
            texts.append(f"*{text}*" if row.is_published else text + ("\\*" if mark == "significant" else ""))
        cells.append([f"*{row.label}*" if row.is_published else row.label, *texts])
    return markdown_table(header, cells)


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
        texts = []
        for (mean, deviation), mark in zip(row.values, row.marks, strict=True):
            text = _number(mean) + ("" if deviation is None else f"$\\pm${_number(deviation)}")
            text = f"\\textbf{{{text}}}" if mark else text
            text += "$^*$" if mark == "significant" else ""
            texts.append(f"\\textit{{{text}}}" if row.is_published else text)
        label = f"\\textit{{{_latex(row.label)}}}" if row.is_published else _latex(row.label)
        lines.append(" & ".join([label, *texts]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def bars_svg(title: str, bars: Sequence[Bar]) -> str:
    """Return a standalone SVG file of horizontal bars."""
    largest = max([bar.value if bar.high is None else bar.high for bar in bars] + [1e-9])
    return render("bars.svg", title=title, bars=bars, largest=largest) + "\n"


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else ABSENT


def _latex(text: str) -> str:
    escaped = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    escaped["\\"] = "\\textbackslash{}"
    return "".join(escaped.get(char, char) for char in text)
