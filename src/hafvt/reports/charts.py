"""Geometry of the SVG charts; templates/charts.html draws them in the colors of the style sheet."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from hafvt.evaluation.metrics import MetricValue

WIDTH, HEIGHT = 460, 260  # of a line chart, in SVG units
LEFT, RIGHT, TOP, BOTTOM = 46, 14, 14, 38  # margins of a line chart
CHART_SIZE = {"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM}

Points = Sequence[tuple[float, float]]


class CurvePoint(NamedTuple):
    """One epoch of a training: its mean loss, and the validation MRR as a fraction where it was measured."""

    epoch: int
    loss: float
    valid_mrr: float | None


class Curve(NamedTuple):
    """The line of a model in a chart; `number` selects color and dashes, `points` are in SVG units."""

    name: str
    number: int
    points: Points


class LineChart(NamedTuple):
    """A chart of values against epochs or others; ticks are positions in SVG units with their labels."""

    title: str
    curves: Sequence[Curve]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    x_label: str = "epoch"


def axis_ticks(low: float, high: float, target_count: int = 5) -> list[float]:
    """Return about `target_count` round numbers, from at or below `low` to at or above `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        margin = max(abs(high) * 0.1, 1e-6)
        low, high = low - margin, high + margin
    min_step = (high - low) / target_count
    power = 10.0 ** math.floor(math.log10(min_step))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= min_step)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [step * number for number in range(first, last + 1)]


def line_chart(title: str, values: Mapping[str, Points], x_label: str = "epoch") -> LineChart | None:
    """Return a chart with one line per model, or None where there are no points.

    Args:
        title: of the chart.
        values: by model: finite (epoch, value) points, epochs ascending. A model without points takes a color
            number, too, so that each model has the same color in every chart.
        x_label: what the horizontal axis shows, in place of epochs.
    """
    points = [point for curve in values.values() for point in curve]
    if not points:
        return None
    first, last = min(x for x, _ in points), max(x for x, _ in points)
    y_ticks = axis_ticks(min(y for _, y in points), max(y for _, y in points))
    x_ticks = [x for x in axis_ticks(first, last) if x == round(x) and first <= x <= last]

    def x_position(epoch: float) -> float:
        fraction = (epoch - first) / (last - first) if last > first else 0.5
        return LEFT + fraction * (WIDTH - LEFT - RIGHT)

    def y_position(value: float) -> float:
        fraction = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return HEIGHT - BOTTOM - fraction * (HEIGHT - TOP - BOTTOM)

    curves = [
        Curve(name, number, [(x_position(x), y_position(y)) for x, y in curve])
        for number, (name, curve) in enumerate(values.items())
        if curve
    ]
    x_labels = [(x_position(x), f"{round(x)}") for x in x_ticks]
    return LineChart(title, curves, x_labels, [(y_position(y), f"{y:.6g}") for y in y_ticks], x_label)


def rerank_charts(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[LineChart]:
    """Return charts of accuracy, and of what each weight of re-ranking improves, against the weight.

    Args:
        curves: by name, such as "diversity": for each weight, "weight" and metrics, see `rerank_curve`.
    """
    if not curves:
        return []
    first, label = next(iter(curves.values())), "weight, %"
    accuracy = next(name for name in first[0] if name.startswith("NDCG"))
    points = {
        name: [(100 * row["weight"], 100 * row[accuracy]) for row in rows] for name, rows in curves.items()
    }
    charts = [line_chart(f"Validation {accuracy}, %", points, label)]
    for number, (name, rows) in enumerate(curves.items()):
        values: dict[str, Points] = dict.fromkeys([*curves][:number], ())  # keeps the color of the curve
        values[name] = [(100 * row["weight"], row[name]) for row in rows]
        charts.append(line_chart(name.capitalize(), values, label))
    return [chart for chart in charts if chart is not None]


def training_charts(curves: Mapping[str, Sequence[CurvePoint]]) -> list[LineChart]:
    """Return charts of validation MRR and training loss; a model with fewer than two epochs has no line."""
    loss: dict[str, Points] = {}
    valid_mrr: dict[str, Points] = {}
    for name, points in curves.items():
        epochs = sorted(points, key=lambda point: point.epoch) if len(points) > 1 else []
        loss[name] = [(p.epoch, p.loss) for p in epochs if math.isfinite(p.loss)]
        measured = [(p.epoch, 100 * p.valid_mrr) for p in epochs if p.valid_mrr is not None]
        valid_mrr[name] = [(epoch, mrr) for epoch, mrr in measured if math.isfinite(mrr)]
    charts = [line_chart("Validation MRR, %", valid_mrr), line_chart("Training loss", loss)]
    return [chart for chart in charts if chart is not None]


def interval_positions(metric_value: MetricValue, largest: float) -> tuple[float, float, float] | None:
    """Return lower bound, value and upper bound on a scale from 0 to 100, where 100 is `largest`.

    A missing bound takes the position of the value. Without a finite value or a scale, returns None.
    """
    if not (math.isfinite(metric_value.value) and largest > 0):
        return None
    low, value, high = (
        100 * (metric_value.value if bound is None or not math.isfinite(bound) else bound) / largest
        for bound in (metric_value.low, metric_value.value, metric_value.high)
    )
    return low, value, high
