"""Clusters of similar items, against a plain search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.features.clusters import cluster_items, complete_clusters, renumber_items, with_clusters
from hafvt.features.item_features import ItemClusters, ItemFeatures, Vectors, prepare_vectors
from hafvt.progress import Advance

MODULE = "hafvt.features.clusters"


def counts_and_mask(num_items: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which items have a vector, and training counts with some cold items."""
    present, train_counts = torch.ones(num_items, dtype=torch.bool), torch.randint(1, 9, (num_items,)).float()
    present[3::17] = False
    train_counts[5::8] = 0.0
    return present, train_counts


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


def test_cluster_items_match_the_nearest_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE + ".BLOCK_ROWS", 16)
    monkeypatch.setattr(MODULE + ".KMEANS_STEPS", 60)  # until nothing changes
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
    assert clusters.tolist() == [[0, 0]] * 6
    assert num_clusters == 1
    vectors, train_counts = grouped_items()
    before, num_before = cluster_items(vectors, train_counts.clamp(min=1.0), (8,))
    monkeypatch.setattr(MODULE + ".MAX_REFERENCE_ITEMS", 30)
    after, num_after = cluster_items(vectors, train_counts.clamp(min=1.0), (8,))
    assert (num_before, num_after) == (int(vectors.present.sum()) // 8, 3)
    assert after.max() < 3 <= before.max()


def test_complete_clusters_picks_the_nearest_mean_of_members() -> None:
    (rows, present), train_counts = grouped_items()
    saved = cluster_items(Vectors(rows, present), train_counts, (8, 20))
    is_new = torch.zeros(90, dtype=torch.bool)
    is_new[[0, 10, 20]] = True
    numbers = saved.cluster_rows.masked_fill(is_new[:, None], -1)
    completed = complete_clusters(
        Vectors(rows, present), train_counts, saved._replace(cluster_rows=numbers), 2
    )
    members = present & (train_counts > 0) & ~is_new
    assert torch.equal(completed.cluster_rows[~is_new], saved.cluster_rows[~is_new])
    for item in is_new.nonzero()[:, 0]:
        for level in range(2):
            used = saved.cluster_rows[members, level].unique()
            means = [rows[members & (saved.cluster_rows[:, level] == number)].mean(0) for number in used]
            cosines = torch.stack([F.normalize(mean, dim=0) @ rows[item] for mean in means])
            assert completed.cluster_rows[item, level] == used[cosines.argmax()]


def test_cluster_items_reports_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[int] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
        yield lambda n=1, note="": reports.append(n)
        assert sum(reports) == total > 0

    monkeypatch.setattr(MODULE + ".progress", progress)
    cluster_items(*grouped_items(), (5, 12))
    assert len(reports) > 2


@pytest.fixture
def item_features() -> ItemFeatures:
    (rows, present), train_counts = grouped_items()
    rows = rows * present[:, None]
    vectors = {"image": Vectors(rows, present), "title": Vectors(rows.roll(1, 0), present.roll(1, 0))}
    return ItemFeatures((Domain("a", 0, 50), Domain("b", 50, 90)), vectors, train_counts)


def equal(one: ItemClusters, other: ItemClusters) -> bool:
    return torch.equal(one.cluster_rows, other.cluster_rows) and one.num_clusters == other.num_clusters


def test_with_clusters_fills_each_modality(item_features: ItemFeatures) -> None:
    filled = with_clusters(item_features, (8, 20), content_width=5)
    assert list(filled.clusters) == ["image", "title"]
    for name, (rows, present) in item_features.vectors.items():
        prepared = Vectors(prepare_vectors(Vectors(rows, present), item_features, 5), present)
        expected = cluster_items(prepared, item_features.train_counts, (8, 20))
        assert equal(filled.clusters[name], expected)
    assert with_clusters(item_features, ()).clusters == {}


def test_with_clusters_reuses_what_is_saved(
    item_features: ItemFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = with_clusters(item_features, (8,))
    monkeypatch.setattr(MODULE + ".cluster_items", None)
    repeated = with_clusters(filled, (8,))
    assert all(equal(repeated.clusters[name], saved) for name, saved in filled.clusters.items())
    saved = filled.clusters["image"]
    for wrong in (
        saved._replace(cluster_rows=saved.cluster_rows[1:]),
        saved._replace(cluster_rows=saved.cluster_rows.float()),
        saved._replace(cluster_rows=saved.cluster_rows[:, :0]),
        saved._replace(cluster_rows=saved.cluster_rows[:, 0]),
    ):
        with pytest.raises(HafvtError, match="do not fit these items"):
            with_clusters(replace(item_features, clusters=filled.clusters | {"image": wrong}), (8,))


def test_renumber_items_for_a_larger_catalog_leaves_new_items_to_assign() -> None:
    vectors, train_counts = grouped_items()
    before = cluster_items(vectors, train_counts, (8, 20))
    more_vectors, more_counts = with_cold_items_in_front(vectors, train_counts)
    renumbered = renumber_items(before, torch.arange(3, 93), 93)
    assert (renumbered.cluster_rows[:3] == -1).all()
    after = complete_clusters(more_vectors, more_counts, renumbered, 2)
    assert torch.equal(after.cluster_rows[3:], before.cluster_rows)
    assert after.num_clusters == before.num_clusters
    assert 0 <= after.cluster_rows.min() <= after.cluster_rows.max() < after.num_clusters
