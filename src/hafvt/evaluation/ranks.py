"""The ranks of targets: what every metric and every significance test is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Bool, Dataset, Int64
from hafvt.data.parquet import read_parquet
from hafvt.files import atomic_file

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """The ranks of n targets, one row per target.

    Attributes:
        positions: (n,) positions of the targets in `Dataset.items`.
        users: (n,) user indices.
        domains: (n,) number of each target's domain.
        ranks: (n,) rank of each target, 1 is best; fractional where the target ties with other candidates,
            infinite where the target is no candidate.
        candidates: (n,) number of ranked items.
        is_repeat: (n,) whether the history contains the target already.
        lists: (n, k) indices of the first k items that are recommended in the target's place, best first, -1
            where there are fewer; None if they were not collected.
        other_ranks: (n,) ranks by the other rule for items of the history: candidates where they are none,
            and the reverse; None if they were not collected.
        other_candidates: (n,) number of ranked items by the other rule.
    """

    positions: Int64
    users: Int64
    domains: Int64
    ranks: Float64
    candidates: Int64
    is_repeat: Bool
    lists: Int64 | None = None
    other_ranks: Float64 | None = None
    other_candidates: Int64 | None = None

    @classmethod
    def read(cls, path: str | Path, data: Dataset, positions: Int64) -> Ranks:
        """Return the ranks of targets in a table that `write` wrote; it has no lists and no other ranks."""
        table, positions = read_parquet(Path(path)), np.sort(positions)
        columns = (table[name].to_numpy() for name in ("rank", "candidates", "repeat"))
        domains = data.domains_of(np.asarray(data.items)[positions])
        return cls(positions, data.users_at(positions), domains, *columns)

    def write(self, path: str | Path, data: Dataset) -> None:
        """Write a Parquet table: user_id, domain, item_id, request_time, rank, candidates, repeat."""
        names = np.array([domain.name for domain in data.domains])
        times = data.request_times(self.positions)
        table = pl.DataFrame(
            {
                "user_id": data.user_ids.gather(self.users),
                "domain": names[self.domains],
                "item_id": data.item_ids_at(self.positions),
                "request_time": pl.Series(
                    [None] * len(self.positions) if times is None else times, dtype=pl.Int64
                ),
                "rank": self.ranks,
                "candidates": self.candidates,
                "repeat": self.is_repeat,
            }
        )
        with atomic_file(path) as temporary:
            table.write_parquet(temporary)

    def select(self, rows: Bool | Int64) -> Ranks:
        """Return the ranks of some targets."""
        columns: dict[str, Any] = {}
        for name in (field.name for field in fields(self)):
            column = getattr(self, name)
            columns[name] = None if column is None else column[rows]
        return Ranks(**columns)

    @property
    def has_rivals(self) -> Bool:
        """Whether each target was not the only candidate, whose rank is always 1, (n,)."""
        return (self.candidates > 1) | np.isinf(self.ranks)

    def by_other_rule(self) -> Ranks | None:
        """Return the ranks by the other rule for items of the history, if they were collected."""
        if self.other_ranks is None or self.other_candidates is None:
            return None
        return replace(self, ranks=self.other_ranks, candidates=self.other_candidates)

    def with_rivals(self) -> Ranks:
        """Return the ranks without those of targets that were the only candidate."""
        return self.select(self.has_rivals)


def concat_ranks(parts: Sequence[Ranks]) -> Ranks:
    """Return the ranks of disjoint sets of targets as one object, ordered by position."""
    columns: dict[str, Any] = {}
    for name in (field.name for field in fields(Ranks)):
        values = [getattr(part, name) for part in parts]
        columns[name] = None if any(value is None for value in values) else np.concatenate(values)
    ranks = Ranks(**columns)
    return ranks.select(np.argsort(ranks.positions, kind="stable"))
