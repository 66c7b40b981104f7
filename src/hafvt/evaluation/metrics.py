"""Metrics as pure functions of ranks, with bootstrap intervals over users.

To add a metric, write a function of ranks and add one line to `METRICS`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from hafvt.data.dataset import Bool
from hafvt.errors import ArgumentError
from hafvt.evaluation.ranks import Float64, Ranks


@dataclass(frozen=True)
class MetricValue:
    """A metric, as a fraction of 1, with the bounds of its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None


Results = dict[str, dict[str, MetricValue]]
"""The metrics of one model: domain name or "overall" -> metric name -> value."""


Metric = Callable[[Float64], Float64]
"""Maps the ranks of n targets, (n,), to n values, whose mean is the metric. Where the target ties with other
candidates, its rank counts each of them half: a target that ties with 3 others at the top has rank 2.5."""


def reciprocal_rank(ranks: Float64) -> Float64:
    """Return 1 / rank, without cut-off. Its mean is the MRR."""
    return 1 / ranks


def reciprocal_rank_at(k: int) -> Metric:
    """Return the MRR@k: 1 / rank up to rank k, else 0. Of one relevant item, it is the MAP@k, too."""
    return lambda ranks: np.where(ranks <= k, 1 / ranks, 0.0)


def ndcg(k: int) -> Metric:
    """Return the NDCG@k of one relevant item: 1 / log2(1 + rank) up to rank k, else 0."""
    return lambda ranks: np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def hit_rate(k: int) -> Metric:
    """Return the HR@k: 1 up to rank k, else 0. Of one relevant item, it is the recall@k, too."""
    return lambda ranks: (ranks <= k).astype(np.float64)


def precision(k: int) -> Metric:
    """Return the precision@k of one relevant item: 1 / k up to rank k, else 0."""
    return lambda ranks: (ranks <= k) / k


METRICS_AT: dict[str, Callable[[int], Metric]] = {
    "NDCG": ndcg,
    "HR": hit_rate,
    "recall": hit_rate,
    "precision": precision,
    "MAP": reciprocal_rank_at,
    "MRR": reciprocal_rank_at,
}
"""Metrics of the first k items, for any k."""

METRICS: dict[str, Metric] = {
    "MRR": reciprocal_rank,
    "NDCG@5": ndcg(5),
    "NDCG@10": ndcg(10),
    "HR@1": hit_rate(1),
    "HR@5": hit_rate(5),
    "HR@10": hit_rate(10),
}
"""The metrics of every evaluation."""

MAX_K = 1_000_000


def get_metric(name: str) -> Metric:
    """Return a metric by its name: one of `METRICS`, or one of `METRICS_AT` with its k, such as "HR@20".

    Raises:
        ArgumentError: there is no such metric.
    """
    family, _, k = name.partition("@")
    if name in METRICS:
        return METRICS[name]
    if family in METRICS_AT and re.fullmatch("[1-9][0-9]{0,6}", k) and int(k) <= MAX_K:
        return METRICS_AT[family](int(k))
    others = ", ".join(metric for metric in METRICS if "@" not in metric)
    raise ArgumentError(
        f"no metric {name!r}: choose {others}, or {', '.join(METRICS_AT)} with a number of items, such as "
        "NDCG@20"
    )


def metrics_at(ks: Iterable[int]) -> dict[str, Metric]:
    """Return the metrics of every evaluation and those of `METRICS_AT` at each k, by name.

    Raises:
        ArgumentError: a k is no whole number from 1 on.
    """
    for k in ks:
        if type(k) is not int or not 1 <= k <= MAX_K:
            raise ArgumentError(f"--at is {k!r}: choose whole numbers from 1 to {MAX_K}")
    return METRICS | {f"{name}@{k}": metric(k) for k in ks for name, metric in METRICS_AT.items()}


def domain_means(ranks: Ranks, num_domains: int, metric: Metric) -> list[float]:
    """Return a metric of each domain, 0 where a domain has no targets with another candidate."""
    ranks = ranks.with_rivals()
    domain_ranks = [ranks.ranks[ranks.domains == number] for number in range(num_domains)]
    return [float(metric(part).mean()) if len(part) else 0.0 for part in domain_ranks]


def mean_metric(ranks: Ranks, metric: Metric) -> float:
    """Return the mean of a metric of all domains that have targets: the criterion to select weights."""
    ranks = ranks.with_rivals()
    values = [metric(ranks.ranks[ranks.domains == d]).mean() for d in np.unique(ranks.domains)]
    return float(np.mean(values)) if values else 0.0


def mean_mrr(ranks: Ranks) -> float:
    """Return the mean of the MRRs of all domains that have targets."""
    return mean_metric(ranks, reciprocal_rank)


def summarize(
    ranks: Ranks,
    domains: list[str],
    rows: Bool | None = None,
    *,
    metrics: Mapping[str, Metric] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Results:
    """Return every metric per domain and overall, with 95 % bootstrap intervals over users.

    "overall" is the mean over the domains, so that a large domain does not outweigh a small one. Targets
    without another candidate are left out, because their rank is always 1.

    Args:
        ranks: of the targets.
        domains: names of the domains; the results omit domains without targets.
        rows: (n,) the targets that count; default: all. The samples are those of all targets, so that a
            domain whose targets all count has the same intervals.
        metrics: by name; default: `METRICS`.
        resamples: number of bootstrap samples of users.
        seed: seed of the samples.
    """
    metrics = METRICS if metrics is None else metrics
    is_counted = np.ones(len(ranks.ranks), np.bool_) if rows is None else rows
    is_counted, ranks = is_counted[ranks.has_rivals], ranks.with_rivals()
    if not is_counted.any():
        return {}
    _, user_rows = np.unique(ranks.users, return_inverse=True)
    num_users = int(user_rows.max(initial=-1)) + 1
    present = [number for number in range(len(domains)) if (is_counted & (ranks.domains == number)).any()]
    # Per user and domain: the sum of each metric over the targets and, last, the number of targets.
    sums = np.zeros((num_users, len(present), len(metrics) + 1))
    for column, number in enumerate(present):
        in_domain = is_counted & (ranks.domains == number)
        for index, metric in enumerate(metrics.values()):
            np.add.at(sums[:, column, index], user_rows[in_domain], metric(ranks.ranks[in_domain]))
        np.add.at(sums[:, column, -1], user_rows[in_domain], 1.0)

    def means(totals: Float64) -> Float64:
        """(..., domains, metrics + 1) sums -> (..., domains + 1, metrics) means, the last row overall."""
        with np.errstate(invalid="ignore", divide="ignore"):
            per_domain = totals[..., :-1] / totals[..., -1:]
        return np.concatenate([per_domain, per_domain.mean(-2, keepdims=True)], axis=-2)

    random = np.random.default_rng(seed)
    flat = sums.reshape(num_users, -1)
    samples = np.empty((resamples, flat.shape[1]))
    for row in range(resamples):
        samples[row] = np.bincount(random.integers(num_users, size=num_users), minlength=num_users) @ flat
    low, high = np.nanpercentile(means(samples.reshape(resamples, *sums.shape[1:])), [2.5, 97.5], axis=0)
    value = means(sums.sum(0))
    names = [domains[number] for number in present] + (["overall"] if len(present) > 1 else [])
    return {
        name: {
            metric: MetricValue(float(value[row, m]), float(low[row, m]), float(high[row, m]))
            for m, metric in enumerate(metrics)
        }
        for row, name in enumerate(names)
    }
