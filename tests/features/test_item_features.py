"""Frozen vectors that are read and reduced by chunks equal those of the whole table."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hafvt.data.dataset import Dataset, Domain
from hafvt.features import item_features
from hafvt.features.item_features import ItemFeatures, Vectors, load_item_features, prepare_vectors


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
