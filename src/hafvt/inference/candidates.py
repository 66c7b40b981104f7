"""Candidate generation: a faiss index selects the items of a large domain that a model scores.

An item's score is a weighted sum over branches of softmaxes,

    sum over b of w_b exp(z_b,i) / Z_b,  Z_b = sum over trained items j of exp(z_b,j),

so an item with one of the best sums is also near the top of at least one branch. The logits z of the
candidates are exact. Z_b is the exact sum over the candidates plus an estimate of the sum over all other
items from a fixed stratified sample. Z_b is the same for all items: it changes the weight of a branch, and no
order within it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hafvt.data.dataset import Bool, Int64
from hafvt.errors import missing_package
from hafvt.inference.scorer import Branch, BranchScorer, Float32

SAMPLE_TILE = 2048  # items of the sample whose logits are in memory at a time, so that they fit the cache
MAX_SAFE_LOGIT = 60.0  # below it, a sum of millions of exponentials does not overflow float32
MIN_REMAINING = 0.01  # share of a denominator that remains after a subtraction, as in ops.catalog_softmax
ROW_CHUNK = 65_536  # candidates whose vectors are in memory at a time


class Sample(NamedTuple):
    """A stratified sample of the trained items of a domain; n items.

    Attributes:
        columns: (n,) their columns, ascending.
        weights: (n,) numbers of items that each of them stands for: the size of its stratum by the number of
            items that are drawn from it.
        vectors: (n, d).
        max_norm: the greatest length of a vector.
    """

    columns: Int64
    weights: Float32
    vectors: Float32
    max_norm: float


@dataclass(frozen=True)
class DomainIndex:
    """The index of one domain.

    Attributes:
        start: index of the first item of the domain.
        searchers: by modality, a faiss index of the items' vectors.
        samples: by modality, the sample for the denominators; empty if scores are dot products.
        is_cold: (C,) whether an item has no training interaction.
        cold_item_boost: factor on the sums of cold items.
        log_repeat_factor: added to the scores of items of the history.
        num_per_branch: number of items that each branch proposes beyond k and the excluded items.
    """

    start: int
    searchers: list[Any]
    samples: list[Sample]
    is_cold: Bool
    cold_item_boost: float = 1.0
    log_repeat_factor: float = 0.0
    num_per_branch: int = 100


class Candidates(NamedTuple):
    """The candidates of one history: columns, (C,), ascending, and their scores, (C,)."""

    columns: Int64
    scores: Float32


class FaissCandidateGenerator:
    """Selects promising items of a large domain by approximate search, and scores them.

    Args:
        scorer: the model.
        indexes: by index of the domain.

    Attributes:
        domains: indices of the domains that have an index.
    """

    def __init__(self, scorer: BranchScorer, indexes: Mapping[int, DomainIndex]) -> None:
        self.scorer, self.indexes, self.domains = scorer, indexes, frozenset(indexes)

    def generate(
        self,
        items: Int64,
        lengths: Int64,
        domain: int,
        num_per_branch: int,
        time: int | None = None,
        *,
        extra: Int64 | None = None,
        allowed: Bool | None = None,
    ) -> list[Candidates]:
        """Return candidates for the next item of each history, with their scores.

        Args:
            items: (B, T) item indices, right-padded.
            lengths: (B,) number of items of each row without padding.
            domain: index of the domain.
            num_per_branch: number of items that each branch of the model proposes; 0 searches none.
            time: of the request, see `Scorer`.
            extra: columns that are candidates of every history.
            allowed: (C,) items that a search may propose; None for all.

        Returns:
            The candidates of each history. The items of the domain in a history are among its candidates.
        """
        index, num_rows, num_items = self.indexes[domain], len(items), len(self.indexes[domain].is_cold)
        branches = self.scorer.branches(items, lengths, domain, time)
        is_seen = (np.arange(items.shape[1]) < lengths[:, None]) & (items >= index.start)
        is_seen &= items < index.start + num_items
        keys = (
            np.arange(num_rows)[:, None] * num_items
        )  # a row's candidate has the key of the row + its column
        seen_keys = np.unique((keys + items - index.start)[is_seen])
        proposals = [seen_keys] + ([] if extra is None else [(keys + extra).ravel()])
        if num_per_branch:
            proposed = search(index, branches, num_per_branch, allowed)  # (B, n)
            proposals.append((keys + proposed)[proposed >= 0])
        keys = np.unique(np.concatenate(proposals))
        rows, columns = np.divmod(keys, num_items)
        scores = self._scores(index, branches, rows, columns, domain)
        if index.samples:
            scores += np.where(np.isin(keys, seen_keys, assume_unique=True), index.log_repeat_factor, 0.0)
        ends = np.searchsorted(rows, np.arange(1, num_rows))
        parts = zip(np.split(columns, ends), np.split(scores.astype(np.float32), ends), strict=True)
        return [Candidates(*part) for part in parts]

    def _scores(
        self, index: DomainIndex, branches: Sequence[Branch], rows: Int64, columns: Int64, domain: int
    ) -> Float32:
        """Return the scores of candidates, (n,), without the repeat discount; `rows` is ascending."""
        logits = self._logits(branches, rows, columns, index.start, domain)  # (branches, n)
        if not index.samples:
            dot_products: Float32 = logits[0]
            return dot_products
        total = np.zeros(len(rows), dtype=np.float32)
        for modality, sample in enumerate(index.samples):
            numbers = [n for n, branch in enumerate(branches) if branch.modality == modality]
            h = np.stack([branches[n].h for n in numbers])  # (S, B, d)
            log_totals = log_partition(h, sample, logits[numbers], rows, columns, index.is_cold)
            for n, log_total in zip(numbers, log_totals, strict=True):
                share = np.exp(branches[n].log_subtracted_mass - log_total)
                offsets = branches[n].log_weights - log_total - np.log(np.maximum(1 - share, MIN_REMAINING))
                total += np.exp(logits[n] + offsets.astype(np.float32)[rows])
        total[index.is_cold[columns]] *= index.cold_item_boost
        scores: Float32 = np.log(np.maximum(total, 1e-30))
        return scores

    def _logits(
        self, branches: Sequence[Branch], rows: Int64, columns: Int64, start: int, domain: int
    ) -> Float32:
        """Return the products of the candidates with the vectors of the branches, (branches, n)."""
        logits = np.empty((len(branches), len(rows)), dtype=np.float32)
        for first in range(0, len(rows), ROW_CHUNK):
            chunk = slice(first, first + ROW_CHUNK)
            vectors = self.scorer.item_rows(columns[chunk] + start, domain)
            chunk_rows = rows[chunk]
            for row in np.unique(chunk_rows).tolist():
                a, b = np.searchsorted(chunk_rows, (row, row + 1))
                for modality, of_modality in enumerate(vectors):
                    numbers = [n for n, branch in enumerate(branches) if branch.modality == modality]
                    h = np.stack([branches[n].h[row] for n in numbers])  # (S, d)
                    logits[numbers, first + a : first + b] = h @ of_modality[a:b].T
        return logits


def search(
    index: DomainIndex, branches: Sequence[Branch], num_per_branch: int, allowed: Bool | None = None
) -> Int64:
    """Return the columns that the branches propose for each history, (B, n), -1 for none."""
    faiss = import_faiss()
    proposed = np.full((len(branches), len(branches[0].h), num_per_branch), -1, dtype=np.int64)
    for labels, branch in zip(proposed, branches, strict=True):
        searcher, is_active, options = index.searchers[branch.modality], branch.log_weights > -np.inf, {}
        if allowed is not None:
            # As many allowed items are read as without a restriction there are items.
            probes = min(searcher.nlist, -(-searcher.nprobe * len(allowed) // max(int(allowed.sum()), 1)))
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
            options = {"params": faiss.SearchParametersIVF(sel=selector, nprobe=probes)}
        if is_active.any():
            labels[is_active] = searcher.search(branch.h[is_active], num_per_branch, **options)[1]
    return proposed.transpose(1, 0, 2).reshape(len(branches[0].h), -1)


def log_partition(
    h: Float32, sample: Sample, logits: Float32, rows: Int64, columns: Int64, is_cold: Bool
) -> Float32:
    """Return estimates of the logs of the softmax denominators of a modality's branches, (S, B).

    An item of the sample that is no candidate of a history counts as often as its weight says, a candidate
    once. For any fixed candidates, the expected value of the sum is exact.

    Args:
        h: (S, B, d) vectors of the histories.
        sample: of the modality.
        logits: (S, n) of the candidates of all histories.
        rows: (n,) the history of each candidate, ascending.
        columns: (n,) the column of each candidate.
        is_cold: (C,) items that no denominator counts.
    """
    num_sequences, num_rows, _ = h.shape
    shift = np.zeros((num_sequences, num_rows), dtype=np.float32)
    if np.linalg.norm(h, axis=2).max(initial=0) * sample.max_norm >= MAX_SAFE_LOGIT:
        for s in range(num_sequences):
            np.maximum.at(shift[s], rows, logits[s])
    queries, total = h.reshape(-1, h.shape[2]), np.zeros(num_sequences * num_rows)
    for first in range(0, len(sample.columns), SAMPLE_TILE):
        tile = queries @ sample.vectors[first : first + SAMPLE_TILE].T  # (S * B, items)
        if shift.any():
            tile = np.minimum(tile - shift.reshape(-1, 1), MAX_SAFE_LOGIT)
        total += np.exp(tile, out=tile) @ sample.weights[first : first + SAMPLE_TILE]
    places = np.searchsorted(sample.columns, columns).clip(max=len(sample.columns) - 1)
    weights = np.where(sample.columns[places] == columns, sample.weights[places], 0.0)
    is_trained = ~is_cold[columns]
    exponentials = np.exp(logits - shift[:, rows]).astype(np.float64) * is_trained
    exact, twice = np.zeros((2, num_sequences, num_rows))
    for s in range(num_sequences):
        exact[s] = np.bincount(rows, exponentials[s], num_rows)
        twice[s] = np.bincount(rows, exponentials[s] * weights, num_rows)
    rest = np.maximum(total.reshape(num_sequences, num_rows) - twice, 0.0)
    result: Float32 = (np.log(np.maximum(exact + rest, 1e-30)) + shift).astype(np.float32)
    return result


def import_faiss() -> Any:
    """Return the module faiss; raise HafvtError if it is not installed."""
    try:
        import faiss
    except ModuleNotFoundError:
        raise missing_package("index", "faiss-cpu") from None
    return faiss
