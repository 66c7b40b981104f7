"""Ranks by counting and the best k, with ties that favor nobody."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 2**20  # scores that are looked at at a time: bounds the temporary memory


def ranks(scores: Tensor, target: Tensor, ignore: Tensor | None = None) -> Tensor:
    """Returns the rank of each row's target among its candidates, by counting, without sorting.

    The rank is 1 + (candidates scored higher) + half of (other candidates scored the same): the mean rank
    over all orders of the tied. A constant scorer over C candidates gets (C + 1) / 2. NaN counts as worse
    than any number: a target scored NaN has the last rank.

    Args:
        scores: (B, C) one column per candidate.
        target: (B,) column of the target, int64.
        ignore: (B, S) columns that are no candidates, int64; negative numbers, repetitions and the target
            itself have no effect, so each may serve as padding.

    Returns:
        (B,) float64, from 1 to the number of candidates.
    """
    threshold = scores.gather(1, target[:, None])  # (B, 1)
    # With the target itself among the same, higher + same / 2 = (candidates + higher - lower) / 2.
    ahead = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)  # higher - lower
    candidates = torch.full_like(ahead, scores.shape[1])
    for part in _slices(scores.shape[1], len(scores)):
        ahead += _signs(scores[:, part], threshold).sum(1, dtype=torch.float32)
    if ignore is not None:
        columns = ignore.sort(1).values
        left_out = (columns >= 0) & (columns != target[:, None])
        left_out[:, 1:] &= columns[:, 1:] != columns[:, :-1]  # each column once
        taken = _signs(scores.gather(1, columns.clamp(min=0)), threshold)
        ahead -= (taken * left_out).sum(1, dtype=torch.float32)
        candidates -= left_out.sum(1)
    counted = 0.5 + 0.5 * (candidates + ahead)
    return torch.where(threshold[:, 0].isnan(), candidates, counted)


def top_k(scores: Tensor, k: int, ignore: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Returns the k best candidates of each row, best first.

    Equal scores are listed by ascending column, and of equal scores at the cut the lowest columns stay: the
    list is the same on every run and machine, but it does favor low columns. Use `ranks` to measure.

    Args:
        scores: (B, C) floating point.
        k: how many, at least 1.
        ignore: (B, S) columns never to list, int64, padded with negative numbers.

    Returns:
        Values and columns, (B, k) each. Scores of -inf or NaN are never listed; where too few candidates
        are left, the rest holds -inf and column -1.
    """
    values = scores.new_full((len(scores), k), -torch.inf)
    columns = torch.full((len(scores), k), -1, dtype=torch.int64, device=scores.device)
    size = min(k, scores.shape[1])
    for rows in _slices(len(scores), scores.shape[1]):
        candidates = scores[rows].nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)  # a copy
        if ignore is not None:
            row, slot = (ignore[rows] >= 0).nonzero(as_tuple=True)
            candidates[row, ignore[rows][row, slot]] = -torch.inf
        best, found = candidates.topk(min(size + 1, scores.shape[1]))
        cut = best[:, size - 1 : size]
        tied = ((best[:, size:] == cut) & (cut > -torch.inf)).any(1).nonzero()[:, 0]
        found = found[:, :size]
        if len(tied):
            found[tied] = _lowest(candidates[tied], cut[tied], size)
        found = found.sort(1).values
        best, order = candidates.gather(1, found).sort(dim=1, descending=True, stable=True)
        values[rows, :size] = best
        columns[rows, :size] = found.gather(1, order).masked_fill(best == -torch.inf, -1)
    return values, columns


def _lowest(candidates: Tensor, cut: Tensor, size: int) -> Tensor:
    """Returns the columns of the best of each row, (B, size), where more than those score the `cut`, (B, 1).

    topk picks any of the tied; here the lowest columns stay.
    """
    above, level = candidates > cut, candidates == cut
    room = size - above.sum(1, keepdim=True)
    chosen = above | (level & (level.cumsum(1, dtype=torch.int32) <= room))
    return chosen.nonzero()[:, 1].view(-1, size)


def _signs(scores: Tensor, threshold: Tensor) -> Tensor:
    """Returns 1 where a score is above its row's threshold (B, 1), 0 where it is the same, else -1.

    The sign of a difference takes a third of the time of two comparisons, whose booleans are written one by
    one, and is 0 for equal numbers alone. Where there are differences of infinities or of NaN, which is
    below any number, the comparisons are made.
    """
    difference = scores - threshold
    if difference.sum().isnan():
        return (scores > threshold).to(scores.dtype) - (~(scores >= threshold)).to(scores.dtype)
    return difference.sign_()


def _slices(length: int, width: int) -> Iterator[slice]:
    """Cuts a dimension of so many entries so that `CHUNK` is kept, where each entry holds `width` scores."""
    step = max(1, CHUNK // max(1, width))
    for start in range(0, length, step):
        yield slice(start, start + step)
