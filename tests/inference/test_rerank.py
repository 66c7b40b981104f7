"""Re-ranking gives the lists of its definition, computed item after item."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hafvt.errors import HafvtError
from hafvt.inference import rerank
from tests.inference.random_shop import random_recommender
from tests.inference.test_rules import ids_of, values_of

CALIBRATED = ("brand", "genres")


def cosine(vectors, i, j):
    one, other = (np.concatenate([v.rows[n] for v in vectors.values()]) for n in (i, j))
    product = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / product if product else 0.0


def shares_of(items, name):
    shares = Counter()
    for item in items:
        for value in values_of(item, name):
            shares[value] += 1 / len(values_of(item, name))
    total = sum(shares.values())
    return {value: share / total for value, share in shares.items()} if total else {}


def divergence(history, listed, name):
    p, q = shares_of(history, name), shares_of(listed, name)
    return sum(share * math.log(share / (0.99 * q.get(v, 0.0) + 0.01 * share)) for v, share in p.items())


def listed_by_definition(recommender, history, domain, k, pool_size, *, diversity, calibrate, max_per, pin):
    """The list by the formula in `hafvt.inference.rerank`, for a pool of fixed size."""
    items, vectors = recommender.catalog.table.rows(named=True), recommender.read_vectors()
    span, order = recommender.catalog.domains[domain], {item["item_id"]: n for n, item in enumerate(items)}
    indices = np.array([order[i] for i in history], dtype=np.int64)
    scores = dict(enumerate(recommender.scores([indices], domain)[0].tolist(), start=span.start))
    pinned = [order[i] for place, i in pin.items() if place <= k and order[i] in scores]
    ranked = sorted((n for n in scores if n not in pinned), key=lambda n: (-scores[n], n))
    pool = ranked[:pool_size]
    low, high = min(scores[n] for n in pool), max(scores[n] for n in pool)
    own = [items[n] for n in indices if n in scores]
    chosen = list(pinned)
    counts = Counter((name, v) for n in pinned for name in max_per for v in values_of(items[n], name))

    def value(n):
        listed = [items[m] for m in (*chosen, n)]
        relevance = (scores[n] - low) / (high - low) if high > low else 1.0
        total = (1 - diversity - sum(calibrate.values())) * relevance
        total -= diversity * resemblance(n)
        return total - sum(weight * divergence(own, listed, name) for name, weight in calibrate.items())

    described = [n for n in (*pool, *pinned) if any(v.present[n] for v in vectors.values())]

    def resemblance(n):
        if not chosen or not described:
            return 0.0
        compared = [n] if n in described else described
        return np.mean([max(cosine(vectors, one, m) for m in chosen) for one in compared])

    free = []
    while pool and len(free) < k - len(pinned):
        n = max(pool, key=lambda n: (round(value(n), 9), -pool.index(n)))
        pool.remove(n)
        values = [(name, v) for name in max_per for v in values_of(items[n], name)]
        if all(counts[one] < max_per[one[0]] for one in values):
            counts.update(values)
            chosen.append(n)
            free.append(n)
    places = {place: order[i] for place, i in pin.items() if order[i] in pinned}
    listed = []
    while len(listed) < k and (len(listed) + 1 in places or free):
        place = len(listed) + 1
        listed.append(places.pop(place) if place in places else free.pop(0))
    return [items[n]["item_id"] for n in (*listed, *(places[place] for place in sorted(places)))]


@pytest.mark.parametrize("seed", range(40))
def test_recommend_reranked_list_is_that_of_the_definition(seed, monkeypatch):
    monkeypatch.setattr(rerank, "MIN_POOL_SIZE", 20)
    monkeypatch.setattr(rerank, "POOL_PER_ITEM", 0)
    random, recommender = np.random.default_rng([8, seed]), random_recommender(seed)
    for _ in range(3):
        ids = [f"i{n}" for n in random.permutation(50)]
        domain, k = int(random.integers(2)), int(random.choice([1, 5, 10]))
        rules = {
            "diversity": float(random.choice([0.0, 0.3, 0.5])),
            "calibrate": {name: 0.25 for name in CALIBRATED if random.random() < 0.5},
            "max_per": {"brand": 4} if random.random() < 0.3 else {},
            "pin": {int(random.integers(1, 8)): ids[-1]} if random.random() < 0.3 else {},
        }
        if not rules["diversity"] and not rules["calibrate"]:
            continue
        history = ids[: random.integers(8)]
        (result,) = recommender.recommend([history], f"d{domain}", k, exclude_seen=False, **rules)
        assert ids_of(result) == listed_by_definition(recommender, history, domain, k, 20, **rules)


def test_recommend_larger_weights_give_more_diverse_and_better_calibrated_lists():
    recommender = random_recommender(1, (300, 20))
    vectors, items = recommender.read_vectors(), recommender.catalog.table.rows(named=True)
    histories = [[f"i{n}" for n in range(start, start + 6)] for start in range(0, 120, 6)]

    def mean_largest_cosine(**rules):
        lists = recommender.recommend(histories, "d0", 10, **rules)
        places = [[recommender.catalog.index_of(i) for i in ids_of(one)] for one in lists]
        return np.mean([max(cosine(vectors, i, j) for j in one if i != j) for one in places for i in one])

    def mean_divergence(**rules):
        lists = recommender.recommend(histories, "d0", 10, **rules)
        pairs = zip(histories, lists, strict=True)
        own = [([items[int(i[1:])] for i in h], [items[int(i[1:])] for i in ids_of(one)]) for h, one in pairs]
        return np.mean([divergence(h, one, "brand") for h, one in own])

    largest = [mean_largest_cosine(diversity=weight) for weight in (0.0, 0.3, 0.9)]
    assert largest == sorted(largest, reverse=True)
    assert largest[2] < largest[0] / 2
    assert mean_divergence(calibrate={"brand": 0.9}) < mean_divergence(calibrate={"brand": 0.1})
    assert mean_divergence(calibrate={"brand": 0.1}) < mean_divergence()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"diversity": 1.5}, "diversity has '1.5': give a number from 0 to 1"),
        ({"diversity": float("nan")}, "diversity has 'nan'"),
        ({"calibrate": {"brand": "much"}}, "calibrate has 'much'"),
        ({"calibrate": {"size": 0.3}}, "no column 'size' in the items table"),
        ({"diversity": 0.6, "calibrate": {"brand": 0.5}}, "sum to 1.1: give at most 1"),
    ],
)
def test_recommend_wrong_weight_raises(rules, message):
    with pytest.raises(HafvtError) as caught:
        random_recommender(0).recommend([["i3"]], "d0", **rules)
    assert message in str(caught.value)


def test_recommend_diversity_without_vectors_raises():
    recommender = random_recommender(0)
    recommender.read_vectors = None
    with pytest.raises(HafvtError, match="an export has no vectors of items"):
        recommender.recommend([["i3"]], "d0", diversity=0.5)
    recommender.read_vectors = dict
    with pytest.raises(HafvtError, match="diversity needs vectors of items"):
        recommender.recommend([["i3"]], "d0", diversity=0.5)
