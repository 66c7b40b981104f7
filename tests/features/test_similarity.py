"""Neighbors and clusters, against a plain search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.features import similarity
from hafvt.features.item_features import ItemFeatures, Vectors, prepare_vectors
from hafvt.features.similarity import (
    assign_to_clusters,
    cluster_items,
    find_similar_items,
    nearest_neighbors,
    renumber_items,
    with_similar_items,
)
from hafvt.progress import Advance


def counts_and_mask(num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which items have a vector, and training counts with some cold items."""
    present, train_counts = torch.ones(num_items, dtype=torch.bool), torch.randint(1, 9, (num_items,)).float()
    present[3::17] = False
    train_counts[5::8] = 0.0
    return present, train_counts


def random_items(num_items: int = 40) -> tuple[Vectors, torch.Tensor]:
    torch.manual_seed(0)
    present, train_counts = counts_and_mask(num_items)
    return Vectors(F.normalize(torch.randn(num_items, 6), dim=1), present), train_counts


def grouped_items(num_items: int = 90) -> tuple[Vectors, torch.Tensor]:
    """Return vectors close to nine directions, in turn, and training counts."""
    torch.manual_seed(0)
    directions = F.normalize(torch.randn(9, 12), dim=1)[torch.arange(num_items) % 9]
    present, train_counts = counts_and_mask(num_items)
    return Vectors(F.normalize(directions + 0.02 * torch.randn(num_items, 12), dim=1), present), train_counts


def with_cold_items_in_front(vectors: Vectors, train_counts: torch.Tensor) -> tuple[Vectors, torch.Tensor]:
    cold = F.normalize(torch.randn(3, vectors.rows.shape[1]), dim=1)
    present = F.pad(vectors.present, (3, 0), value=True)
    return Vectors(torch.cat([cold, vectors.rows]), present), F.pad(train_counts, (3, 0))


def as_sets(clusters: torch.Tensor, items: torch.Tensor) -> set[frozenset[int]]:
    """Return each cluster as its set of items."""
    return {frozenset(items[clusters == number].tolist()) for number in clusters.unique()}


def test_nearest_neighbors_match_plain_search_among_trained_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "BLOCK_ROWS", 16)
    vectors, train_counts = random_items()
    neighbors, weights = nearest_neighbors(vectors, train_counts, 4)
    assert neighbors.shape == weights.shape == (40, 4)
    for item in range(40):
        cosines = {
            n: float(vectors.rows[item] @ vectors.rows[n])
            for n in range(40)
            if vectors.present[n] and train_counts[n] and n != item
        }
        nearest = sorted(cosines, key=lambda n: -cosines[n])[:4]
        assert neighbors[item].tolist() == nearest
        expected = torch.softmax(torch.tensor([cosines[n] / 0.1 for n in nearest]), dim=0)
        torch.testing.assert_close(weights[item], expected * vectors.present[item])


def test_nearest_neighbors_with_cold_items_added_stay_the_same() -> None:
    vectors, train_counts = random_items()
    neighbors, weights = nearest_neighbors(vectors, train_counts, 4)
    more_neighbors, more_weights = nearest_neighbors(*with_cold_items_in_front(vectors, train_counts), 4)
    assert torch.equal(more_neighbors[3:] - 3, neighbors)
    assert torch.equal(more_weights[3:], weights)


def test_nearest_neighbors_of_few_items_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, train_counts = random_items(6)
    # Four of the six items are trained and have a vector.
    assert nearest_neighbors(vectors, train_counts, 10)[0].shape == (6, 3)
    neighbors, weights = nearest_neighbors(vectors, torch.zeros(6), 10)
    assert neighbors.shape == (6, 1)
    assert weights.abs().max() == 0
    monkeypatch.setattr(similarity, "MAX_REFERENCE_ITEMS", 3)
    train_counts = torch.tensor([1.0, 5.0, 6.0, 9.0, 7.0, 1.0])  # item 3 has no vector
    assert set(nearest_neighbors(vectors, train_counts, 10)[0].flatten().tolist()) == {1, 2, 4}


def test_nearest_neighbors_in_another_item_order_are_the_same_items() -> None:
    (rows, present), train_counts = random_items()
    neighbors, weights = nearest_neighbors(Vectors(rows, present), train_counts, 4)
    order = torch.randperm(40)
    permuted = Vectors(rows[order], present[order])
    permuted_neighbors, permuted_weights = nearest_neighbors(permuted, train_counts[order], 4)
    assert torch.equal(order[permuted_neighbors], neighbors[order])
    torch.testing.assert_close(permuted_weights, weights[order])


def test_cluster_items_match_the_nearest_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "BLOCK_ROWS", 16)
    monkeypatch.setattr(similarity, "KMEANS_STEPS", 60)  # until nothing changes
    vectors, train_counts = grouped_items()
    rows, present = vectors
    clusters, num_clusters = cluster_items(vectors, train_counts, (8, 20))
    members = present & (train_counts > 0)
    first = int(members.sum()) // 8
    assert clusters.shape == (90, 2)
    assert num_clusters == first + int(members.sum()) // 20
    assert clusters[present, 0].max() < first <= clusters[present, 1].min()
    for clustering in clusters[present].T:
        numbers = clustering.unique()
        means = [
            F.normalize(rows[members & (clusters == number).any(1)].mean(0), dim=0) for number in numbers
        ]
        nearest = (rows[present] @ torch.stack(means).T).argmax(1)
        assert torch.equal(numbers[nearest], clustering)


def test_cluster_items_with_close_vectors_share_a_cluster() -> None:
    vectors, train_counts = grouped_items()
    clusters, _ = cluster_items(vectors, train_counts, (4,))  # more clusters than directions
    for number in clusters[vectors.present].unique():
        directions = (torch.arange(90) % 9)[vectors.present & (clusters[:, 0] == number)]
        assert len(directions.unique()) == 1


def test_cluster_items_with_cold_items_added_stay_the_same() -> None:
    vectors, train_counts = grouped_items()
    clusters, num_clusters = cluster_items(vectors, train_counts, (8, 32))
    more, num_more = cluster_items(*with_cold_items_in_front(vectors, train_counts), (8, 32))
    assert torch.equal(more[3:], clusters)
    assert num_more == num_clusters


def test_cluster_items_in_another_item_order_are_the_same_sets() -> None:
    (rows, present), train_counts = grouped_items()
    clusters, _ = cluster_items(Vectors(rows, present), train_counts, (4, 8))
    order = torch.randperm(90)
    permuted, _ = cluster_items(Vectors(rows[order], present[order]), train_counts[order], (4, 8))
    for one, other in zip(clusters.T, permuted.T, strict=True):
        assert as_sets(one[present], torch.arange(90)[present]) == as_sets(
            other[present[order]], order[present[order]]
        )


def test_cluster_items_of_few_items_are_one_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, train_counts = grouped_items(6)
    clusters, num_clusters = cluster_items(vectors, train_counts, (8, 32))
    assert clusters[vectors.present].tolist() == [[0, 1]] * int(vectors.present.sum())
    assert num_clusters == 2
    clusters, num_clusters = cluster_items(vectors, torch.zeros(6), (8, 32))
    assert clusters.tolist() == [[0]] * 6
    assert num_clusters == 1
    vectors, train_counts = grouped_items()
    before, num_before = cluster_items(vectors, train_counts.clamp(min=1.0), (8,))
    monkeypatch.setattr(similarity, "MAX_REFERENCE_ITEMS", 30)
    after, num_after = cluster_items(vectors, train_counts.clamp(min=1.0), (8,))
    assert (num_before, num_after) == (int(vectors.present.sum()) // 8, 3)
    assert after.max() < 3 <= before.max()


def test_assign_to_clusters_picks_the_nearest_mean_of_members() -> None:
    (rows, present), train_counts = grouped_items()
    clusters, _ = cluster_items(Vectors(rows, present), train_counts, (8, 20))
    assigned = assign_to_clusters(rows[:9], clusters[present], rows[present])  # one item of each direction
    for item in range(9):
        for level in range(2):
            numbers = clusters[present, level].unique()
            means = [rows[present & (clusters[:, level] == number)].mean(0) for number in numbers]
            cosines = torch.stack([F.normalize(mean, dim=0) @ rows[item] for mean in means])
            assert assigned[item, level] == numbers[cosines.argmax()]


@pytest.mark.parametrize(("num_neighbors", "cluster_sizes"), [(4, (5, 12)), (0, (5,)), (4, ())])
def test_find_similar_items_reports_its_progress(
    monkeypatch: pytest.MonkeyPatch, num_neighbors: int, cluster_sizes: tuple[int, ...]
) -> None:
    reports: list[int] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
        yield lambda n=1, note="": reports.append(n)
        assert sum(reports) == total > 0
        assert unit == "items"

    monkeypatch.setattr(similarity, "BLOCK_ROWS", 16)
    monkeypatch.setattr(similarity, "progress", progress)
    find_similar_items(*random_items(), num_neighbors, cluster_sizes)
    assert len(reports) > 2
    assert max(reports) <= 16


@pytest.fixture
def item_features() -> ItemFeatures:
    (rows, present), train_counts = grouped_items()
    rows = rows * present[:, None]
    vectors = {"image": Vectors(rows, present), "title": Vectors(rows.roll(1, 0), present.roll(1, 0))}
    return ItemFeatures((Domain("a", 0, 50), Domain("b", 50, 90)), vectors, train_counts)


def equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_with_similar_items_fills_each_modality(item_features: ItemFeatures) -> None:
    filled = with_similar_items(item_features, 4, (8, 20), content_width=5)
    assert list(filled.similar_items) == ["image", "title"]
    for name, (rows, present) in item_features.vectors.items():
        prepared = Vectors(prepare_vectors(Vectors(rows, present), item_features, 5), present)
        expected = find_similar_items(prepared, item_features.train_counts, 4, (8, 20))
        assert equal(filled.similar_items[name], expected)
    assert with_similar_items(item_features, 0, ()).similar_items == {}


def test_with_similar_items_reuses_what_is_saved(
    item_features: ItemFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = with_similar_items(item_features, 4, (8,))
    monkeypatch.setattr(similarity, "nearest_neighbors", None)
    monkeypatch.setattr(similarity, "cluster_items", None)
    repeated = with_similar_items(filled, 4, (8,))
    assert all(equal(repeated.similar_items[name], saved) for name, saved in filled.similar_items.items())
    saved = filled.similar_items["image"]
    for wrong in (
        saved._replace(neighbors=saved.neighbors[1:]),
        saved._replace(neighbors=saved.neighbors.float()),
        saved._replace(neighbor_weights=saved.neighbor_weights[:, 1:]),
        saved._replace(clusters=saved.clusters[:, :0]),
        saved._replace(clusters=saved.clusters[:, 0]),
    ):
        with pytest.raises(HafvtError, match="do not fit these items"):
            find_similar_items(item_features.vectors["image"], item_features.train_counts, 4, (8,), wrong)


def test_renumber_items_for_a_larger_catalog_leaves_new_items_to_compare() -> None:
    vectors, train_counts = grouped_items()
    before = find_similar_items(vectors, train_counts, 4, (8, 20))
    more_vectors, more_counts = with_cold_items_in_front(vectors, train_counts)
    renumbered = renumber_items(before, torch.arange(3, 93), 93)
    assert (torch.cat([renumbered.neighbors[:3], renumbered.clusters[:3]], 1) == -1).all()
    after = find_similar_items(more_vectors, more_counts, 4, (8, 20), renumbered)
    assert torch.equal(after.neighbors[3:], before.neighbors + 3)
    assert torch.equal(after.neighbor_weights[3:], before.neighbor_weights)
    assert torch.equal(after.clusters[3:], before.clusters)
    assert torch.equal(after.neighbors[:3], nearest_neighbors(more_vectors, more_counts, 4)[0][:3])
    assert after.num_clusters == before.num_clusters
    assert 0 <= after.clusters.min() <= after.clusters.max() < after.num_clusters
