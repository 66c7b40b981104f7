"""Recommend for batches of histories, and count what was recommended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hafvt.inference.histories import HistoryRequest
from hafvt.inference.recommendations import Recommendations
from hafvt.inference.recommender import Recommender
from hafvt.inference.rules import NO_RULES, Rules

MAX_BATCH_SIZE = 1024  # histories that are read, ranked and written together
MAX_BATCH_IDS = 200_000  # ids of histories and recommendations in a batch


@dataclass
class BatchSummary:
    """Count of what `recommend` did.

    Attributes:
        out: the file or folder; None if the recommendations went to stdout.
        num_histories: number of histories.
        num_by_popularity: number of histories without a known item, which got the most popular items.
        num_with_unknown_ids: number of histories with an unknown id.
        num_unknown_ids: number of unknown ids in all histories; they were skipped.
        unknown_id_examples: up to three unknown ids.
        num_unknown_excluded_ids: number of unknown ids to exclude, over all histories.
        unknown_excluded_id_examples: up to three unknown ids to exclude.
        unknown_rule_ids: ids to allow or to pin that the catalog does not have.
        num_files: of a folder: number of its files.
        num_earlier_files: number of these files that an earlier call has written; the other counts leave them
            out.
    """

    out: str | Path | None
    num_histories: int = 0
    num_by_popularity: int = 0
    num_with_unknown_ids: int = 0
    num_unknown_ids: int = 0
    unknown_id_examples: tuple[str, ...] = ()
    num_unknown_excluded_ids: int = 0
    unknown_excluded_id_examples: tuple[str, ...] = ()
    unknown_rule_ids: tuple[str, ...] = ()
    num_files: int = 0
    num_earlier_files: int = 0

    def add(self, recommendations: Recommendations) -> None:
        """Count the recommendations for one history."""
        unknown, excluded = recommendations.unknown_ids, recommendations.unknown_excluded_ids
        self.num_histories += 1
        self.unknown_rule_ids = recommendations.unknown_rule_ids
        self.num_by_popularity += recommendations.ranked_by == "popularity"
        self.num_with_unknown_ids += bool(unknown)
        self.num_unknown_ids += len(unknown)
        self.unknown_id_examples = (*self.unknown_id_examples, *unknown)[:3]
        self.num_unknown_excluded_ids += len(excluded)
        self.unknown_excluded_id_examples = tuple(
            dict.fromkeys((*self.unknown_excluded_id_examples, *excluded))
        )[:3]

    def merge(self, other: BatchSummary) -> None:
        """Add the counts of another part of the same recommendations."""
        for name in ("histories", "by_popularity", "with_unknown_ids", "unknown_ids", "unknown_excluded_ids"):
            setattr(self, f"num_{name}", getattr(self, f"num_{name}") + getattr(other, f"num_{name}"))
        for name in ("unknown_id_examples", "unknown_excluded_id_examples"):
            setattr(self, name, (*getattr(self, name), *getattr(other, name))[:3])
        self.unknown_rule_ids = other.unknown_rule_ids

    @property
    def warnings(self) -> list[str]:
        """A line each about unknown ids of histories, to exclude, and of rules; empty without any."""
        lines = []
        if self.num_unknown_ids:
            lines.append(
                f"skipped {self.num_unknown_ids:,} unknown ids in {self.num_with_unknown_ids:,} of "
                f"{self.num_histories:,} histories, such as {_quoted(self.unknown_id_examples)}"
            )
        if self.num_unknown_excluded_ids:
            lines.append(
                f"{self.num_unknown_excluded_ids:,} ids to exclude are unknown, such as "
                f"{_quoted(self.unknown_excluded_id_examples)}"
            )
        if self.unknown_rule_ids:
            lines.append(
                f"{len(self.unknown_rule_ids):,} ids to allow or to pin are unknown, such as "
                f"{_quoted(self.unknown_rule_ids[:3])}"
            )
        return lines

    def __str__(self) -> str:
        """Return a line about the file; empty if the recommendations went to stdout."""
        if self.out is None:
            return ""
        popular = f" ({self.num_by_popularity:,} without a known item, by popularity)"
        note = popular if self.num_by_popularity else ""
        if self.num_earlier_files:
            note += f"; {self.num_earlier_files:,} of {self.num_files:,} files were there"
        return f"wrote recommendations for {self.num_histories:,} histories{note} to {self.out}"


def _quoted(item_ids: tuple[str, ...]) -> str:
    """Return shortened ids for a message."""
    return ", ".join(repr(item_id[:80]) for item_id in item_ids)


def batches(requests: Iterable[HistoryRequest]) -> Iterator[list[HistoryRequest]]:
    """Yield requests in batches of at most `MAX_BATCH_SIZE`, fewer if histories are long or k is large."""
    batch: list[HistoryRequest] = []
    num_ids = 0
    for request in requests:
        batch.append(request)
        num_ids += len(request.history) + request.k
        if len(batch) == MAX_BATCH_SIZE or num_ids >= MAX_BATCH_IDS:
            yield batch
            batch, num_ids = [], 0
    if batch:
        yield batch


def recommend_batch(
    recommender: Recommender,
    batch: list[HistoryRequest],
    exclude_seen: bool | None,
    rules: Rules = NO_RULES,
) -> list[Recommendations]:
    """Return the recommendations for each request, ranked together if domain, k and time agree."""
    groups: dict[tuple[str, int, int | None], list[int]] = {}
    for row, request in enumerate(batch):
        groups.setdefault((request.domain, request.k, request.time), []).append(row)
    results: dict[int, Recommendations] = {}
    for (domain, k, time), rows in groups.items():
        histories, exclude = [batch[row].history for row in rows], [batch[row].exclude for row in rows]
        recommendations = recommender.recommend(
            histories,
            domain,
            k,
            exclude=exclude,
            exclude_seen=exclude_seen,
            time=time,
            **rules._asdict(),
        )
        results.update(zip(rows, recommendations, strict=True))
    return [results[row] for row in range(len(batch))]
