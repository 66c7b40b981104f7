"""Frozen vectors that are read and reduced by chunks equal those of the whole table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from hafvt.data.dataset import Dataset, Domain
from hafvt.features import item_features
from hafvt.features.item_features import ItemFeatures, Vectors, load_item_features, prepare_vectors
from tests.models.hafvt_models import without_interactions


def some_vectors() -> tuple[Vectors, ItemFeatures]:
    torch.manual_seed(0)
    present = torch.rand(600) < 0.8
    rows = torch.nn.functional.normalize(torch.randn(600, 20), dim=1).half() * present[:, None]
    domains = (Domain("x", 0, 200), Domain("y", 200, 600))
    return Vectors(rows, present), ItemFeatures(domains, {}, (torch.rand(600) < 0.7).float())


@pytest.mark.parametrize("width", [0, 8])
def test_prepare_vectors_by_chunks_equals_the_whole_table(width: int) -> None:
    (rows, present), features = some_vectors()
    expected = prepare_vectors(Vectors(rows.float(), present), features, width)
    torch.testing.assert_close(prepare_vectors(Vectors(rows, present), features, width, 64), expected)


def test_prepare_vectors_by_chunks_keeps_a_large_table_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, features = some_vectors()
    in_memory = prepare_vectors(vectors, features, 8, 64)
    monkeypatch.setattr(item_features, "MIN_MAPPED_BYTES", 1)
    modes, memmap = [], np.memmap

    def recorded(file: Any, dtype: Any, mode: Any, shape: Any) -> Any:
        modes.append(mode)
        return memmap(file, dtype, mode, shape=shape)

    monkeypatch.setattr(np, "memmap", recorded)
    mapped = prepare_vectors(vectors, features, 8, 64)
    assert modes == ["r+"]
    assert torch.equal(mapped, in_memory)


def test_load_item_features_with_a_memory_map_has_the_same_vectors(small: Dataset) -> None:
    read, mapped = load_item_features(small), load_item_features(small, memory_map=True)
    for name, (rows, present) in mapped.vectors.items():
        assert rows.dtype == torch.float16
        assert torch.equal(rows.float(), read.vectors[name].rows)
        assert torch.equal(present, read.vectors[name].present)


def test_is_cold_in_a_domain_without_training_is_false(small):
    counts = torch.ones(50)
    counts[30:] = 0
    assert not replace(load_item_features(small), train_counts=counts).is_cold.any()
    assert not replace(load_item_features(small), train_counts=torch.zeros(50)).is_cold.any()


@pytest.mark.parametrize("width", [0, 6])
def test_prepare_vectors_with_other_cold_items_is_equal_for_trained_items(small, width):
    features = without_interactions(load_item_features(small), 5, 44)
    image = features.vectors["image"]
    changed = Vectors(image.rows.clone(), image.present)
    changed.rows[[5, 44]] = torch.nn.functional.normalize(torch.randn(2, 12), dim=1)
    trained = features.is_trained
    before, after = (prepare_vectors(vectors, features, width)[trained] for vectors in (image, changed))
    assert torch.equal(before, after)


def test_prepare_vectors_of_missing_pictures_have_the_mean_similarity(small):
    features = load_item_features(small)
    rows = prepare_vectors(features.vectors["image"], features, 0)
    present = features.vectors["image"].present
    assert (~present).any()
    h = torch.nn.functional.normalize(torch.randn(4, rows.shape[1]), dim=1)
    for domain in features.domains:
        items = torch.arange(domain.start, domain.stop)
        similarity, missing = h @ rows[items].T, ~present[items]
        mean = similarity[:, ~missing].mean(1, keepdim=True)
        torch.testing.assert_close(similarity[:, missing], mean.expand(-1, int(missing.sum())))


def test_prepare_vectors_with_enough_directions_keeps_centered_similarity(small):
    rows = torch.nn.functional.normalize(torch.randn(50, 6), dim=1)
    features = replace(load_item_features(small, ()), train_counts=torch.ones(50))
    rotated = prepare_vectors(Vectors(rows, torch.ones(50, dtype=torch.bool)), features, 6)
    centered = torch.nn.functional.normalize(rows - rows.mean(0), dim=1)
    torch.testing.assert_close(rotated @ rotated.T, centered @ centered.T, atol=1e-5, rtol=1e-4)


def test_prepare_vectors_does_not_depend_on_the_sign_of_eigenvectors(small, monkeypatch):
    features, eigh = load_item_features(small), torch.linalg.eigh
    before = prepare_vectors(features.vectors["title"], features, 4)

    def flipped(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * (1 - 2 * (torch.arange(vectors.shape[1]) % 2))

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    torch.testing.assert_close(prepare_vectors(features.vectors["title"], features, 4), before)
