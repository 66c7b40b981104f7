"""Paired significance tests and their correction for multiple tests."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, wilcoxon

from hafvt.evaluation.significance import holm, paired_test


def test_paired_test_tells_clear_differences_from_none():
    random = np.random.default_rng(0)
    clear = paired_test(random.normal(0.05, 0.1, 500))
    assert clear.low < clear.difference < clear.high
    assert clear.low > 0
    assert max(clear.bootstrap, clear.wilcoxon) < 0.01
    worse = paired_test(random.normal(-0.05, 0.1, 500))
    assert worse.high < 0
    assert max(worse.bootstrap, worse.wilcoxon) < 0.01
    same = paired_test(np.zeros(50))
    assert (same.difference, same.bootstrap, same.wilcoxon) == (0.0, 1.0, 1.0)


def test_paired_test_without_a_difference_has_five_percent_false_positives():
    random = np.random.default_rng(1)
    tests = [paired_test(random.normal(0, 1, 80), resamples=400, seed=n) for n in range(200)]
    assert 0.005 <= np.mean([test.bootstrap < 0.05 for test in tests]) <= 0.11
    assert 0.005 <= np.mean([test.wilcoxon < 0.05 for test in tests]) <= 0.11


def test_paired_test_with_many_ties_has_scipys_wilcoxon_p_value():
    differences = np.array([0.0] * 30 + [0.5] * 12 + [-0.5] * 4 + [0.1, -0.2])
    expected = wilcoxon(differences, zero_method="zsplit", method="approx").pvalue
    assert paired_test(differences).wilcoxon == pytest.approx(expected)


def test_holm_equals_known_corrections():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    p = [0.001, 0.2, 0.04, 0.011]
    assert all(a >= b for a, b in zip(holm(p), false_discovery_control(p), strict=True))


def test_paired_test_with_weights_has_the_mean_over_targets_and_draws_whole_users():
    random = np.random.default_rng(0)
    weights = random.integers(1, 30, 200).astype(float)
    differences = random.normal(0.02, 0.1, 200) + 0.01 * (weights - 15)
    test = paired_test(differences, weights)
    assert test.difference == pytest.approx(np.average(differences, weights=weights))
    assert test.low < test.difference < test.high
    by_target = paired_test(np.repeat(differences, weights.astype(int)))
    assert by_target.difference == pytest.approx(test.difference)
    assert by_target.high - by_target.low < 0.5 * (
        test.high - test.low
    )  # targets of a user are not independent
