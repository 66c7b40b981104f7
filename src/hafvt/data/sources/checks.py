"""What a rebuilt scenario should hold beside what it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hafvt.data.dataset import Dataset, Int64

DAY = 86_400
SHARE = 3  # items that a sequence holds of each domain, at least
LENGTHS = "6 to 15"


class Scenario(NamedTuple):
    """What the paper's Table 1 says of a scenario.

    Attributes:
        domains: names, X first.
        items: of each domain.
        train: sequences.
        valid: targets in each domain.
        test: targets in each domain.
        length: mean.
        days: the longest span of a sequence.
    """

    domains: tuple[str, str]
    items: tuple[int, int]
    train: int
    valid: tuple[int, int]
    test: tuple[int, int]
    length: float
    days: int


SCENARIOS = (
    Scenario(("food", "kitchen"), (29_207, 34_886), 34_117, (2_722, 5_451), (2_747, 5_659), 9.91, 365),
    Scenario(("movie", "book"), (36_845, 63_937), 58_515, (2_032, 5_612), (1_978, 5_730), 11.98, 30),
)


@dataclass(frozen=True)
class Check:
    """A property: what is expected of it (nothing, where nobody published it), and what was found."""

    what: str
    expected: str
    found: str

    @property
    def verdict(self) -> str:
        """Whether the two agree, in a word."""
        return "" if not self.expected else "ok" if self.expected == self.found else "differs"


@dataclass(frozen=True)
class Prepared:
    """A dataset, what was checked of it, and what else is to be said."""

    dataset: Dataset
    checks: tuple[Check, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        """The checks, the notes, and where the dataset is."""
        return "\n".join([checks_table(self.checks), *self.notes, f"wrote {self.dataset.folder}"])


def checks_table(checks: Sequence[Check]) -> str:
    """Returns a table for the terminal."""
    rows = [("property", "expected", "found", "")]
    rows += [(check.what, check.expected or "-", check.found, check.verdict) for check in checks]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def find_scenario(data: Dataset) -> Scenario | None:
    """Returns the scenario of the paper that a dataset is, by its numbers of items or its domains' names."""
    names, sizes = tuple(d.name for d in data.domains), tuple(map(len, data.domains))
    return next((s for s in SCENARIOS if sizes == s.items or names == s.domains), None)


def table1_checks(data: Dataset) -> list[Check]:
    """Returns the rows of the paper's Table 1 beside what a dataset of two domains holds."""
    known = find_scenario(data)
    starts = np.array([d.start for d in data.domains])
    counts = {
        split: np.bincount(
            np.searchsorted(starts, data.items[positions], side="right") - 1, minlength=len(starts)
        )
        for split, positions in (("valid", data.valid), ("test", data.test))
    }
    checks = [
        Check(f"items of {d.name}", f"{known.items[n]:,}" if known else "", f"{len(d):,}")
        for n, d in enumerate(data.domains)
    ]
    trained = int((np.asarray(data.train_lengths) > 1).sum())
    checks.append(Check("training sequences", f"{known.train:,}" if known else "", f"{trained:,}"))
    for split, label in (("valid", "validation"), ("test", "test")):
        expected = (known.valid if split == "valid" else known.test) if known else None
        checks += [
            Check(
                f"{label} targets in {d.name}",
                f"{expected[n]:,}" if expected else "",
                f"{counts[split][n]:,}",
            )
            for n, d in enumerate(data.domains)
        ]
    mean = len(data.items) / max(data.num_users, 1)
    checks.append(Check("mean length", f"{known.length:.2f}" if known else "", f"{mean:.2f}"))
    return checks


def structure(data: Dataset, days: int | None) -> list[Check]:
    """Checks the sequences of validation and test.

    Args:
        data: a dataset each of whose rows is one sequence, named USER#SEQUENCE.
        days: the longest span of a sequence.

    Returns:
        What models.md 9.2 counts of C2DSR's release: lengths with the target, items of each domain, repeats,
        disjoint users, span in days.
    """
    targets = np.concatenate([data.valid, data.test])
    rows = data.users_at(targets)
    starts, stops = data.offsets[rows], targets + 1
    lengths = stops - starts
    slots = (
        np.repeat(starts, lengths) + np.arange(lengths.sum()) - np.repeat(lengths.cumsum() - lengths, lengths)
    )
    owner = np.repeat(np.arange(len(rows)), lengths)
    items, times = np.asarray(data.items)[slots], np.asarray(data.times)[slots]
    domain = np.searchsorted([d.start for d in data.domains], items, side="right") - 1
    met = np.bincount(owner * len(data.domains) + domain, minlength=len(rows) * len(data.domains))
    fewest = met.reshape(len(rows), -1).min(initial=met.max(initial=0))
    distinct = len(np.unique(owner.astype(np.int64) * data.domains[-1].stop + items))
    spans = np.zeros(len(rows))
    if len(slots):
        firsts = lengths.cumsum() - lengths
        spans = np.maximum.reduceat(times, firsts) - np.minimum.reduceat(times, firsts)
    users = [people(data, positions) for positions in (data.valid, data.test)]
    span = f"{lengths.min()} to {lengths.max()}" if len(lengths) else ""
    return [
        Check("lengths of validation and test", LENGTHS, span),
        Check("fewest items of a domain in one", f"{SHARE}", f"{fewest}"),
        Check("repeated items in one", "0", f"{len(items) - distinct:,}"),
        Check("users of both validation and test", "0", f"{len(users[0] & users[1]):,}"),
        Check(
            "sequences longer than the window",
            "0" if days else "",
            f"{int((spans > (days or np.inf) * DAY).sum()):,}",
        ),
    ]


def people(data: Dataset, positions: Int64) -> set[str]:
    """Returns the users behind the sequences of targets."""
    return {str(name).rpartition("#")[0] for name in data.user_ids.gather(data.users_at(positions))}
