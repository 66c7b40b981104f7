"""Item-based nearest neighbors, compared with plain sets of users."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hafvt.features.item_features import load_item_features
from hafvt.models import build_model, configure, item_knn
from tests.conftest import as_batch


def user_sets(data):
    """Returns the users of each item in the training part, with a plain loop."""
    users = [set() for _ in range(data.num_items)]
    for user, (start, length) in enumerate(zip(data.offsets[:-1], data.train_lengths, strict=True)):
        for item in data.items[start : start + length]:
            users[item].add(user)
    return users


def similarity(users, i, j, shrinkage):
    return len(users[i] & users[j]) / (math.sqrt(len(users[i]) * len(users[j])) + shrinkage)


@pytest.mark.parametrize(("num_neighbors", "shrinkage", "decay"), [(100, 0.0, 1.0), (4, 3.0, 0.3)])
def test_item_knn_scores_equal_the_sum_of_similarities(
    make_small, monkeypatch, num_neighbors, shrinkage, decay
):
    small = make_small(users=12)
    monkeypatch.setattr(item_knn, "PAIRS_PER_BLOCK", 100)  # several blocks of items
    config = configure(
        "item-knn", params={"num_neighbors": num_neighbors, "shrinkage": shrinkage, "decay": decay}
    )
    model = build_model("item-knn", load_item_features(small, (), interactions=True), config).eval()
    users = user_sets(small)
    assert {0} < {len(u) for u in users}  # some items are cold
    histories = [[3, 41, 3, 8], [12], [45, 46, 47]]
    for number, domain in enumerate(small.domains):
        items = range(domain.start, domain.stop)
        expected = np.zeros((len(histories), len(domain)))
        for row, history in enumerate(histories):
            for i in set(history):
                age = history[::-1].index(i)  # of its last occurrence
                values = {
                    j: similarity(users, i, j, shrinkage) for j in items if j != i and users[i] & users[j]
                }
                nearest = sorted(values, key=lambda j: (-values[j], j))[:num_neighbors]
                for j in nearest:
                    expected[row, j - domain.start] += decay**age * values[j]
        shares = small.train_counts()[domain.start : domain.stop] / small.train_counts().sum()
        expected += item_knn.POPULARITY_WEIGHT * shares
        scores = model.scores(as_batch(histories), number).numpy()
        np.testing.assert_allclose(scores, expected, rtol=1e-6, atol=1e-9)


def test_item_knn_orders_items_without_similarity_by_popularity(make_small):
    small = make_small(users=12)
    model = build_model("item-knn", load_item_features(small, (), interactions=True), configure("item-knn"))
    counts = small.train_counts()
    lone = int(np.flatnonzero(counts == 0)[0])  # no user: no neighbors
    scores = model.scores(as_batch([[lone]]), 0)[0].numpy()
    np.testing.assert_array_equal(np.argsort(-scores, kind="stable"), np.argsort(-counts[:30], kind="stable"))


def test_places_by_similarity_counts_within_groups():
    places = item_knn.places_by_similarity(
        torch.tensor([1, 0, 1, 0, 1]), torch.tensor([0.5, 0.1, 0.9, 0.1, 0.5])
    )
    assert places.tolist() == [1, 0, 0, 1, 2]
