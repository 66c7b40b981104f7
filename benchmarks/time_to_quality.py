"""A chart of validation MRR over processor time, as a file of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from math import ceil, floor, log10

from hafvt.reports.charts import axis_ticks

LEFT, TOP, WIDTH, HEIGHT, LEGEND = 60, 46, 520, 300, 210  # of the plot, in SVG units
COLORS = ("#c0392b", "#1f5fa8", "#2e8b57", "#8e44ad", "#d68910", "#16828c", "#555555", "#b0347a", "#7a5c2e")
DASHES = ("", "7 3", "2 3")

Curve = Sequence[tuple[int, float, float]]
"""Epoch, processor seconds and validation MRR, as a fraction, of each validation."""


def chart(title: str, curves: Mapping[str, Curve]) -> str:
    """Return an SVG file: the best MRR so far of each curve, over processor seconds on a logarithmic axis."""
    seconds = [point[1] for curve in curves.values() for point in curve]
    low, high = floor(log10(max(min(seconds), 0.1))), ceil(log10(max(seconds)))
    y_ticks = axis_ticks(0, max(100 * point[2] for curve in curves.values() for point in curve))

    def x(value: float) -> str:
        return f"{LEFT + WIDTH * (log10(max(value, 0.1)) - low) / max(high - low, 1):.1f}"

    def y(value: float) -> str:
        return f"{TOP + HEIGHT * (1 - value / y_ticks[-1]):.1f}"

    size = f"{LEFT + WIDTH + LEGEND} {TOP + HEIGHT + 52}"
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" '
        f'font-size="13" role="img" aria-label="{escape(title)}">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="{LEFT}" y="24" font-size="16">{escape(title)}</text>',
    ]
    for tick in y_ticks:
        lines.append(f'<path d="M{LEFT} {y(tick)}h{WIDTH}" stroke="#ddd"/>')
        lines.append(f'<text x="{LEFT - 8}" y="{y(tick)}" dy=".35em" text-anchor="end">{tick:g}</text>')
    for power in range(low, high + 1):
        for factor in (1, 2, 5) if power < high else (1,):
            place, value = x(factor * 10.0**power), factor * 10.0**power
            lines.append(f'<path d="M{place} {TOP}v{HEIGHT}" stroke="#eee"/>')
            lines.append(f'<text x="{place}" y="{TOP + HEIGHT + 18}" text-anchor="middle">{value:g}</text>')
    middle = LEFT + WIDTH / 2
    label = "processor seconds of training, one thread"
    lines.append(f'<text x="{middle}" y="{TOP + HEIGHT + 40}" text-anchor="middle">{label}</text>')
    for number, (name, curve) in enumerate(curves.items()):
        style = f'stroke="{COLORS[number % len(COLORS)]}" stroke-dasharray="{DASHES[number % len(DASHES)]}"'
        best, points = 0.0, []
        for _, at, mrr in curve:
            best = max(best, mrr)
            points.append(f"{x(at)},{y(100 * best)}")
        lines.append(f'<polyline points="{" ".join(points)}" fill="none" stroke-width="2" {style}/>')
        at = TOP + 14 + 22 * number
        lines.append(f'<path d="M{LEFT + WIDTH + 14} {at}h28" fill="none" stroke-width="2" {style}/>')
        lines.append(f'<text x="{LEFT + WIDTH + 50}" y="{at}" dy=".35em">{escape(name)}</text>')
    return "\n".join([*lines, "</svg>", ""])
