"""The best items of a large domain among the candidates of an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hafvt.data.dataset import Bool, Int64
from hafvt.inference.candidates import Candidates, FaissCandidateGenerator
from hafvt.inference.scorer import Float32, Scorer, pad_histories
from hafvt.inference.selection import Selector
from hafvt.ops.top_k import top_k_columns

CANDIDATE_BATCH_SIZE = 64  # histories in a batch
MAX_ALLOWED = 4_000  # if rules allow at most as many items, all of these are scored
OVER_FETCH = 5  # times as many items are proposed where rules limit items of equal values


class CandidateRequest(NamedTuple):
    """A request for the best items of a domain for several histories.

    Attributes:
        histories: item indices, oldest first.
        domain: index of the domain.
        k: number of items.
        seen: for each history, columns that are recommended at most where rules pin them.
        excluded: for each history, columns that are not recommended.
        time: see `Scorer`.
        selector: applies the rules; None without rules.
    """

    histories: Sequence[Int64]
    domain: int
    k: int
    seen: Sequence[Int64]
    excluded: Sequence[Int64]
    time: int | None = None
    selector: Selector | None = None


def top_candidates(
    generator: FaissCandidateGenerator, scorer: Scorer, request: CandidateRequest
) -> dict[int, tuple[Int64, Float32]]:
    """Return columns and scores of the best candidates of each history by row, if these suffice.

    A row has a result if it has k items, or if rules allow few items, which are then all scored. Without an
    index of the domain, or if rules re-rank, no row has a result.
    """
    histories, domain, k, seen, excluded, time, selector = request
    best: dict[int, tuple[Int64, Float32]] = {}
    if domain not in generator.domains or (selector is not None and selector.scores_all_items):
        return best
    index = generator.indexes[domain]
    num_items = len(index.is_cold)
    extra, allowed, takes_all = np.empty(0, dtype=np.int64), None, False
    num_fetched, num_histories = index.num_per_branch + k, CANDIDATE_BATCH_SIZE
    if selector is not None:
        extra = np.array(list(selector.pins.values()), dtype=np.int64)
        num_fetched *= OVER_FETCH if selector.caps else 1
        num_allowed = int(selector.is_allowed.sum())
        if takes_all := num_allowed <= MAX_ALLOWED:
            extra = np.union1d(extra, np.flatnonzero(selector.is_allowed))
            num_histories = max(1, num_histories * index.num_per_branch // max(num_allowed, 1))
        elif num_allowed < num_items:
            allowed = selector.is_allowed
    # Scoring a tenth of the items as candidates takes as long as scoring all items.
    max_excluded = num_items // 10 - num_fetched
    sizes = [len(a) + len(b) for a, b in zip(seen, excluded, strict=True)]
    eligible = [row for row, h in enumerate(histories) if len(h) and sizes[row] <= max_excluded]
    for start in range(0, len(eligible), num_histories):
        rows = eligible[start : start + num_histories]
        num_per_branch = 0 if takes_all else num_fetched + max(sizes[row] for row in rows)
        batch = pad_histories([histories[row][-scorer.max_length :] for row in rows])
        candidates = generator.generate(*batch, domain, num_per_branch, time, extra=extra, allowed=allowed)
        for row, one in zip(rows, candidates, strict=True):
            if selector is None:
                left_out = np.flatnonzero(np.isin(one.columns, np.concatenate([seen[row], excluded[row]])))
                places = top_k_columns(one.scores, k, left_out)
                result = one.columns[places], one.scores[places]
            else:
                depth = len(one.columns) if takes_all else num_per_branch
                pool = best_candidates(one, depth, extra)
                arguments = k, seen[row], excluded[row], histories[row]
                columns = selector.select(pool.scores, *arguments, candidates=pool.columns)
                result = columns, one.scores[np.searchsorted(one.columns, columns)]
            if len(result[0]) == k or takes_all:
                best[row] = result
    return best


def best_candidates(candidates: Candidates, count: int, extra: Int64) -> Candidates:
    """Return the candidates with the highest scores and those of `extra`, by ascending column.

    Below the number that each branch proposes, other items could be missing among the candidates.
    """
    places = top_k_columns(candidates.scores, count, np.empty(0, dtype=np.int64))
    keep: Bool = np.isin(candidates.columns, extra)
    keep[places] = True
    return Candidates(candidates.columns[keep], candidates.scores[keep])
