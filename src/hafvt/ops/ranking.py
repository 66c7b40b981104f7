"""Ranks of targets by counting, without an advantage from the order of items."""

from __future__ import annotations

import torch
from torch import Tensor

SCORE_CHUNK = 2**20
"""Scores that are processed at a time, which bounds temporary memory."""


def ranks(scores: Tensor, target: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return the rank of each row's target among its candidates, counted without sorting, (B,) float64.

    The rank is 1 + (candidates with a higher score) + half of (other candidates with an equal score): the
    mean over all orders of tied candidates. At this mean, 1 / rank is lower than its mean over the orders.
    A constant scorer gets (C + 1) / 2. NaN is below every number: a target with score NaN has the last rank.

    Args:
        scores: (B, C), one column per candidate.
        target: (B,) int64 column of the target.
        ignore: (B, S) int64 columns that are no candidates. Negative numbers, repeated columns and the target
            have no effect, so each may serve as padding.
    """
    threshold = scores.gather(1, target[:, None])  # (B, 1)
    # The target counts as tied with itself: higher + tied / 2 = (candidates + higher - lower) / 2.
    higher_minus_lower = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    candidates = torch.full_like(higher_minus_lower, scores.shape[1])
    for columns in torch.split(scores, max(1, SCORE_CHUNK // max(1, len(scores))), dim=1):
        higher_minus_lower += _compare(columns, threshold).sum(1, dtype=torch.float32)
    if ignore is not None:
        ignored = ignore.sort(1).values
        counts = (ignored >= 0) & (ignored != target[:, None])
        counts[:, 1:] &= ignored[:, 1:] != ignored[:, :-1]  # each column once
        comparison = _compare(scores.gather(1, ignored.clamp(min=0)), threshold)
        higher_minus_lower -= (comparison * counts).sum(1, dtype=torch.float32)
        candidates -= counts.sum(1)
    rank = 0.5 + 0.5 * (candidates + higher_minus_lower)
    return torch.where(threshold[:, 0].isnan(), candidates, rank)


def _compare(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return 1 where a score is above its row's threshold, (B, 1), 0 where it is equal, else -1.

    The sign of the difference takes a third of the time of two comparisons. It is wrong for infinities and
    NaN only; then the comparisons are made.
    """
    difference = scores - threshold
    if difference.sum().isnan():
        return (scores > threshold).to(scores.dtype) - (~(scores >= threshold)).to(scores.dtype)
    return difference.sign_()
