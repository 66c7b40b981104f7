"""Which items are alike, against a plain search."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F

from hafvt.features import cosines as module
from hafvt.features.neighbors import neighbors
from hafvt.features.similarity import find_similar_items
from hafvt.progress import Advance


def some(items: int = 40) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    present, counts = torch.ones(items, dtype=torch.bool), torch.randint(1, 9, (items,)).float()
    present[3::17] = False
    counts[5::8] = 0.0
    return F.normalize(torch.randn(items, 6), dim=1), present, counts


def test_neighbors_are_the_nearest_that_training_met(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROWS", 16)
    rows, present, counts = some()
    near, weights = neighbors(rows, present, counts, 4)
    assert near.shape == weights.shape == (40, 4)
    for item in range(40):
        cosines = {
            n: float(rows[item] @ rows[n]) for n in range(40) if present[n] and counts[n] and n != item
        }
        best = sorted(cosines, key=lambda n: -cosines[n])[:4]
        assert near[item].tolist() == best
        expected = torch.softmax(torch.tensor([cosines[n] / 0.1 for n in best]), dim=0)
        torch.testing.assert_close(weights[item], expected * present[item])


def test_items_that_training_never_met_change_nothing_for_others() -> None:
    rows, present, counts = some()
    before, weighed = neighbors(rows, present, counts, 4)
    more = torch.cat([F.normalize(torch.randn(3, 6), dim=1), rows])  # new items come before the others
    with_added_items, again = neighbors(more, F.pad(present, (3, 0), value=True), F.pad(counts, (3, 0)), 4)
    assert torch.equal(with_added_items[3:] - 3, before)
    assert torch.equal(again[3:], weighed)


def test_few_items_have_few_neighbors_and_the_least_known_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, present, counts = some(6)
    assert neighbors(rows, present, counts, 10)[0].shape == (6, 3)  # of 4 that are met and have a vector
    near, weights = neighbors(rows, present, torch.zeros(6), 10)
    assert near.shape == (6, 1)
    assert weights.abs().max() == 0
    monkeypatch.setattr(module, "KNOWN", 3)
    counts = torch.tensor([1.0, 5.0, 6.0, 9.0, 7.0, 1.0])  # item 3 has no vector
    assert set(neighbors(rows, present, counts, 10)[0].flatten().tolist()) == {1, 2, 4}


def test_numbers_of_items_mean_nothing() -> None:
    rows, present, counts = some()
    near, weights = neighbors(rows, present, counts, 4)
    order = torch.randperm(40)
    again, weighed = neighbors(rows[order], present[order], counts[order], 4)
    assert torch.equal(order[again], near[order])
    torch.testing.assert_close(weighed, weights[order])


@pytest.mark.parametrize(("near", "sizes"), [(4, (5, 12)), (0, (5,)), (4, ())])
def test_a_long_search_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, near: int, sizes: tuple[int, ...]
) -> None:
    told: list[int] = []

    @contextmanager
    def counted(title: str, total: int, unit: str) -> Iterator[Advance]:
        yield lambda n=1, note="": told.append(n)
        assert sum(told) == total > 0
        assert unit == "items"

    monkeypatch.setattr(module, "ROWS", 16)
    monkeypatch.setattr("hafvt.features.similarity.progress", counted)
    find_similar_items(*some(), near, sizes, None)
    assert len(told) > 2
    assert max(told) <= 16
