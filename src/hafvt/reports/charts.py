"""Inline SVG: training curves, intervals and stacked bars, colored by the classes of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from hafvt.evaluation.metrics import MetricValue

COLOURS = 6  # classes k0 to k5 of the style sheet
SHADES = 4  # classes m0 to m3
WIDTH, HEIGHT = 460, 260  # of a chart, in its own units
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38  # margins

Series = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class CurvePoint:
    """An epoch of training.

    Attributes:
        epoch: epochs done.
        loss: mean training loss of the epoch.
        valid_mrr: MRR on the validation targets, as a fraction; None where it was not measured.
    """

    epoch: int
    loss: float
    valid_mrr: float | None


def color(number: int) -> str:
    """Returns the class of a color; there are six, then they repeat."""
    return f"k{number % COLOURS}"


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Returns round numbers from at or below `low` to at or above `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        pad = max(abs(high) * 0.1, 1e-6)
        low, high = low - pad, high + pad
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, last + 1)]


def line_chart(title: str, series: Mapping[str, Series], percent: bool = False) -> str:
    """Draws values against epochs, a line per model; each has its own dashes and color.

    Args:
        title: of the chart, read aloud and shown above it.
        series: by model, finite (epoch, value) points, epochs ascending; an empty one holds its color.
        percent: whether values are fractions, to be shown in %.

    Returns:
        A <figure>; nothing where there are no points.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    factor = 100 if percent else 1
    marks = ticks(min(y for _, y in points) * factor, max(y for _, y in points) * factor)
    epochs = [round(x) for x in ticks(min(x for x, _ in points), max(x for x, _ in points)) if x == round(x)]
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def place(x: float, y: float) -> str:
        across = (x - first) / (last - first) if last > first else 0.5
        up = (y * factor - marks[0]) / (marks[-1] - marks[0])
        right, down = LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)
        return f"{right:.1f},{down:.1f}"

    parts = []
    for mark in marks:
        y = place(first, mark / factor).split(",")[1]
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text class="end" x="{LEFT - 8}" y="{y}" dy=".35em">{mark:.6g}</text>')
    for epoch in epochs:
        if first <= epoch <= last:
            x = place(epoch, marks[0] / factor).split(",")[0]
            parts.append(f'<text class="middle" x="{x}" y="{HEIGHT - BOTTOM + 18}">{epoch}</text>')
    parts.append(f'<text class="middle" x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 4}">epoch</text>')
    legend = []
    for number, (name, line) in enumerate(series.items()):
        if not line:
            continue
        look = f"{color(number)} dash{number % SHADES}"
        path = " ".join(place(x, y) for x, y in line)
        parts.append(f'<polyline class="curve {look}" points="{path}"/>')
        cx, cy = place(*line[-1]).split(",")
        parts.append(f'<circle class="dot {color(number)}" cx="{cx}" cy="{cy}" r="4"/>')
        sample = f'<path class="curve {look}" d="M0 4H28"/>'
        swatch = f'<svg class="key" viewBox="0 0 28 8" aria-hidden="true">{sample}</svg>'
        legend.append(f"<li>{swatch}<bdi>{escape(name)}</bdi></li>")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>'
        f'<ul class="legend">{"".join(legend)}</ul></figure>'
    )


def curve_charts(curves: Mapping[str, Sequence[CurvePoint]]) -> str:
    """Draws loss and validation MRR against the epoch; models of fewer than two epochs have no curve."""
    loss: dict[str, Series] = {}
    valid: dict[str, Series] = {}
    for name, points in curves.items():
        trained = sorted(points, key=lambda point: point.epoch) if len(points) > 1 else []
        loss[name] = [(p.epoch, p.loss) for p in trained if math.isfinite(p.loss)]
        measured = [(p.epoch, p.valid_mrr) for p in trained if p.valid_mrr is not None]
        valid[name] = [(epoch, mrr) for epoch, mrr in measured if math.isfinite(mrr)]
    return line_chart("Validation MRR, %", valid, percent=True) + line_chart("Training loss", loss)


def interval_bar(figure: MetricValue, largest: float) -> str:
    """Draws a value as a dot on its interval, on a scale from 0 to `largest`; the figures stand beside it."""
    if not (math.isfinite(figure.value) and largest > 0):
        return ""
    low, value, high = (
        100 * (figure.value if bound is None or not math.isfinite(bound) else bound) / largest
        for bound in (figure.low, figure.value, figure.high)
    )
    return (
        '<svg class="range" viewBox="0 0 104 12" aria-hidden="true"><path class="grid" d="M2 6H102"/>'
        f'<path class="whisker" d="M{2 + low:.1f} 6H{2 + high:.1f}"/>'
        f'<circle cx="{2 + value:.1f}" cy="6" r="4"/></svg>'
    )


def stacked_bar(shares: Sequence[tuple[str, int, int, float]], label: str) -> str:
    """Draws shares side by side.

    Args:
        shares: name, number of the color, number of the shade, and share of each segment.
        label: what the bar says, read aloud.
    """
    parts, at = [], 0.0
    for name, hue, shade, share in shares:
        if share > 0:
            parts.append(
                f'<rect class="seg {color(hue)} m{shade % SHADES}" x="{200 * at:.2f}" height="14" '
                f'width="{200 * share:.2f}"><title>{escape(name)}: {100 * share:.1f} %</title></rect>'
            )
        at += share
    return (
        '<svg class="bar" viewBox="0 0 200 14" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(label)}">{"".join(parts)}</svg>'
    )
