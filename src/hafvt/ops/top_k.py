"""The columns of the highest scores, in numpy, so that exports need no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

GROUP_SIZE = 32
"""Columns of which one maximum is compared first."""


def top_k_columns(scores: Float32, k: int, excluded: Int64) -> Int64:
    """Return the columns of the k highest scores, highest first, equal ones by ascending column.

    Args:
        scores: (C,); columns with a score of NaN or -inf are left out.
        k: the maximum number of columns.
        excluded: columns to leave out.
    """
    if len(excluded):
        scores = scores.copy()
        scores[excluded] = -np.inf
    k, num_groups = min(k, len(scores)), len(scores) // GROUP_SIZE
    columns = None  # those of `scores`, all of them if None
    if num_groups > k:
        # The k highest scores are in the groups whose maximum is at least the k-th highest maximum.
        grouped = scores[: GROUP_SIZE * num_groups].reshape(GROUP_SIZE, num_groups)  # a group is a column
        maxima = grouped.max(0)
        if not np.isnan(maxima).any():
            groups = np.flatnonzero(maxima >= np.partition(maxima, num_groups - k)[num_groups - k])
            starts = np.arange(0, grouped.size, num_groups)[:, None]
            columns = np.append((starts + groups).ravel(), np.arange(grouped.size, len(scores)))
            scores = scores[columns]
    scores = np.where(np.isnan(scores), -np.inf, scores)
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th highest score
    best = np.flatnonzero((scores >= threshold) & (scores > -np.inf))
    best = best[np.argsort(-scores[best], kind="stable")[:k]]
    return best if columns is None else columns[best]
