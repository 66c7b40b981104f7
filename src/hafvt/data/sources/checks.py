"""Published properties of the paper's scenarios, beside those of a prepared dataset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hafvt.data.dataset import Dataset, Int64

SECONDS_PER_DAY = 86_400
MIN_PER_DOMAIN = 3  # items of each domain in a sequence of C2DSR's release
LENGTHS = "6 to 15"  # lengths of its validation and test sequences, target included


class Scenario(NamedTuple):
    """A column of the paper's Table 1.

    Attributes:
        domains: names of the domains X and Y.
        items: number of items of each domain.
        train: number of training sequences.
        valid: validation targets in each domain.
        test: test targets in each domain.
        mean_length: mean length of the sequences.
        window_days: longest time span of a sequence, in days.
    """

    domains: tuple[str, str]
    items: tuple[int, int]
    train: int
    valid: tuple[int, int]
    test: tuple[int, int]
    mean_length: float
    window_days: int


SCENARIOS = (
    Scenario(("food", "kitchen"), (29_207, 34_886), 34_117, (2_722, 5_451), (2_747, 5_659), 9.91, 365),
    Scenario(("movie", "book"), (36_845, 63_937), 58_515, (2_032, 5_612), (1_978, 5_730), 11.98, 30),
)


@dataclass(frozen=True)
class Check:
    """A property of a dataset.

    Attributes:
        name: name of the property.
        expected: its published value, empty if there is none.
        actual: its value in the dataset.
    """

    name: str
    expected: str
    actual: str

    @property
    def verdict(self) -> str:
        """Whether both agree: "ok", "differs", or empty if there is no published value."""
        return "" if not self.expected else "ok" if self.expected == self.actual else "differs"


def checks_table(checks: Sequence[Check]) -> str:
    """Return a plain text table of checks."""
    rows = [("property", "expected", "actual", "")]
    rows += [(check.name, check.expected or "-", check.actual, check.verdict) for check in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def find_scenario(data: Dataset) -> Scenario | None:
    """Return the scenario of the paper that a dataset is, by its numbers of items or its domain names."""
    names, sizes = tuple(d.name for d in data.domains), tuple(map(len, data.domains))
    return next((s for s in SCENARIOS if sizes == s.items or names == s.domains), None)


def table1_checks(data: Dataset) -> list[Check]:
    """Return the rows of the paper's Table 1 beside those of a dataset of two domains."""
    scenario = find_scenario(data)
    checks = [
        Check(f"items of {d.name}", f"{scenario.items[n]:,}" if scenario else "", f"{len(d):,}")
        for n, d in enumerate(data.domains)
    ]
    num_train = int((np.asarray(data.train_lengths) > 1).sum())
    checks.append(Check("training sequences", f"{scenario.train:,}" if scenario else "", f"{num_train:,}"))
    for label, positions, expected in (
        ("validation", data.valid, scenario.valid if scenario else None),
        ("test", data.test, scenario.test if scenario else None),
    ):
        counts = np.bincount(data.domains_of(data.items[positions]), minlength=len(data.domains))
        checks += [
            Check(f"{label} targets in {d.name}", f"{expected[n]:,}" if expected else "", f"{counts[n]:,}")
            for n, d in enumerate(data.domains)
        ]
    mean = len(data.items) / max(data.num_users, 1)
    checks.append(Check("mean length", f"{scenario.mean_length:.2f}" if scenario else "", f"{mean:.2f}"))
    return checks


def sequence_checks(data: Dataset, window_days: int | None) -> list[Check]:
    """Check the validation and test sequences against those of C2DSR's release.

    Args:
        data: a dataset each of whose users is one sequence, named USER#SEQUENCE.
        window_days: longest time span of a sequence, in days; None for any.

    Returns:
        Lengths with the target, fewest items of a domain, repeated items, users of both validation and test,
        sequences that span more than the window.
    """
    targets = np.concatenate([data.valid, data.test])
    rows = data.users_at(targets)
    starts = data.offsets[rows]
    lengths = targets + 1 - starts
    firsts = lengths.cumsum() - lengths  # where each sequence starts in the arrays below
    slots = np.repeat(starts - firsts, lengths) + np.arange(lengths.sum())
    sequence = np.repeat(np.arange(len(rows)), lengths)
    items, times = np.asarray(data.items)[slots], np.asarray(data.times)[slots]
    cells = sequence * len(data.domains) + data.domains_of(items)
    counts = np.bincount(cells, minlength=len(rows) * len(data.domains))  # items of each domain
    distinct = len(np.unique(sequence.astype(np.int64) * data.num_items + items))
    spans = np.zeros(len(rows))
    if len(slots):
        spans = np.maximum.reduceat(times, firsts) - np.minimum.reduceat(times, firsts)
    num_long = int((spans > (window_days or np.inf) * SECONDS_PER_DAY).sum())
    num_shared = len(_users(data, data.valid) & _users(data, data.test))
    fewest = counts.min(initial=counts.max(initial=0))
    length_range = f"{lengths.min()} to {lengths.max()}" if len(lengths) else ""
    return [
        Check("lengths of validation and test", LENGTHS, length_range),
        Check(
            "fewest items of a domain in one",
            f"{MIN_PER_DOMAIN}",
            f"{fewest}",
        ),
        Check("repeated items in one", "0", f"{len(items) - distinct:,}"),
        Check("users of both validation and test", "0", f"{num_shared:,}"),
        Check("sequences longer than the window", "0" if window_days else "", f"{num_long:,}"),
    ]


def _users(data: Dataset, positions: Int64) -> set[str]:
    """Return the users whose sequences have the targets at these positions."""
    return {str(name).rpartition("#")[0] for name in data.user_ids.gather(data.users_at(positions))}
