"""Paired tests: sure where they must be, unsure where nothing is there, corrected for their number."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, wilcoxon

from hafvt.evaluation.significance import holm, paired_test


def test_a_clear_difference_and_none():
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


def test_chance_is_taken_for_chance_as_often_as_it_should():
    random = np.random.default_rng(1)
    tests = [paired_test(random.normal(0, 1, 80), resamples=400, seed=n) for n in range(200)]
    assert 0.005 <= np.mean([test.bootstrap < 0.05 for test in tests]) <= 0.11
    assert 0.005 <= np.mean([test.wilcoxon < 0.05 for test in tests]) <= 0.11


def test_wilcoxon_is_scipys_on_many_ties():
    differences = np.array([0.0] * 30 + [0.5] * 12 + [-0.5] * 4 + [0.1, -0.2])
    expected = wilcoxon(differences, zero_method="zsplit", method="approx").pvalue
    assert paired_test(differences).wilcoxon == pytest.approx(expected)


def test_holm():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    p = [0.001, 0.2, 0.04, 0.011]
    assert all(a >= b for a, b in zip(holm(p), false_discovery_control(p), strict=True))
