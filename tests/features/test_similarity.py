"""Similar items, against a plain search."""

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
from hafvt.features.item_features import ItemFeatures, SimilarItems, Vectors, prepare_vectors
from hafvt.features.similarity import (
    find_similar_items,
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


def with_cold_items_in_front(vectors: Vectors, train_counts: torch.Tensor) -> tuple[Vectors, torch.Tensor]:
    cold = F.normalize(torch.randn(3, vectors.rows.shape[1]), dim=1)
    present = F.pad(vectors.present, (3, 0), value=True)
    return Vectors(torch.cat([cold, vectors.rows]), present), F.pad(train_counts, (3, 0))


def test_find_similar_items_match_plain_search_among_trained_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "BLOCK_ROWS", 16)
    vectors, train_counts = random_items()
    neighbors, weights = find_similar_items(vectors, train_counts, 4)
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


def test_find_similar_items_with_cold_items_added_stay_the_same() -> None:
    vectors, train_counts = random_items()
    neighbors, weights = find_similar_items(vectors, train_counts, 4)
    more_neighbors, more_weights = find_similar_items(*with_cold_items_in_front(vectors, train_counts), 4)
    assert torch.equal(more_neighbors[3:] - 3, neighbors)
    assert torch.equal(more_weights[3:], weights)


def test_find_similar_items_of_few_items_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, train_counts = random_items(6)
    # Four of the six items are trained and have a vector.
    assert find_similar_items(vectors, train_counts, 10).neighbors.shape == (6, 3)
    neighbors, weights = find_similar_items(vectors, torch.zeros(6), 10)
    assert neighbors.shape == (6, 1)
    assert weights.abs().max() == 0
    monkeypatch.setattr(similarity, "MAX_REFERENCE_ITEMS", 3)
    train_counts = torch.tensor([1.0, 5.0, 6.0, 9.0, 7.0, 1.0])  # item 3 has no vector
    assert set(find_similar_items(vectors, train_counts, 10).neighbors.flatten().tolist()) == {1, 2, 4}


def test_find_similar_items_in_another_item_order_are_the_same_items() -> None:
    (rows, present), train_counts = random_items()
    neighbors, weights = find_similar_items(Vectors(rows, present), train_counts, 4)
    order = torch.randperm(40)
    permuted = Vectors(rows[order], present[order])
    permuted_neighbors, permuted_weights = find_similar_items(permuted, train_counts[order], 4)
    assert torch.equal(order[permuted_neighbors], neighbors[order])
    torch.testing.assert_close(permuted_weights, weights[order])


def test_find_similar_items_reports_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    reports: list[int] = []

    @contextmanager
    def progress(title: str, total: int, unit: str) -> Iterator[Advance]:
        yield lambda n=1, note="": reports.append(n)
        assert sum(reports) == total > 0
        assert unit == "items"

    monkeypatch.setattr(similarity, "BLOCK_ROWS", 16)
    monkeypatch.setattr(similarity, "progress", progress)
    find_similar_items(*random_items(), 4)
    assert len(reports) > 2
    assert max(reports) <= 16


@pytest.fixture
def item_features() -> ItemFeatures:
    (rows, present), train_counts = random_items(90)
    rows = rows * present[:, None]
    vectors = {"image": Vectors(rows, present), "title": Vectors(rows.roll(1, 0), present.roll(1, 0))}
    return ItemFeatures((Domain("a", 0, 50), Domain("b", 50, 90)), vectors, train_counts)


def equal(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def test_with_similar_items_fills_each_modality(item_features: ItemFeatures) -> None:
    filled = with_similar_items(item_features, 4, content_width=5)
    assert list(filled.similar_items) == ["image", "title"]
    for name, (rows, present) in item_features.vectors.items():
        prepared = Vectors(prepare_vectors(Vectors(rows, present), item_features, 5), present)
        expected = find_similar_items(prepared, item_features.train_counts, 4)
        assert equal(filled.similar_items[name], expected)
    assert with_similar_items(item_features, 0).similar_items == {}


def test_with_similar_items_reuses_what_is_saved(
    item_features: ItemFeatures, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled = with_similar_items(item_features, 4)
    monkeypatch.setattr(similarity, "nearest_neighbors", None)
    repeated = with_similar_items(filled, 4)
    assert all(equal(repeated.similar_items[name], saved) for name, saved in filled.similar_items.items())
    saved = filled.similar_items["image"]
    for wrong in (
        saved._replace(neighbors=saved.neighbors[1:]),
        saved._replace(neighbors=saved.neighbors.float()),
        saved._replace(neighbor_weights=saved.neighbor_weights[:, 1:]),
        SimilarItems(saved.neighbors[:, :0], saved.neighbor_weights[:, :0]),
        SimilarItems(saved.neighbors[:, 0], saved.neighbor_weights[:, 0]),
    ):
        with pytest.raises(HafvtError, match="do not fit these items"):
            find_similar_items(item_features.vectors["image"], item_features.train_counts, 4, wrong)


def test_renumber_items_for_a_larger_catalog_leaves_new_items_to_compare() -> None:
    vectors, train_counts = random_items()
    before = find_similar_items(vectors, train_counts, 4)
    more_vectors, more_counts = with_cold_items_in_front(vectors, train_counts)
    renumbered = renumber_items(before, torch.arange(3, 43), 43)
    assert (renumbered.neighbors[:3] == -1).all()
    after = find_similar_items(more_vectors, more_counts, 4, renumbered)
    assert torch.equal(after.neighbors[3:], before.neighbors + 3)
    assert torch.equal(after.neighbor_weights[3:], before.neighbor_weights)
    assert torch.equal(after.neighbors[:3], find_similar_items(more_vectors, more_counts, 4).neighbors[:3])
