"""Metrics of recommended lists in plain Python, each with its formula and source."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def gini(counts: Sequence[int]) -> float:
    """Mean absolute difference of all pairs over twice the mean: G = sum |x_i - x_j| / (2 n^2 mean(x)).

    Gini (1912); as the index of exposure in Fleder and Hosanagar, Management Science 55 (2009).
    """
    differences = sum(abs(x - y) for x in counts for y in counts)
    return differences / (2 * len(counts) * sum(counts))


def popularity_lift(
    lists: Sequence[Sequence[str]], histories: Sequence[Sequence[str]], popularity: Mapping[str, int]
) -> float:
    """(GAP(lists) - GAP(histories)) / GAP(histories); GAP is the mean over users of the mean popularity.

    Abdollahpouri et al., "The unfairness of popularity bias in recommendation", RMSE at RecSys 2019.
    """

    def gap(profiles: Sequence[Sequence[str]]) -> float:
        return sum(sum(popularity[i] for i in items) / len(items) for items in profiles) / len(profiles)

    pairs = [(items, history) for items, history in zip(lists, histories, strict=True) if history]
    listed, chosen = gap([items for items, _ in pairs]), gap([history for _, history in pairs])
    return (listed - chosen) / chosen


def divergence(items: Sequence[str], history: Sequence[str], genres: Mapping[str, Sequence[str]]) -> float:
    """C_KL(p, q) = sum_g p(g) log(p(g) / q'(g)), q' = 0.99 q + 0.01 p, p(g | i) = 1 / |genres of i|.

    Steck, "Calibrated recommendations", RecSys 2018, equations (2), (3), (6) and (7).
    """

    def shares(chosen: Sequence[str]) -> dict[str, float]:
        known, result = [item for item in chosen if genres[item]], {}
        for item in known:
            for genre in genres[item]:
                result[genre] = result.get(genre, 0) + 1 / len(genres[item]) / len(known)
        return result

    p, q = shares(history), shares(items)
    return sum(share * math.log(share / (0.99 * q.get(g, 0) + 0.01 * share)) for g, share in p.items())
