"""Paired significance tests over users: is the difference of two models more than chance?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hafvt.errors import missing_package
from hafvt.evaluation.ranks import Float64


@dataclass(frozen=True)
class PairedTest:
    """The difference of a metric between two models, paired by user.

    Attributes:
        difference: mean of the users' differences, as a fraction of 1.
        low: lower bound of its 95 % bootstrap interval.
        high: upper bound.
        bootstrap: two-sided p-value: twice the share of resamples on the other side of 0.
        wilcoxon: p-value of Wilcoxon's signed-rank test.
    """

    difference: float
    low: float
    high: float
    bootstrap: float
    wilcoxon: float


def paired_test(
    differences: Float64, weights: Float64 | None = None, *, resamples: int = 2000, seed: int = 0
) -> PairedTest:
    """Test whether the users' differences are centered at 0.

    With several targets per user, as in a split by time, the bootstrap draws users with all their targets,
    and its mean is that over targets, as in tables. Wilcoxon's test ranks the users' mean differences.

    Args:
        differences: (users,) differences of a metric, each a mean over the targets of the user.
        weights: (users,) number of targets of each user; default: one each.
        resamples: number of bootstrap samples of users.
        seed: of the samples.

    Raises:
        HafvtError: scipy is not installed.
    """
    try:
        from scipy.stats import wilcoxon
    except ImportError:
        raise missing_package("compare", "scipy") from None
    random, num_users = np.random.default_rng(seed), len(differences)
    weights = np.ones(num_users) if weights is None else weights
    sums = differences * weights
    means = np.empty(resamples)
    for row in range(resamples):
        users = random.integers(num_users, size=num_users)
        means[row] = sums[users].sum() / weights[users].sum()
    # Counting the sample itself keeps the p-value above 0, which a finite number of resamples cannot show.
    sides = (1 + (means <= 0).sum(), 1 + (means >= 0).sum())
    bootstrap = min(1.0, 2 * min(sides) / (resamples + 1))
    low, high = np.percentile(means, [2.5, 97.5])
    all_zero = not differences.any()
    p = 1.0 if all_zero else float(wilcoxon(differences, zero_method="zsplit", method="approx").pvalue)
    mean = float(sums.sum() / weights.sum())
    return PairedTest(mean, float(low), float(high), float(bootstrap), p)


def holm(p_values: list[float]) -> list[float]:
    """Return p-values with Holm's (1979) correction for multiple tests, in the order of the input."""
    count, largest = len(p_values), 0.0
    corrected = [0.0] * count
    for step, index in enumerate(sorted(range(count), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (count - step) * p_values[index]))
        corrected[index] = largest
    return corrected
