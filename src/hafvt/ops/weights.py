"""Sums and means of the losses of targets, which may have weights, over all processes."""

from __future__ import annotations

from torch import Tensor

from hafvt.ops.collectives import all_reduce_sum, global_count


def total_weight(count: int, weights: Tensor | None = None) -> float:
    """Return the sum of the weights of the targets of all processes, or 1 if it is 0.

    Args:
        count: number of targets of this process.
        weights: (count,) their weights; None if each is 1.
    """
    if weights is None:
        return max(global_count(count), 1)
    return all_reduce_sum([float(weights.sum())])[0] or 1.0


def mean_factor(count: int, weights: Tensor | None = None) -> float | Tensor:
    """Return the factor of each target in the weighted mean over all processes; see `total_weight`."""
    total = total_weight(count, weights)
    return 1 / total if weights is None else weights / total


def weighted_sum(values: Tensor, weights: float | Tensor | None) -> Tensor:
    """Return the sum of values, (N,), times their weights: one for each, or one for all, by default 1."""
    if isinstance(weights, Tensor):
        return (weights * values).sum()
    return values.sum() if weights is None else weights * values.sum()


def weighted_mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """Return the weighted mean of values, (N,), over the targets of all processes."""
    return weighted_sum(values, weights) / total_weight(len(values), weights)
