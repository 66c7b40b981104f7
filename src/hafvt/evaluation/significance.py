"""Is one model better than another, or was it chance? Paired tests over users."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hafvt.errors import missing_package
from hafvt.evaluation.metrics import Float64


@dataclass(frozen=True)
class Paired:
    """A model against another, user by user.

    Attributes:
        difference: mean of the users' differences, as a fraction of 1.
        low: lower bound of its 95 % bootstrap interval.
        high: upper bound.
        bootstrap: two-sided p-value: twice the share of the resamples on the other side of 0.
        wilcoxon: p-value of Wilcoxon's signed-rank test.
    """

    difference: float
    low: float
    high: float
    bootstrap: float
    wilcoxon: float


def paired(differences: Float64, resamples: int = 2000, seed: int = 0) -> Paired:
    """Tests whether users' differences are centerd at 0.

    Args:
        differences: (users,) of a metric.
        resamples: bootstrap samples of users.
        seed: of the samples.
    """
    try:
        from scipy.stats import wilcoxon
    except ImportError:
        raise missing_package("compare", "scipy") from None
    random, users = np.random.default_rng(seed), len(differences)
    means = np.empty(resamples)
    for row in range(resamples):
        means[row] = differences[random.integers(users, size=users)].mean()
    # Counting the sample itself keeps the smallest p-value above 0, which so many resamples cannot show.
    sides = (1 + (means <= 0).sum(), 1 + (means >= 0).sum())
    bootstrap = min(1.0, 2 * min(sides) / (resamples + 1))
    low, high = np.percentile(means, [2.5, 97.5])
    same = not differences.any()
    p = 1.0 if same else float(wilcoxon(differences, zero_method="zsplit", method="approx").pvalue)
    return Paired(float(differences.mean()), float(low), float(high), float(bootstrap), p)


def holm(p_values: list[float]) -> list[float]:
    """Returns p-values corrected for their number (Holm, 1979), in the order given."""
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for place, number in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - place) * p_values[number]))
        corrected[number] = largest
    return corrected
