"""The best items of a large domain among the candidates of an index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from hafvt.data.dataset import Int64
from hafvt.inference.scorer import Float32, Scorer, pad_histories
from hafvt.ops.top_k import top_k_columns

if TYPE_CHECKING:
    from hafvt.inference.candidates import FaissCandidateGenerator  # imports torch

CANDIDATES_PER_BRANCH = 200  # items that each branch proposes beyond k and the excluded items
CANDIDATE_BATCH_SIZE = 64  # histories in a batch


def top_candidates(
    generator: FaissCandidateGenerator,
    scorer: Scorer,
    num_items: int,
    histories: Sequence[Int64],
    domain: int,
    k: int,
    excluded: Sequence[Int64],
    time: int | None,
) -> dict[int, tuple[Int64, Float32]]:
    """Return columns and scores of the k best candidates of each history by row, if it has at least k.

    Args:
        generator: selects candidates; in a domain without an index, no row has a result.
        scorer: the model.
        num_items: number of items of the domain.
        histories: item indices, oldest first.
        domain: index of the domain.
        k: number of items.
        excluded: for each history, columns to leave out.
        time: see `Scorer`.
    """
    best: dict[int, tuple[Int64, Float32]] = {}
    if domain not in generator.domains:
        return best
    # Scoring a tenth of the items as candidates takes as long as scoring all items.
    max_excluded = num_items // 10 - CANDIDATES_PER_BRANCH - k
    sizes = [len(columns) for columns in excluded]
    eligible = [row for row, h in enumerate(histories) if len(h) and sizes[row] <= max_excluded]
    for start in range(0, len(eligible), CANDIDATE_BATCH_SIZE):
        rows = eligible[start : start + CANDIDATE_BATCH_SIZE]
        num_per_branch = CANDIDATES_PER_BRANCH + k + max(sizes[row] for row in rows)
        batch = pad_histories([histories[row][-scorer.max_length :] for row in rows])
        candidates = generator.generate(*batch, domain, num_per_branch, time)
        for row, (columns, scores) in zip(rows, candidates, strict=True):
            top = top_k_columns(scores, k, np.flatnonzero(np.isin(columns, excluded[row])))
            if len(top) == k:
                best[row] = columns[top], scores[top]
    return best
