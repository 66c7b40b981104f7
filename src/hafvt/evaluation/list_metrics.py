"""Metrics of recommended lists beyond accuracy: coverage, Gini, popularity, novelty, diversity, calibration.

`docs/explanation/evaluation.md` defines each. They need no target, so they have no interval over users.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Dataset, Domain, Int64
from hafvt.evaluation.calibration import LISTS_PER_CHUNK, item_attributes, mean_divergence
from hafvt.evaluation.ranks import Float64, Ranks
from hafvt.features.table import FeatureTable
from hafvt.tables import ABSENT, percent

LIST_LENGTH = 10

ListResults = dict[str, dict[str, float | None]]
"""Domain name or "overall" -> metric -> value; None where the metric is not defined."""

FORMATS = {
    "coverage@10": percent,
    "popularity rank": "{:,.1f}".format,
    "popularity bias": "{:+.2f}".format,
    "novelty": "{:.2f}".format,
}
"""How tables show a metric; coverage is in %. Others have three digits."""


def summarize_lists(ranks: Ranks, data: Dataset) -> ListResults:
    """Return the metrics of the recommended lists per domain and as the mean of the domains ("overall").

    Without lists, as of protocols that draw negatives, nothing is returned.
    """
    if ranks.lists is None:
        return {}
    tables = {name: FeatureTable.open(data.folder / "features" / name) for name in data.feature_names}
    attributes = item_attributes(data)
    train_counts, results = data.train_counts(), ListResults()
    for number, domain in enumerate(data.domains):
        rows = (ranks.domains == number) & (ranks.lists >= 0).any(1)
        lists, positions = ranks.lists[rows], ranks.positions[rows]
        if not len(lists):
            continue
        counts = train_counts[domain.start : domain.stop]
        shares = np.maximum(counts, 1) / max(counts.sum(), 1)
        results[domain.name] = {
            "coverage@10": len(np.unique(lists[lists >= 0])) / len(domain),
            "Gini@10": gini(np.bincount(lists[lists >= 0] - domain.start, minlength=len(domain))),
            "popularity rank": mean_over_lists(popularity_ranks(counts), lists, domain),
            "popularity bias": popularity_bias(counts, lists, data, positions, domain),
            "novelty": mean_over_lists(-np.log2(shares), lists, domain),
            **{f"diversity {name}": mean_diversity(table, lists) for name, table in tables.items()},
            **{
                f"calibration {attribute.name}": mean_divergence(attribute, data, positions, lists, domain)
                for attribute in attributes
            },
        }
    if len(results) > 1:
        results["overall"] = {
            name: mean_of_known([row[name] for row in results.values()])
            for name in next(iter(results.values()))
        }
    return results


def popularity_ranks(counts: npt.NDArray[np.integer]) -> Float64:
    """Return the rank of each item by its count, 1 for the largest; equal counts share their mean rank."""
    ordered = np.sort(counts)
    higher = len(counts) - np.searchsorted(ordered, counts, side="right")
    not_lower = len(counts) - np.searchsorted(ordered, counts, side="left")
    ranks: Float64 = (1 + higher + not_lower) / 2
    return ranks


def mean_over_lists(values: Float64, lists: Int64, domain: Domain) -> float:
    """Return the mean over lists, (n, k), of the mean value of their items; -1 in a list is padding."""
    is_listed = lists >= 0
    listed_values = np.where(is_listed, values[np.where(is_listed, lists - domain.start, 0)], 0)
    return float((listed_values.sum(1) / is_listed.sum(1)).mean())


def gini(counts: npt.NDArray[np.integer]) -> float:
    """Return the Gini index of counts: 0 if all are equal, towards 1 if one item has them all."""
    places = np.arange(1, len(counts) + 1)
    weighted = float((places * np.sort(counts)).sum())
    return 2 * weighted / (len(counts) * float(counts.sum())) - (len(counts) + 1) / len(counts)


def popularity_bias(
    counts: npt.NDArray[np.integer], lists: Int64, data: Dataset, positions: Int64, domain: Domain
) -> float | None:
    """Return how much more popular the listed items are than those of the histories: 0 as popular, 1 twice.

    It is the popularity lift of Abdollahpouri et al. (2019): g(lists) / g(histories) - 1, where g is the mean
    over lists, or histories, of the mean number of training interactions of their items. Targets without a
    history in the domain are left out; None where none remains.
    """
    items = np.asarray(data.items)
    is_in_domain = (items >= domain.start) & (items < domain.stop)
    values = np.where(is_in_domain, counts[np.where(is_in_domain, items - domain.start, 0)], 0)
    starts = np.asarray(data.offsets)[data.users_at(positions)]
    lengths, sums = (
        totals[positions] - totals[starts]
        for totals in (np.concatenate([[0], part.cumsum(dtype=np.int64)]) for part in (is_in_domain, values))
    )
    has_history = lengths > 0
    chosen = float((sums[has_history] / lengths[has_history]).mean()) if has_history.any() else 0.0
    if not chosen:
        return None
    return mean_over_lists(counts.astype(np.float64), lists[has_history], domain) / chosen - 1


def mean_diversity(table: FeatureTable, lists: Int64) -> float | None:
    """Return the mean over lists of 1 - the mean cosine of all pairs of their items with a vector.

    Lists with fewer than two such items are left out; None where none remains.
    """
    diversities = []
    for start in range(0, len(lists), LISTS_PER_CHUNK):
        part = lists[start : start + LISTS_PER_CHUNK]
        has_vector = (part >= 0) & table.present[part]
        vectors = np.asarray(table.rows[part], dtype=np.float32) * has_vector[:, :, None]  # (n, k, e)
        norms = np.linalg.norm(vectors, axis=2, keepdims=True)
        total = (vectors / np.where(norms > 0, norms, 1)).sum(1, dtype=np.float64)  # (n, e)
        counts = has_vector.sum(1)
        is_defined = counts > 1
        # The squared norm of the sum of unit vectors is their number plus the cosines of all ordered pairs.
        cosines = ((total**2).sum(1) - counts)[is_defined] / (counts * (counts - 1))[is_defined]
        diversities.append(1 - cosines)
    values = np.concatenate(diversities)
    return float(values.mean()) if len(values) else None


def mean_of_known(values: list[float | None]) -> float | None:
    """Return the mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def list_metric_names(results: Mapping[str, ListResults]) -> list[str]:
    """Return the names of the metrics of all models, in the order of their first occurrence."""
    return list(dict.fromkeys(name for result in results.values() for row in result.values() for name in row))


def list_header(metrics: list[str]) -> list[str]:
    """Return the headings of the columns of a table, with units."""
    units = {"coverage@10": " (%)", "novelty": " (bits)", "calibration": " (nats)"}
    return [
        name + units.get("calibration" if name.startswith("calibration ") else name, "") for name in metrics
    ]


def list_cells(row: Mapping[str, float | None], metrics: list[str]) -> list[str]:
    """Return the values of a domain as text, a dash where a metric is not defined."""
    values = [(name, row.get(name)) for name in metrics]
    return [ABSENT if value is None else FORMATS.get(name, "{:.3f}".format)(value) for name, value in values]
