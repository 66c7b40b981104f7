"""`Recommender`: what a trained model recommends to anybody, on the user's own ids, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np

from hafvt.data.dataset import Dataset, Int64
from hafvt.errors import HafvtError
from hafvt.inference import text
from hafvt.inference.catalog import Item, ItemCatalog
from hafvt.inference.onnx_scorer import INDEX, OnnxScorer
from hafvt.inference.scorer import Float32, Scorer, Shortlist

SCORES = 4_000_000  # scores held at a time: histories in a batch x items of a domain
DEPTH = 300  # candidates that each part of the model puts forward, beyond those that may not be listed
SHORT = 64  # histories in a batch that ranks candidates


@dataclass(frozen=True)
class ScoredItem:
    """A recommended item and its score, which is higher the better."""

    item: Item
    score: float


@dataclass(frozen=True)
class Recommendations:
    """What is recommended for one history.

    Attributes:
        items: best first; fewer than k where fewer are left.
        by: "model"; or "popularity", where the history has no known item.
        unknown: ids of the history that the catalog does not have; they were skipped.
    """

    items: tuple[ScoredItem, ...]
    by: Literal["model", "popularity"]
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The items, a line each, and what was unknown."""
        return text.of_answer(self)


@dataclass(frozen=True)
class Explanation:
    """Why an item has its score for a history.

    Attributes:
        item: which.
        score: as `recommend` gives it.
        rank: among all items of its domain, ties at half.
        history: the known items that the model read, oldest first.
        shares: of the score by (sequence, modality), summing to 1.
        attention: by (sequence, modality), for each item of `history`; sums to 1, or to 0 where the sequence
            has no items.
        unknown: see `Recommendations`.
    """

    item: Item
    score: float
    rank: float
    history: tuple[Item, ...]
    shares: dict[tuple[str, str], float] = field(repr=False)
    attention: dict[tuple[str, str], tuple[float, ...]] = field(repr=False)
    unknown: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The shares in per cent, and the items of the history that were attended to most."""
        return text.of_explanation(self)


class Recommender:
    """Recommends by histories of item ids, oldest first, from any mix of domains.

    Example:
        recommender = Recommender.open("runs/hafvt")
        recommender.recommend([["tt0111161", "tt0068646"]], "drama", k=10)

    Args:
        scorer: ranks the items.
        shelf: the items as people know them.
        shortlist: finds the candidates in large domains; None ranks all items everywhere.
    """

    def __init__(self, scorer: Scorer, catalog: ItemCatalog, shortlist: Shortlist | None = None) -> None:
        self.scorer, self.catalog, self.shortlist = scorer, catalog, shortlist

    @classmethod
    def open(cls, folder: str | Path, data: str | Path | Dataset | None = None, *, threads: int = 0) -> Self:
        """Opens a run, or what `export` made of one.

        Args:
            folder: of the run or the export.
            data: the dataset, where it is no longer in the place that the run remembers; none for an export.
            threads: score with so many, of a run in the whole process; 0 leaves it as it is.

        Raises:
            HafvtError: there is no finished run, its index is out of date, or the export is damaged.
        """
        if (Path(folder) / INDEX).exists():
            scorer = OnnxScorer(folder, threads=threads)
            return cls(scorer, scorer.catalog())
        from hafvt.inference.added_items import with_added_items  # late: an export does without torch
        from hafvt.inference.ann import open_shortlist
        from hafvt.inference.torch_scorer import TorchScorer
        from hafvt.training.run import open_run

        run, catalog = with_added_items(open_run(folder, data))
        return cls(TorchScorer(run, threads), catalog, open_shortlist(run))

    @property
    def domains(self) -> tuple[str, ...]:
        """The names of the domains."""
        return tuple(domain.name for domain in self.catalog.domains)

    def recommend(
        self,
        histories: Sequence[Sequence[str]],
        domain: str,
        k: int = 10,
        *,
        exclude: Sequence[Sequence[str]] | None = None,
        seen: bool = False,
    ) -> list[Recommendations]:
        """Recommends for each history the k best items of a domain, by exact scores of all of them.

        In a large domain of a run that was indexed (`hafvt index`), the best of the candidates found.
        Equal scores are listed by the catalog's order, which is random.

        Args:
            histories: item ids, oldest first; may be empty, then popularity decides.
            domain: whose items are recommended.
            k: how many.
            exclude: ids never to recommend, for each history.
            seen: whether items of the history may be recommended again.

        Raises:
            HafvtError: no such domain, k below 1, or `exclude` of another length.
        """
        number = self.catalog.domain_number(domain)
        if k < 1:
            raise HafvtError(f"k is {k}: give 1 or more")
        if exclude is not None and len(exclude) != len(histories):
            raise HafvtError(f"{len(exclude)} lists to exclude for {len(histories)} histories: give one each")
        start, stop = self.catalog.domains[number].start, self.catalog.domains[number].stop
        known = [self.catalog.find(history) for history in histories]
        without = []
        for row, (numbers, _) in enumerate(known):
            out = self.catalog.find(exclude[row])[0] if exclude is not None else numbers[:0]
            if not seen:
                out = np.concatenate([out, numbers])
            without.append(out[(out >= start) & (out < stop)] - start)
        answers = []
        best = self.best([numbers for numbers, _ in known], number, k, without)
        for (numbers, unknown), (columns, scores) in zip(known, best, strict=True):
            listed = tuple(
                ScoredItem(self.catalog.item(start + column), score)
                for column, score in zip(columns.tolist(), scores.tolist(), strict=True)
            )
            answers.append(Recommendations(listed, "model" if len(numbers) else "popularity", tuple(unknown)))
        return answers

    def best(
        self, histories: Sequence[Int64], domain: int, k: int, without: Sequence[Int64]
    ) -> list[tuple[Int64, Float32]]:
        """Returns for each history the columns of the k best items of a domain, best first, and their scores.

        Args:
            histories: item numbers, oldest first.
            domain: its number.
            k: how many.
            without: columns never to list, for each history.
        """
        found = self.shortlisted(histories, domain, k, without)
        left = [row for row in range(len(histories)) if row not in found]
        size = max(1, SCORES // len(self.catalog.domains[domain]))
        for cut in range(0, len(left), size):
            rows = left[cut : cut + size]
            for row, scores in zip(rows, self.scores([histories[row] for row in rows], domain), strict=True):
                columns = top_k(scores, k, without[row])
                found[row] = columns, scores[columns]
        return [found[row] for row in range(len(histories))]

    def shortlisted(
        self, histories: Sequence[Int64], domain: int, k: int, without: Sequence[Int64]
    ) -> dict[int, tuple[Int64, Float32]]:
        """Returns what `best` does, by row, of the histories for which candidates suffice."""
        found: dict[int, tuple[Int64, Float32]] = {}
        if self.shortlist is None or domain not in self.shortlist.domains:
            return found
        most = len(self.catalog.domains[domain]) // 10  # of more candidates all are scored as quickly
        rows = [
            row
            for row, history in enumerate(histories)
            if len(history) and DEPTH + k + len(without[row]) <= most
        ]
        for cut in range(0, len(rows), SHORT):
            part = rows[cut : cut + SHORT]
            depth = DEPTH + k + max(len(without[row]) for row in part)
            read = padded([histories[row][-self.scorer.max_length :] for row in part])
            for row, columns, scores in zip(part, *self.shortlist.scores(*read, domain, depth), strict=True):
                chosen = top_k(scores, k, np.flatnonzero(np.isin(columns, without[row])))
                if len(chosen) == k:
                    found[row] = columns[chosen], scores[chosen]
        return found

    def scores(self, histories: Sequence[Int64], domain: int) -> Float32:
        """Returns the scores of all items of a domain, (B, C), popularity's for empty histories.

        Args:
            histories: item numbers, oldest first; only the last `max_length` are read.
            domain: its number.
        """
        chosen = self.catalog.domains[domain]
        found = np.empty((len(histories), len(chosen)), dtype=np.float32)
        empty = np.array([len(history) == 0 for history in histories], dtype=bool)
        found[empty] = np.log1p(self.catalog.train_counts[chosen.start : chosen.stop]).astype(np.float32)
        if not empty.all():
            rows = [history[-self.scorer.max_length :] for history in histories if len(history)]
            found[~empty] = self.scorer.scores(*padded(rows), domain)
        return found

    def explain(self, history: Sequence[str], item: str) -> Explanation:
        """Tells why an item has its score for a history.

        Raises:
            HafvtError: the model cannot explain itself, or the item or all of the history is unknown.
        """
        if not self.scorer.sequences:
            raise HafvtError(f"{self.scorer.name} cannot say where its scores come from: use hafvt")
        (target,), (numbers, unknown) = self.number_of(item), self.catalog.find(history)
        if not len(numbers):
            raise HafvtError("the history has no known item: popularity alone decides then")
        numbers = numbers[-self.scorer.max_length :]
        domain = next(n for n, d in enumerate(self.catalog.domains) if d.start <= target < d.stop)
        column = int(target) - self.catalog.domains[domain].start
        scores = self.scores([numbers], domain)[0]
        told = self.scorer.explain(numbers, domain, np.array([target]))
        pairs = [
            (s, m, (sequence, modality))
            for s, sequence in enumerate(self.scorer.sequences)
            for m, modality in enumerate(self.scorer.modalities)
        ]
        return Explanation(
            item=self.catalog.item(int(target)),
            score=float(scores[column]),
            rank=float(1 + (scores > scores[column]).sum() + ((scores == scores[column]).sum() - 1) / 2),
            history=tuple(self.catalog.item(int(number)) for number in numbers),
            shares={pair: float(told.shares[0, s, m]) for s, m, pair in pairs},
            attention={pair: tuple(told.attention[s, m].tolist()) for s, m, pair in pairs},
            unknown=tuple(unknown),
        )

    def number_of(self, item_id: str) -> Int64:
        """Returns the number of an item, (1,).

        Raises:
            HafvtError: it is unknown.
        """
        numbers, unknown = self.catalog.find([item_id])
        if unknown:
            raise HafvtError(f"no item {item_id[:80]!r} in the catalog")
        return numbers


def padded(histories: Sequence[Int64]) -> tuple[Int64, Int64]:
    """Returns histories as right-padded rows, (B, T), and their lengths, (B,)."""
    lengths = np.array([len(history) for history in histories], dtype=np.int64)
    rows = np.zeros((len(histories), int(lengths.max(initial=1))), dtype=np.int64)
    rows[np.arange(rows.shape[1]) < lengths[:, None]] = np.concatenate(histories)
    return rows, lengths


def top_k(scores: Float32, k: int, without: Int64) -> Int64:
    """Returns the columns of the k best scores, best first, equal ones by ascending column.

    Args:
        scores: (C,); NaN and -inf are never listed.
        k: at most so many.
        without: columns never to list.
    """
    scores = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    scores[without] = -np.inf
    size = min(k, len(scores))
    cut = np.partition(scores, len(scores) - size)[len(scores) - size]
    above = np.flatnonzero(scores > cut)
    level = np.flatnonzero(scores == cut)[: size - len(above)]
    chosen = np.sort(np.concatenate([above, level]))
    chosen = chosen[np.argsort(-scores[chosen], kind="stable")]
    found: Int64 = chosen[scores[chosen] > -np.inf].astype(np.int64)
    return found
