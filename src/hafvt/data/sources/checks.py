"""Published properties of the paper's scenarios, beside those of a prepared dataset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.tables import align_columns

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


class Check(NamedTuple):
    """A property of a dataset: its name, its published value (empty if there is none) and its value."""

    name: str
    expected: str
    actual: str

    @property
    def verdict(self) -> str:
        """Whether both values agree: "ok", "differs", or empty if there is no published value."""
        return "" if not self.expected else "ok" if self.expected == self.actual else "differs"


def checks_table(checks: Sequence[Check]) -> str:
    """Return a plain text table of checks."""
    rows = [(check.name, check.expected or "-", check.actual, check.verdict) for check in checks]
    return "\n".join(align_columns([("property", "expected", "actual", ""), *rows], text_columns=4))


def find_scenario(data: Dataset) -> Scenario | None:
    """Return the scenario of the paper that a dataset is, by its numbers of items or its domain names."""
    names, sizes = tuple(d.name for d in data.domains), tuple(map(len, data.domains))
    return next((s for s in SCENARIOS if sizes == s.items or names == s.domains), None)


def table1_checks(data: Dataset) -> list[Check]:
    """Return the rows of the paper's Table 1 beside those of a dataset."""
    values = {f"items of {domain.name}": f"{len(domain):,}" for domain in data.domains}
    values["training sequences"] = f"{np.count_nonzero(np.asarray(data.train_lengths) > 1):,}"
    for label, positions in (("validation", data.valid), ("test", data.test)):
        counts = np.bincount(data.domains_of(data.items[positions]), minlength=len(data.domains))
        for domain, count in zip(data.domains, counts.tolist(), strict=True):
            values[f"{label} targets in {domain.name}"] = f"{count:,}"
    values["mean length"] = f"{len(data.items) / max(data.num_users, 1):.2f}"
    expected = [""] * len(values)
    if s := find_scenario(data):
        expected = [f"{number:,}" for number in (*s.items, s.train, *s.valid, *s.test, s.mean_length)]
    return [Check(name, expected[n], value) for n, (name, value) in enumerate(values.items())]


def sequence_checks(data: Dataset, window_days: int | None) -> list[Check]:
    """Check the validation and test sequences of a dataset against those of C2DSR's release.

    Each user of the dataset is a sequence, named USER#SEQUENCE. Lengths include the target. A sequence may
    span `window_days`; None stands for any time.
    """
    valid, test = data.users_at(data.valid), data.users_at(data.test)
    frame = pl.DataFrame(
        {
            "sequence": np.repeat(np.arange(data.num_users), np.diff(data.offsets)),
            "item": np.asarray(data.items),
            "domain": data.domains_of(data.items),
            "time": np.asarray(data.times),
        }
    ).filter(pl.col("sequence").is_in([*valid.tolist(), *test.tolist()]))
    sequences = frame.group_by("sequence").agg(
        length=pl.len(),
        repeated=pl.len() - pl.col("item").n_unique(),
        fewest=pl.min_horizontal((pl.col("domain") == n).sum() for n in range(len(data.domains))),
        days=(pl.col("time").max() - pl.col("time").min()) / SECONDS_PER_DAY,
    )
    lengths, num_long = sequences["length"], (sequences["days"] > (window_days or np.inf)).sum()
    users = [{name.rpartition("#")[0] for name in data.user_ids.gather(numbers)} for numbers in (valid, test)]
    return [
        Check("lengths of validation and test", LENGTHS, f"{lengths.min() or 0!s} to {lengths.max() or 0!s}"),
        Check("fewest items of a domain in one", f"{MIN_PER_DOMAIN}", str(sequences["fewest"].min() or 0)),
        Check("repeated items in one", "0", f"{sequences['repeated'].sum():,}"),
        Check("users of both validation and test", "0", f"{len(users[0] & users[1]):,}"),
        Check("sequences longer than the window", "0" if window_days else "", f"{num_long:,}"),
    ]
