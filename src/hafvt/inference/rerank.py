"""Re-ranks the best items of a list for diversity, and for the attribute shares of the history.

Items are chosen one after another. With weights d of diversity and c_a of attributes a, the next item i is
the one of the largest

    (1 - d - sum of c_a) relevance(i) - d max over chosen j of cos(i, j) - sum over a of c_a KL_a(list with i)

The second term is maximal marginal relevance (MMR; Carbonell and Goldstein, SIGIR 1998), the third
calibration (Steck, RecSys 2018). Relevance is the score, scaled to 0 for the lowest and 1 for the highest of
the items to choose from. KL = sum over values of p log(p / q), where p are the shares of the values in the
history, and q those in the list, mixed with 1 % of p.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from hafvt.data.attribute_values import ItemAttribute
from hafvt.data.dataset import Int64
from hafvt.errors import HafvtError
from hafvt.inference.item_vectors import ItemVectors
from hafvt.inference.scorer import Float32

MIN_POOL_SIZE, POOL_PER_ITEM = 200, 10  # best items that are re-ranked: at least, and for each listed item
SMOOTHING = 0.01  # share of the history in the shares of the list, so that the divergence is finite

Float64 = npt.NDArray[np.float64]


def pool_size(k: int) -> int:
    """Return how many of the best items are re-ranked for a list of k items."""
    return max(MIN_POOL_SIZE, POOL_PER_ITEM * k)


def unit_rows(vectors: Mapping[str, ItemVectors], items: Int64) -> Float32:
    """Return the vectors of items over all frozen modalities, (n, e), of unit length, or zero without any.

    Those learned for ids count only if there are no others.
    """
    names = [name for name in vectors if name != "id"] or ["id"]
    rows = np.concatenate([vectors[name].rows[items] for name in names], axis=1)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(norms > 0, norms, 1)).astype(np.float32)


def divergence(p: Float64, q: Float64) -> Float64:
    """Return the divergence of shares q, (..., values), from shares p, (values,) above 0; see the module."""
    smoothed = (1 - SMOOTHING) * q + SMOOTHING * p
    divergences: Float64 = (p * np.log(p / smoothed)).sum(-1)
    return divergences


class Diversity:
    """Penalty of items that resemble the chosen ones.

    Args:
        weight: of the penalty.
        vectors: of all items of the catalog, see `unit_rows`.
        pool: indices of the items to choose from.

    Raises:
        HafvtError: there are no vectors.
    """

    def __init__(self, weight: float, vectors: Mapping[str, ItemVectors], pool: Int64) -> None:
        if not vectors:
            raise HafvtError("diversity needs vectors of items: encode pictures or titles")
        self.weight, self.num_chosen = weight, 0
        self.rows = unit_rows(vectors, pool)
        self.has_vector = self.rows.any(axis=1)
        self.largest = np.full(len(pool), -np.inf)

    def penalties(self) -> Float64:
        """Return the largest cosine with a chosen item, times the weight; 0 before the first choice.

        An item without a vector has the mean of the pool, so that it counts neither as diverse nor as alike.
        """
        if not self.num_chosen or not self.has_vector.any():
            return np.zeros(len(self.largest))
        mean = self.largest[self.has_vector].mean()
        penalties: Float64 = self.weight * np.where(self.has_vector, self.largest, mean)
        return penalties

    def choose(self, place: int) -> None:
        """Add the item at a place of the pool to the chosen ones."""
        self.largest = np.maximum(self.largest, self.rows @ self.rows[place])
        self.num_chosen += 1


class Calibration:
    """Penalty of lists whose attribute shares differ from those of the history.

    Args:
        weight: of the penalty.
        attribute: values of all items of the catalog.
        history: item indices; without any value, there is no penalty.
        pool: indices of the items to choose from.
    """

    def __init__(self, weight: float, attribute: ItemAttribute, history: Int64, pool: Int64) -> None:
        self.weight = weight
        target = attribute.shares(np.zeros(len(history), dtype=np.int64), history, 1)[0]
        shares = attribute.shares(np.arange(len(pool)), pool, len(pool))
        is_wanted = target > 0
        self.target, self.shares = target[is_wanted], shares[:, is_wanted]
        self.has_value = shares.sum(1)
        self.sums, self.num_values = np.zeros(int(is_wanted.sum())), 0.0

    def penalties(self) -> Float64:
        """Return the divergence of the list with each item of the pool, times the weight."""
        if not len(self.target):
            return np.zeros(len(self.shares))
        totals = np.maximum(self.num_values + self.has_value, 1e-12)[:, None]
        return self.weight * divergence(self.target, (self.sums + self.shares) / totals)

    def choose(self, place: int) -> None:
        """Add the item at a place of the pool to the list."""
        self.sums, self.num_values = self.sums + self.shares[place], self.num_values + self.has_value[place]


def rerank(
    scores: Float32,
    count: int,
    penalties: Sequence[Diversity | Calibration],
    has_room: Callable[[int], bool],
    choose: Callable[[int], None],
    pinned: Sequence[int] = (),
) -> list[int]:
    """Return the places in the pool of at most `count` items, in the order in which they are chosen.

    Args:
        scores: (P,) of the items of the pool, highest first, then those of pinned items.
        count: the largest number of items.
        penalties: with weights that sum to at most 1.
        has_room: whether the item at a place may be added; false stays false.
        choose: called with the place of each chosen item.
        pinned: places of items that are in the list from the start.
    """
    num_free = len(scores) - len(pinned)
    free_scores = np.clip(scores[:num_free].astype(np.float64), -1e30, 1e30)
    low, high = free_scores.min(initial=np.inf), free_scores.max(initial=-np.inf)
    relevance = (free_scores - low) / (high - low) if high > low else np.ones(num_free)
    relevance *= 1 - sum(penalty.weight for penalty in penalties)
    for place in pinned:
        for penalty in penalties:
            penalty.choose(place)
    chosen, is_free = list[int](), np.ones(num_free, dtype=np.bool_)
    while len(chosen) < count and is_free.any():
        values = relevance - sum(penalty.penalties()[:num_free] for penalty in penalties)
        place = int(np.where(is_free, values, -np.inf).argmax())
        is_free[place] = False
        if not has_room(place):
            continue
        chosen.append(place)
        choose(place)
        for penalty in penalties:
            penalty.choose(place)
    return chosen
