"""Training interactions of other users that are later than targets."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hafvt.cli import main
from hafvt.data.info import info
from hafvt.data.leakage import measure_leakage
from hafvt.data.prepare import prepare
from tests.data.helpers import log_of

# Users a and b have targets at times 3, 4 and 30, 40; user c has no target, and 2 late interactions.
LOG = log_of(
    *[("a", item, time) for item, time in zip("wxyz", (1, 2, 3, 4), strict=True)],
    *[("b", item, time) for item, time in zip("wxyz", (10, 20, 30, 40), strict=True)],
    *[("c", item, time) for item, time in zip("wx", (3, 35), strict=True)],
)


def test_leakage_of_leave_one_out_counts_later_training_interactions(tmp_path: Path) -> None:
    leakage = measure_leakage(prepare(LOG, None, tmp_path / "out"))
    # Training: 1, 2 of a, 10, 20 of b, 3, 35 of c. Later than 3: 10, 20, 35; than 4 too; than 30: 35.
    assert (leakage.targets, leakage.leaking_targets) == (4, 3)
    assert leakage.later_share == pytest.approx((3 + 3 + 1 + 0) / 4 / 6)


def test_leakage_equals_a_count_over_all_pairs(small) -> None:
    train = set(small.train_positions().tolist())
    later = [
        [small.times[p] > small.times[target] for p in train]
        for target in np.concatenate([small.valid, small.test])
    ]
    leakage = measure_leakage(small)
    assert leakage.leaking_targets == sum(any(row) for row in later)
    assert leakage.later_share == pytest.approx(np.mean(later))


def test_info_and_prepare_print_the_leakage_once_in_one_line(tmp_path: Path, capsys) -> None:
    LOG.write_csv(tmp_path / "log.csv")
    words = ["prepare", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out")]
    line = (
        "leakage: training has later interactions of other users for 3 of 4 targets (75.0%), on average "
        "29.2% of all training interactions: a split by time (prepare --split time or --split-at) has none"
    )
    assert main(words) == 0
    printed = capsys.readouterr()
    assert (printed.err + printed.out).replace("\n", " ").count(line) == 1
    assert str(info(tmp_path / "out")).splitlines().count(line) == 1


def test_split_by_time_has_no_leakage(tmp_path: Path) -> None:
    data = prepare(LOG, None, tmp_path / "out", split_at=["4", "30"])
    assert measure_leakage(data)[1:] == (0, 0.0)
    assert "leakage" not in str(info(data))
