"""Which items are grouped, against a plain search."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hafvt.features import clusters as module
from hafvt.features import cosines
from hafvt.features.clusters import find_clusters, nearest_clusters


def some(items: int = 90) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns vectors around nine directions, ten each, which have them and how often they were met."""
    torch.manual_seed(0)
    about = F.normalize(torch.randn(9, 12), dim=1)[torch.arange(items) % 9]
    present, counts = torch.ones(items, dtype=torch.bool), torch.randint(1, 9, (items,)).float()
    present[3::17] = False
    counts[5::8] = 0.0
    return F.normalize(about + 0.02 * torch.randn(items, 12), dim=1), present, counts


def members(of_items: torch.Tensor, items: torch.Tensor) -> set[frozenset[int]]:
    """Returns the groups as sets of items."""
    return {frozenset(items[of_items == group].tolist()) for group in of_items.unique()}


def test_items_are_in_the_group_whose_mean_is_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cosines, "ROWS", 16)
    monkeypatch.setattr(module, "STEPS", 60)  # until nothing changes
    rows, present, counts = some()
    of_items, total = find_clusters(rows, present, counts, (8, 20))
    met = present & (counts > 0)
    first = int(met.sum()) // 8
    assert of_items.shape == (90, 2)
    assert total == first + int(met.sum()) // 20
    assert of_items[present, 0].max() < first <= of_items[present, 1].min()
    for level in of_items[present].T:
        used = level.unique()
        means = [F.normalize(rows[met & (of_items == group).any(1)].mean(0), dim=0) for group in used]
        nearest = (rows[present] @ torch.stack(means).T).argmax(1)
        assert torch.equal(used[nearest], level)


def test_alike_items_share_a_group() -> None:
    rows, present, counts = some()
    of_items, _ = find_clusters(rows, present, counts, (4,))  # more groups than there are kinds
    for group in of_items[present].unique():
        kinds = (torch.arange(90) % 9)[present & (of_items[:, 0] == group)]
        assert len(kinds.unique()) == 1


def test_items_that_training_never_met_change_nothing_for_others() -> None:
    rows, present, counts = some()
    before, total = find_clusters(rows, present, counts, (8, 32))
    more = torch.cat([F.normalize(torch.randn(3, 12), dim=1), rows])  # new items come before the others
    with_added_items, again = find_clusters(
        more, F.pad(present, (3, 0), value=True), F.pad(counts, (3, 0)), (8, 32)
    )
    assert torch.equal(with_added_items[3:], before)
    assert again == total


def test_numbers_of_items_mean_nothing() -> None:
    rows, present, counts = some()
    before, _ = find_clusters(rows, present, counts, (4, 8))
    order = torch.randperm(90)
    again, _ = find_clusters(rows[order], present[order], counts[order], (4, 8))
    for one, other in zip(before.T, again.T, strict=True):
        assert members(one[present], torch.arange(90)[present]) == members(
            other[present[order]], order[present[order]]
        )


def test_few_items_are_one_group_and_the_least_known_make_none(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, present, counts = some(6)
    of_items, total = find_clusters(rows, present, counts, (8, 32))
    assert of_items[present].tolist() == [[0, 1]] * int(present.sum())
    assert total == 2
    of_items, total = find_clusters(rows, present, torch.zeros(6), (8, 32))
    assert of_items.tolist() == [[0]] * 6
    assert total == 1
    rows, present, counts = some()
    before, total = find_clusters(rows, present, counts.clamp(min=1.0), (8,))
    monkeypatch.setattr(cosines, "KNOWN", 30)
    after, fewer = find_clusters(rows, present, counts.clamp(min=1.0), (8,))
    assert (total, fewer) == (int(present.sum()) // 8, 3)
    assert after.max() < 3 <= before.max()


def test_others_join_the_group_whose_members_are_nearest() -> None:
    rows, present, counts = some()
    of_items, _ = find_clusters(rows, present, counts, (8, 20))
    found = nearest_clusters(rows[:9], of_items[present], rows[present])  # one of each kind
    for item in range(9):
        for level in range(2):
            used = of_items[present, level].unique()
            means = [rows[present & (of_items[:, level] == group)].mean(0) for group in used]
            cosines = torch.stack([F.normalize(mean, dim=0) @ rows[item] for mean in means])
            assert found[item, level] == used[cosines.argmax()]
