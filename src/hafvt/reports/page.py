"""Render the view of a report as one self-contained HTML page.

The page loads nothing from the network: it has no script, pictures are data: URIs, and a strict content
security policy names the hash of the only style sheet. Jinja2 escapes all text.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hafvt.evaluation.list_metrics import ListResults, list_cells, list_header, list_metric_names
from hafvt.evaluation.metrics import MetricValue, Results
from hafvt.evaluation.tables import best_models, domains_of, interval, metrics_of
from hafvt.files import atomic_file
from hafvt.reports import charts
from hafvt.reports.charts import CurvePoint
from hafvt.reports.render import render
from hafvt.tables import percent

MAX_COMPARED = 4  # models that the first sentence compares with the best
RECENT_ITEMS = 12  # items of a history that are always visible; earlier ones are folded
PICTURE_URI = re.compile(r"data:image/(?:jpeg|png);base64,[A-Za-z0-9+/]+={0,2}")

METRIC_MEANINGS = {
    "MRR": "mean reciprocal rank: 100 if the item chosen next always came first, 50 if always second",
    "NDCG": "like a hit rate, but a lower place counts less",
    "HR": "hit rate: how often, of 100 times, the item chosen next was among the first k",
    "recall": "as the hit rate, since one item is chosen next",
    "precision": "the hit rate divided by k",
    "MAP": "as the MRR, but 0 where the item chosen next is not among the first k",
}


@dataclass(frozen=True)
class ItemCard:
    """An item as the page shows it; `picture` is a data: URI, see `safe_picture`."""

    item_id: str
    domain: str
    title: str | None
    picture: str | None

    @property
    def name(self) -> str:
        """The title, or else the id."""
        return (self.title or "").strip() or f"item {self.item_id}"

    @property
    def safe_picture(self) -> str | None:
        """The picture if it is a data: URI of a JPEG or PNG in base64, else None: a placeholder is shown."""
        return self.picture if self.picture and PICTURE_URI.fullmatch(self.picture) else None


@dataclass(frozen=True)
class RankedItem:
    """An item in a user's top k.

    Attributes:
        item: the item.
        score: of the model.
        shares: fraction of the score by (branch, modality), summing to 1; empty where the model has none.
        is_target: whether it is the item that the user chose next.
        reason: the item of the history that contributes most to the score, and its share; None if unknown.
    """

    item: ItemCard
    score: float
    shares: Mapping[tuple[str, str], float]
    is_target: bool
    reason: tuple[ItemCard, float] | None = None

    @property
    def largest_share(self) -> tuple[str, str, float]:
        """Branch, modality and value of the largest share."""
        (branch, modality), share = max(self.shares.items(), key=lambda pair: pair[1])
        return branch, modality, share


@dataclass(frozen=True)
class UserExample:
    """A user's history, the item that the user chose next, and what a model recommends.

    Attributes:
        user_id: the user's id.
        domain: domain of the target.
        history: items before the target, oldest first.
        target: the item that the user chose next.
        target_rank: its rank among the items that may be listed; 1 is best, a tie counts half. Infinite
            for an item of the history that may not be listed.
        recommendations: best first.
    """

    user_id: str
    domain: str
    history: tuple[ItemCard, ...]
    target: ItemCard
    target_rank: float
    recommendations: tuple[RankedItem, ...]


def write_page(
    path: str | Path,
    *,
    title: str,
    results: Mapping[str, Results],
    subset_results: Mapping[str, Results] | None = None,
    list_results: Mapping[str, ListResults] | None = None,
    curves: Mapping[str, Sequence[CurvePoint]],
    users: Sequence[UserExample],
    notes: Sequence[str] = (),
    rerank_curves: Mapping[str, Sequence[Mapping[str, float]]] | None = None,
) -> None:
    """Write the page atomically.

    Args:
        path: of the page.
        title: heading of the page.
        results: by model: by domain and "overall", each metric.
        subset_results: the same for subsets of the targets, by model and subset.
        list_results: by model, the metrics of recommended lists.
        curves: by model: its epochs; a model may have none.
        users: examples of users and recommendations.
        notes: lines of the footer, such as the protocol.
        rerank_curves: see `charts.rerank_charts`.
    """
    style = files("hafvt.reports").joinpath("templates/page.css").read_text(encoding="utf-8").strip()
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    page = render(
        "page.html",
        title=title,
        style=Markup(style),
        style_hash=f"sha256-{digest}",
        notes=notes,
        **_results_view(results, subset_results or {}),
        **_lists_view(list_results or {}),
        curves=curves,
        charts=charts.training_charts(curves),
        rerank_charts=charts.rerank_charts(rerank_curves or {}),
        chart_size=charts.CHART_SIZE,
        **_users_view(users, domains_of(results)),
    )
    with atomic_file(path) as temporary:
        # UTF-8 cannot encode a lone surrogate; browsers show its character reference as U+FFFD.
        temporary.write_bytes(page.encode("utf-8", "xmlcharrefreplace"))


def _results_view(results: Mapping[str, Results], subset_results: Mapping[str, Results]) -> dict[str, Any]:
    metrics = metrics_of(results)
    return {
        "domains": [_domain_view(results, subset_results, domain, metrics) for domain in domains_of(results)],
        "headline": _headline(results),
        "meanings": {
            name: meaning
            for name, meaning in METRIC_MEANINGS.items()
            if any(metric.split("@")[0] == name for metric in metrics)
        },
        "metrics": metrics,
        "several_models": len(results) > 1,
        "has_subsets": bool(subset_results),
    }


def _lists_view(list_results: Mapping[str, ListResults]) -> dict[str, Any]:
    """Return heading and rows of the table of recommended lists, domain by domain."""
    metrics = list_metric_names(list_results)
    domains = domains_of(list_results)
    return {
        "list_header": list_header(metrics),
        "list_domains": {
            domain: {
                m: list_cells(rows[domain], metrics) for m, rows in list_results.items() if domain in rows
            }
            for domain in domains
        },
    }


def _headline(results: Mapping[str, Results]) -> dict[str, Any] | None:
    """Return the figures of the model with the best MRR and of the others, overall or in the first domain."""
    domains = domains_of(results)
    domain = "overall" if "overall" in domains else next(iter(domains), "")
    rows = {
        name: result[domain]
        for name, result in results.items()
        if "MRR" in result.get(domain, {}) and math.isfinite(result[domain]["MRR"].value)
    }
    if not rows:
        return None
    best, *others = sorted(rows, key=lambda name: -rows[name]["MRR"].value)
    mrr = rows[best]["MRR"].value
    next_mrr = rows[others[0]]["MRR"].value if others else 0.0
    hits = {
        name: f"{100 * rows[name]['HR@10'].value:.0f}" for name in (best, *others) if "HR@10" in rows[name]
    }
    return {
        "model": best,
        "domain": domain,
        "mrr": percent(mrr),
        "hits": hits.pop(best, ""),
        "other_hits": list(hits.items())[:MAX_COMPARED],
        "runner_up": others[0] if next_mrr > 0 else "",
        "gain": f"{100 * (mrr / next_mrr - 1):+.0f}" if next_mrr > 0 else "",
    }


def _domain_view(
    results: Mapping[str, Results],
    subset_results: Mapping[str, Results],
    domain: str,
    metrics: Sequence[str],
) -> dict[str, Any]:
    """Return the rows of the results table for one domain: the models, then the subsets of their targets."""
    all_results = {**results, **subset_results}
    rows = {name: result[domain] for name, result in all_results.items() if domain in result}
    missing = MetricValue(math.nan)
    mrrs = {name: row.get("MRR", missing) for name, row in rows.items()}
    bounds = [bound for mrr in mrrs.values() for bound in (mrr.value, mrr.high) if bound is not None]
    largest = max((bound for bound in bounds if math.isfinite(bound)), default=0.0)
    best = {metric: best_models(results, domain, metric) for metric in metrics}
    return {
        "name": domain,
        "rows": [
            {
                "model": name,
                "mrr_interval": charts.interval_positions(mrrs[name], largest),
                "cells": [
                    {
                        "value": percent(row.get(metric, missing).value),
                        "interval": interval(row.get(metric, missing)),
                        "is_best": name in best[metric],
                    }
                    for metric in metrics
                ],
            }
            for name, row in rows.items()
        ],
    }


def _users_view(users: Sequence[UserExample], result_domains: Sequence[str]) -> dict[str, Any]:
    """Return the users with a color number per domain, and the branches and modalities of all shares."""
    ranked_items = [ranked for user in users for ranked in user.recommendations]
    items = [item for user in users for item in (*user.history, user.target)]
    items += [ranked.item for ranked in ranked_items]
    domains = dict.fromkeys([*result_domains, *(user.domain for user in users), *(i.domain for i in items)])
    domains.pop("overall", None)
    keys = [key for ranked in ranked_items for key in ranked.shares]
    return {
        "users": users,
        "recent": RECENT_ITEMS,
        "domain_colors": {name: number for number, name in enumerate(domains)},
        "branches": list(dict.fromkeys(branch for branch, _ in keys)),
        "modalities": list(dict.fromkeys(modality for _, modality in keys)),
    }
