"""Several models in the layout of the paper's Tables 2 and 3, as Markdown and LaTeX, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from hafvt.tables import ABSENT, markdown_table


@dataclass(frozen=True)
class Row:
    """A row of figures.

    Attributes:
        label: of the model.
        figures: mean of each column in %, and its standard deviation over seeds where there are several.
        marks: of each column: "best", "significant" (best, and no chance) or "".
        published: a row that the paper published, shown in italics.
    """

    label: str
    figures: tuple[tuple[float, float | None], ...]
    marks: tuple[str, ...]
    published: bool = False


def figures_markdown(domains: Sequence[str], metrics: Sequence[str], rows: Sequence[Row]) -> str:
    """Returns the table as Markdown: the best of a column in bold, * where it is no chance."""
    header = ["model", *(f"{domain} {metric}" for domain in domains for metric in metrics)]
    cells = []
    for row in rows:
        texts = []
        for (mean, deviation), mark in zip(row.figures, row.marks, strict=True):
            text = _number(mean) + ("" if deviation is None else f" ± {_number(deviation)}")
            text = f"**{text}**" if mark else text
            texts.append(f"*{text}*" if row.published else text + ("\\*" if mark == "significant" else ""))
        cells.append([f"*{row.label}*" if row.published else row.label, *texts])
    return markdown_table(header, cells)


def figures_latex(domains: Sequence[str], metrics: Sequence[str], rows: Sequence[Row], caption: str) -> str:
    """Returns the table as LaTeX, for the package booktabs."""
    count = len(metrics)
    lines = [
        "\\begin{table}",
        f"\\caption{{{_tex(caption)}}}",
        f"\\begin{{tabular}}{{l{'r' * count * len(domains)}}}",
        "\\toprule",
        "".join(f" & \\multicolumn{{{count}}}{{c}}{{{_tex(domain)}}}" for domain in domains) + " \\\\",
        "Model" + "".join(f" & {_tex(metric)}" for _ in domains for metric in metrics) + " \\\\",
        "\\midrule",
    ]
    for row in rows:
        texts = []
        for (mean, deviation), mark in zip(row.figures, row.marks, strict=True):
            text = _number(mean) + ("" if deviation is None else f"$\\pm${_number(deviation)}")
            text = f"\\textbf{{{text}}}" if mark else text
            text += "$^*$" if mark == "significant" else ""
            texts.append(f"\\textit{{{text}}}" if row.published else text)
        label = f"\\textit{{{_tex(row.label)}}}" if row.published else _tex(row.label)
        lines.append(" & ".join([label, *texts]) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}"]) + "\n"


def bars_svg(title: str, bars: Sequence[tuple[str, float, float | None, float | None]]) -> str:
    """Returns a figure of horizontal bars.

    Args:
        title: of the figure.
        bars: label, value, and the bounds of its interval, None where there are none; all of one unit.
    """
    left, width, step, top = 230, 420, 30, 46
    largest = max([value if high is None else high for _, value, _, high in bars] + [1e-9])
    height = top + step * len(bars) + 12
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {left + width + 90} {height}" '
        f'font-family="sans-serif" font-size="14" role="img" aria-label="{escape(title, quote=True)}">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="10" y="24" font-size="16">{escape(title)}</text>',
    ]
    for number, (label, value, low, high) in enumerate(bars):
        y, end = top + step * number, left + width * value / largest
        parts.append(f'<text x="{left - 10}" y="{y + 15}" text-anchor="end">{escape(label)}</text>')
        parts.append(f'<rect x="{left}" y="{y}" width="{end - left:.1f}" height="20" fill="#3b6ea5"/>')
        edge = end
        if low is not None and high is not None:
            a, edge = (left + width * bound / largest for bound in (low, high))
            parts.append(f'<path d="M{a:.1f} {y + 10}H{edge:.1f}" stroke="#111" stroke-width="2"/>')
        parts.append(f'<text x="{max(edge, end) + 8:.1f}" y="{y + 15}">{value:.2f}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _number(value: float) -> str:
    return f"{value:.2f}" if value == value else ABSENT


def _tex(text: str) -> str:
    escaped = {c: f"\\{c}" for c in "&%$#_{}"} | {"~": "\\textasciitilde{}", "^": "\\textasciicircum{}"}
    escaped["\\"] = "\\textbackslash{}"
    return "".join(escaped.get(char, char) for char in text)
