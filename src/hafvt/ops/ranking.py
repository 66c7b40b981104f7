"""Ranks of targets by counting, and the k best candidates, without an advantage from the order of items."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

SCORE_CHUNK = 2**20
"""Scores that are processed at a time, which bounds temporary memory."""


def ranks(scores: Tensor, target: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Return the rank of each row's target among its candidates, counted without sorting.

    The rank is 1 + (candidates with a higher score) + half of (other candidates with an equal score): the
    mean over all orders of tied candidates. A constant scorer gets (C + 1) / 2. NaN is below every number: a
    target with score NaN has the last rank.

    Args:
        scores: (B, C), one column per candidate.
        target: (B,) int64 column of the target.
        ignore: (B, S) int64 columns that are no candidates. Negative numbers, repeated columns and the target
            have no effect, so each may serve as padding.

    Returns:
        (B,) float64, from 1 to the number of candidates.
    """
    threshold = scores.gather(1, target[:, None])  # (B, 1)
    # The target counts as tied with itself: higher + tied / 2 = (candidates + higher - lower) / 2.
    higher_minus_lower = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    candidates = torch.full_like(higher_minus_lower, scores.shape[1])
    for columns in _chunks(scores.shape[1], len(scores)):
        higher_minus_lower += _compare(scores[:, columns], threshold).sum(1, dtype=torch.float32)
    if ignore is not None:
        ignored = ignore.sort(1).values
        counts = (ignored >= 0) & (ignored != target[:, None])
        counts[:, 1:] &= ignored[:, 1:] != ignored[:, :-1]  # each column once
        comparison = _compare(scores.gather(1, ignored.clamp(min=0)), threshold)
        higher_minus_lower -= (comparison * counts).sum(1, dtype=torch.float32)
        candidates -= counts.sum(1)
    rank = 0.5 + 0.5 * (candidates + higher_minus_lower)
    return torch.where(threshold[:, 0].isnan(), candidates, rank)


def top_k(scores: Tensor, k: int, ignore: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return the k best candidates of each row, best first.

    Equal scores are sorted by column, and at the cut the lowest columns remain, so that the list is the same
    on every machine. As this favors low columns, measure quality by `ranks`.

    Args:
        scores: (B, C) floating point.
        k: Number of candidates, at least 1.
        ignore: (B, S) int64 columns to leave out, padded with negative numbers.

    Returns:
        Scores and columns, (B, k) each. Scores of -inf or NaN are never listed; if too few candidates remain,
        the rest has score -inf and column -1.
    """
    values = scores.new_full((len(scores), k), -torch.inf)
    columns = torch.full((len(scores), k), -1, dtype=torch.int64, device=scores.device)
    size = min(k, scores.shape[1])
    for rows in _chunks(len(scores), scores.shape[1]):
        candidates = scores[rows].nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # a copy
        if ignore is not None:
            row, slot = (ignore[rows] >= 0).nonzero(as_tuple=True)
            candidates[row, ignore[rows][row, slot]] = -torch.inf
        best, best_columns = candidates.topk(min(size + 1, scores.shape[1]))
        cut = best[:, size - 1 : size]
        tied_rows = ((best[:, size:] == cut) & (cut > -torch.inf)).any(1).nonzero()[:, 0]
        best_columns = best_columns[:, :size]
        if len(tied_rows):
            best_columns[tied_rows] = _lowest_columns(candidates[tied_rows], cut[tied_rows], size)
        best_columns = best_columns.sort(1).values
        best, order = candidates.gather(1, best_columns).sort(dim=1, descending=True, stable=True)
        values[rows, :size] = best
        columns[rows, :size] = best_columns.gather(1, order).masked_fill(best == -torch.inf, -1)
    return values, columns


def _lowest_columns(candidates: Tensor, cut: Tensor, size: int) -> Tensor:
    """Return the best columns of rows in which more than `size` candidates reach the score `cut`, (B, 1).

    `torch.topk` keeps any of the tied candidates; this keeps those with the lowest columns, (B, size).
    """
    above, tied = candidates > cut, candidates == cut
    room = size - above.sum(1, keepdim=True)
    chosen = above | (tied & (tied.cumsum(1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(-1, size)


def _compare(scores: Tensor, threshold: Tensor) -> Tensor:
    """Return 1 where a score is above its row's threshold, (B, 1), 0 where it is equal, else -1.

    The sign of the difference takes a third of the time of two comparisons. It is wrong for infinities and
    NaN only; then the comparisons are made.
    """
    difference = scores - threshold
    if difference.sum().isnan():
        return (scores > threshold).to(scores.dtype) - (~(scores >= threshold)).to(scores.dtype)
    return difference.sign_()


def _chunks(length: int, width: int) -> Iterator[slice]:
    """Yield slices of a dimension such that each covers about `SCORE_CHUNK` scores, `width` per entry."""
    step = max(1, SCORE_CHUNK // max(1, width))
    for start in range(0, length, step):
        yield slice(start, start + step)
