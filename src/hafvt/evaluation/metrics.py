"""Metrics as pure functions of ranks, with bootstrap intervals over users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Dataset, Int64
from hafvt.files import atomic_file

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class MetricValue:
    """A metric, as a fraction of 1, with the bounds of its 95 % interval."""

    value: float
    low: float | None = None
    high: float | None = None


Results = dict[str, dict[str, MetricValue]]
"""Of one model: per domain and "overall", each metric."""


@dataclass(frozen=True)
class Ranks:
    """One row per target.

    Attributes:
        positions: (n,) position of the target in the dataset's interactions.
        users: (n,) user index.
        domains: (n,) number of the target's domain.
        ranks: (n,) rank of the target, 1 is best; a tie counts half.
        candidates: (n,) how many items were ranked.
    """

    positions: Int64
    users: Int64
    domains: Int64
    ranks: Float64
    candidates: Int64

    def write(self, path: str | Path, data: Dataset) -> None:
        """Writes a Parquet table: user_id, domain, item_id, rank, candidates."""
        names = np.array([domain.name for domain in data.domains])
        table = pl.DataFrame(
            {
                "user_id": data.user_ids.gather(self.users),
                "domain": names[self.domains],
                "item_id": data.item_table["item_id"].gather(np.asarray(data.items)[self.positions]),
                "rank": self.ranks,
                "candidates": self.candidates,
            }
        )
        with atomic_file(path) as temporary:
            table.write_parquet(temporary)


def concat_ranks(parts: Sequence[Ranks]) -> Ranks:
    """Returns the ranks of several sets of targets as one, in the order of their positions."""
    order = np.argsort(np.concatenate([part.positions for part in parts]), kind="stable")
    names = [field.name for field in fields(Ranks)]
    return Ranks(*(np.concatenate([getattr(part, name) for part in parts])[order] for name in names))


def reciprocal(ranks: Float64) -> Float64:
    """Returns 1 / rank, without cut-off: its mean is the MRR."""
    return 1 / ranks


def ndcg(k: int) -> Callable[[Float64], Float64]:
    """Returns the NDCG@k of one relevant item: 1 / log2(1 + rank) up to rank k, 0 beyond."""
    return lambda ranks: np.where(ranks <= k, 1 / np.log2(1 + ranks), 0.0)


def hit(k: int) -> Callable[[Float64], Float64]:
    """Returns the HR@k: 1 up to rank k, 0 beyond."""
    return lambda ranks: (ranks <= k).astype(np.float64)


METRICS: dict[str, Callable[[Float64], Float64]] = {
    "MRR": reciprocal,
    "NDCG@5": ndcg(5),
    "NDCG@10": ndcg(10),
    "HR@1": hit(1),
    "HR@5": hit(5),
    "HR@10": hit(10),
}


def domain_mrrs(ranks: Ranks, domains: int) -> list[float]:
    """Returns the MRR of each domain, 0 where it has no targets."""
    found = [ranks.ranks[ranks.domains == d] for d in range(domains)]
    return [float(reciprocal(part).mean()) if len(part) else 0.0 for part in found]


def mean_mrr(ranks: Ranks) -> float:
    """Returns the MRR averaged over the domains that have targets: what selects a checkpoint."""
    values = [reciprocal(ranks.ranks[ranks.domains == d]).mean() for d in np.unique(ranks.domains)]
    return float(np.mean(values)) if values else 0.0


def summarize(ranks: Ranks, domains: list[str], resamples: int = 1000, seed: int = 0) -> Results:
    """Returns every metric per domain and overall, with 95 % bootstrap intervals over users.

    "overall" is the mean of the domains' figures, so that a big domain does not hide a small one.

    Args:
        ranks: of the targets.
        domains: names of the domains; those without targets are left out.
        resamples: number of bootstrap samples of users.
        seed: of the samples.
    """
    _, user = np.unique(ranks.users, return_inverse=True)
    users = int(user.max(initial=-1)) + 1
    present = [d for d in range(len(domains)) if (ranks.domains == d).any()]
    # Per user and domain: the number of targets and the sum of each metric over them.
    sums = np.zeros((users, len(present), len(METRICS) + 1))
    for column, domain in enumerate(present):
        rows = ranks.domains == domain
        for number, metric in enumerate(METRICS.values()):
            np.add.at(sums[:, column, number], user[rows], metric(ranks.ranks[rows]))
        np.add.at(sums[:, column, -1], user[rows], 1.0)

    def means(weighted: Float64) -> Float64:
        """(..., domains, metrics + 1) sums -> (..., domains + 1, metrics) means, the last row overall."""
        with np.errstate(invalid="ignore", divide="ignore"):
            per_domain = weighted[..., :-1] / weighted[..., -1:]
        return np.concatenate([per_domain, per_domain.mean(-2, keepdims=True)], axis=-2)

    random = np.random.default_rng(seed)
    flat = sums.reshape(users, -1)
    samples = np.empty((resamples, flat.shape[1]))
    for row in range(resamples):
        samples[row] = np.bincount(random.integers(users, size=users), minlength=users) @ flat
    low, high = np.nanpercentile(means(samples.reshape(resamples, *sums.shape[1:])), [2.5, 97.5], axis=0)
    value = means(sums.sum(0))
    rows = [domains[d] for d in present] + (["overall"] if len(present) > 1 else [])
    return {
        name: {
            metric: MetricValue(float(value[r, m]), float(low[r, m]), float(high[r, m]))
            for m, metric in enumerate(METRICS)
        }
        for r, name in enumerate(rows)
    }
