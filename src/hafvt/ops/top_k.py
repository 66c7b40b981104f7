"""The columns of the highest scores, in numpy, so that exports need no torch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def top_k_columns(
    scores: npt.NDArray[np.float32], k: int, excluded: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Return the columns of the k highest scores, highest first, equal ones by ascending column.

    Args:
        scores: (C,); columns with a score of NaN or -inf are left out.
        k: the maximum number of columns.
        excluded: columns to leave out.
    """
    scores = np.nan_to_num(scores, nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    scores[excluded] = -np.inf
    k = min(k, len(scores))
    threshold = np.partition(scores, len(scores) - k)[len(scores) - k]  # the k-th highest score
    higher = np.flatnonzero(scores > threshold)
    equal = np.flatnonzero(scores == threshold)[: k - len(higher)]
    columns = np.sort(np.concatenate([higher, equal]))
    columns = columns[np.argsort(-scores[columns], kind="stable")]
    allowed: npt.NDArray[np.int64] = columns[scores[columns] > -np.inf].astype(np.int64)
    return allowed
