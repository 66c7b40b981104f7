"""The ranks of targets: what every metric and every significance test is computed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Bool, Dataset, Int64
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
    """

    positions: Int64
    users: Int64
    domains: Int64
    ranks: Float64
    candidates: Int64
    is_repeat: Bool

    def write(self, path: str | Path, data: Dataset) -> None:
        """Write a Parquet table with the columns user_id, domain, item_id, rank, candidates, repeat."""
        names = np.array([domain.name for domain in data.domains])
        table = pl.DataFrame(
            {
                "user_id": data.user_ids.gather(self.users),
                "domain": names[self.domains],
                "item_id": data.item_table["item_id"].gather(np.asarray(data.items)[self.positions]),
                "rank": self.ranks,
                "candidates": self.candidates,
                "repeat": self.is_repeat,
            }
        )
        with atomic_file(path) as temporary:
            table.write_parquet(temporary)

    def select(self, rows: Bool | Int64) -> Ranks:
        """Return the ranks of some targets."""
        return Ranks(*(getattr(self, field.name)[rows] for field in fields(self)))

    @property
    def has_rivals(self) -> Bool:
        """Whether each target was not the only candidate, whose rank is always 1, (n,)."""
        return (self.candidates > 1) | np.isinf(self.ranks)

    def with_rivals(self) -> Ranks:
        """Return the ranks without those of targets that were the only candidate."""
        return self.select(self.has_rivals)


def concat_ranks(parts: Sequence[Ranks]) -> Ranks:
    """Return the ranks of disjoint sets of targets as one object, ordered by position."""
    columns = [np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(Ranks)]
    ranks = Ranks(*columns)
    return ranks.select(np.argsort(ranks.positions, kind="stable"))
