"""`hafvt rerank-curve`: what diversity and calibration of lists cost in accuracy, on validation targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hafvt.data.attribute_values import ItemAttribute
from hafvt.data.dataset import Dataset, Int64
from hafvt.errors import HafvtError
from hafvt.files import write_json
from hafvt.inference.recommender import Recommender
from hafvt.inference.rerank import divergence, unit_rows
from hafvt.inference.rules import NO_RULES, Rules, make_rules
from hafvt.inference.scorer import Float32
from hafvt.ops.top_k import top_k_columns
from hafvt.progress import progress
from hafvt.reports.report import RERANK_CURVES, write_run_report
from hafvt.settings import Folder, PositiveCount, check_arguments
from hafvt.tables import align_columns
from hafvt.training.run import open_run

WEIGHTS = tuple(number / 10 for number in range(10))


class Target(NamedTuple):
    """A validation target: its domain, the items before it, the item, and the scores of the domain."""

    domain: int
    history: Int64
    item: int
    scores: Float32

    def history_in_domain(self, recommender: Recommender) -> Int64:
        """Return the items of the history that are in the domain of the target."""
        items = recommender.catalog.domains[self.domain]
        return self.history[(self.history >= items.start) & (self.history < items.stop)]

    def listed(self, recommender: Recommender, rules: Rules, k: int) -> Int64:
        """Return the indices of the items that are recommended for the history under rules."""
        items = recommender.catalog.domains[self.domain]
        seen = self.history_in_domain(recommender) - items.start
        seen = seen if recommender.exclude_seen[self.domain] else seen[:0]
        none = np.empty(0, dtype=np.int64)
        if rules == NO_RULES:
            return top_k_columns(self.scores, k, seen) + items.start
        selector = recommender.selector(rules, self.domain)
        return selector.select(self.scores, k, seen, none, self.history) + items.start


@dataclass(frozen=True)
class RerankCurve:
    """Accuracy, and what re-ranking improves, for each weight; `str()` returns a table.

    Attributes:
        curves: by name, "diversity" and "calibration COLUMN": for each weight "weight", "NDCG@k", "HR@k" and
            the value of the name. Diversity is 1 - the mean cosine of all pairs of listed items; calibration
            the divergence of the list's attribute shares from those of the history, lower is better.
        k: length of the lists.
        num_targets: number of validation targets.
        folder: of the run.
    """

    curves: dict[str, list[dict[str, float]]]
    k: int
    num_targets: int
    folder: Path

    def __str__(self) -> str:
        lines = []
        for name, rows in self.curves.items():
            header = ["weight", f"NDCG@{self.k} (%)", f"HR@{self.k} (%)", name]
            cells = [
                [f"{row['weight']:.1f}", *(f"{100 * row[m]:.2f}" for m in (*row,)[1:3]), f"{row[name]:.3f}"]
                for row in rows
            ]
            lines += [*align_columns([header, *cells]), ""]
        lines.append(f"{self.num_targets:,} validation targets; wrote {self.folder / RERANK_CURVES}")
        return "\n".join(lines)


@check_arguments
def rerank_curve(
    run: Folder,
    *,
    calibrate: list[str] | None = None,
    k: PositiveCount = 10,
    targets: PositiveCount = 1000,
    data: str | Path | Dataset | None = None,
) -> RerankCurve:
    """Measure what diversity and calibration cost in accuracy, for weights from 0 to 0.9, in validation.

    The weights of recommend and serve may be chosen by it. The curves are written to rerank_curve.json in the
    folder of the run and, once the run is evaluated, shown in its report.

    Example: hafvt rerank-curve runs/hafvt --calibrate category

    Args:
        run: the folder of a finished run.
        calibrate: columns of the items table to calibrate, each alone, besides diversity.
        k: length of the lists.
        targets: the largest number of validation targets, which are drawn at random.
        data: the dataset, if it has moved since training.

    Raises:
        HafvtError: there is no finished run, a column is missing, or there are no validation targets.
    """
    opened, recommender = open_run(run, data), Recommender.open(run, data)
    if not len(opened.data.valid):
        raise HafvtError(f"{opened.data.folder} has no validation targets: prepare it with longer histories")
    random = np.random.default_rng(0)
    count = min(targets, len(opened.data.valid))
    positions = np.sort(random.choice(np.asarray(opened.data.valid), count, replace=False))
    rules = {"diversity": [make_rules(diversity=weight) for weight in WEIGHTS]}
    measures: dict[str, Callable[[Int64, Int64], float]] = {"diversity": partial(diversity, recommender)}
    for column in dict.fromkeys(calibrate or ()):
        name, values = f"calibration {column}", recommender.attributes.values(column)
        rules[name] = [make_rules(calibrate={column: weight}) for weight in WEIGHTS]
        measures[name] = partial(calibration, values)
    measured: dict[str, list[list[list[float]]]] = {name: [[] for _ in WEIGHTS] for name in rules}
    with progress(f"re-rank {opened.name}", count, "targets") as advance:
        for target in read_targets(recommender, opened.data, positions):
            for name, variants in rules.items():
                history = target.history_in_domain(recommender)
                for rule, results in zip(variants, measured[name], strict=True):
                    items = target.listed(recommender, rule, k)
                    place = np.flatnonzero(items == target.item)
                    gain = 1 / np.log2(place[0] + 2) if len(place) else 0.0
                    results.append([gain, len(place), measures[name](items, history)])
            advance(1)
    curves: dict[str, list[dict[str, float]]] = {name: [] for name in rules}
    for name, of_weights in measured.items():
        for weight, results in zip(WEIGHTS, of_weights, strict=True):
            accuracy, hits, values = np.array(results).T
            value = float(np.nanmean(values)) if np.isfinite(values).any() else 0.0
            row = {"weight": weight, f"NDCG@{k}": float(accuracy.mean()), f"HR@{k}": float(hits.mean())}
            curves[name].append({**row, name: value})
    write_json(opened.folder / RERANK_CURVES, {"k": k, "targets": count, "curves": curves})
    if (opened.folder / "results.json").exists():
        write_run_report(opened)
    return RerankCurve(curves, k, count, opened.folder)


def read_targets(recommender: Recommender, data: Dataset, positions: Int64) -> Iterator[Target]:
    """Yield the validation targets at positions of the flat arrays of a dataset, with their scores."""
    catalog_indices, unknown_ids = recommender.catalog.indices(data.item_table["item_id"])
    assert not unknown_ids  # the catalog has the items of the dataset, and those that were added
    times, users = data.request_times(positions), data.users_at(positions)
    for number, position in enumerate(positions.tolist()):
        history = catalog_indices[data.items[data.offsets[users[number]] : position]]
        domain = int(data.domains_of(data.items[position]))
        time = None if times is None else int(times[number])
        scores = recommender.scores([history], domain, time)[0]
        yield Target(domain, history, int(catalog_indices[data.items[position]]), scores)


def diversity(recommender: Recommender, items: Int64, _: Int64) -> float:
    """Return 1 - the mean cosine of all pairs of listed items with a vector; NaN without a pair."""
    rows = unit_rows(recommender.vectors, items)
    rows = rows[rows.any(axis=1)].astype(np.float64)
    count = len(rows)
    if count < 2:
        return float("nan")
    return float(1 - ((rows.sum(0) ** 2).sum() - count) / (count * (count - 1)))


def calibration(attribute: ItemAttribute, items: Int64, history: Int64) -> float:
    """Return the divergence of listed items from a history in attribute shares; NaN if one has no values."""
    p, q = (attribute.shares(np.zeros(len(one), dtype=np.int64), one, 1)[0] for one in (history, items))
    return float(divergence(p[p > 0], q[p > 0])) if p.any() and q.any() else float("nan")
