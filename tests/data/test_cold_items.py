"""Held-out items are in no history, and their targets follow the training part."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hafvt.data.cold_items import cold_target_view, draw_cold_items
from hafvt.data.dataset import Dataset
from hafvt.data.info import info
from hafvt.data.prepare import prepare
from hafvt.errors import HafvtError

IDS = [f"{domain}{n:02}" for domain in "tc" for n in range(20)]
ITEMS = pl.DataFrame({"item_id": IDS, "domain": [{"t": "tea", "c": "cups"}[item_id[0]] for item_id in IDS]})


def log(users: int = 30, length: int = 25) -> pl.DataFrame:
    random = np.random.default_rng(0)
    rows = [(f"u{u}", IDS[random.integers(40)], time) for u in range(users) for time in range(length)]
    return pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")


@pytest.mark.parametrize("split", ["leave-one-out", "time"])
def test_prepare_hold_out_items_are_in_no_history_and_their_targets_follow_training(tmp_path, split) -> None:
    interactions = log()
    data = prepare(interactions, ITEMS, tmp_path / "data", hold_out_items=0.2, split=split)
    cold_items = set(np.unique(data.cold_targets[:, 2]))
    assert data.manifest["cold_items"] == 8
    assert 4 < len(cold_items) <= 8
    assert not cold_items & set(data.items.tolist())
    names = data.item_table["item_id"]
    by_user = interactions.sort("timestamp", maintain_order=True).partition_by("user_id", as_dict=True)
    num_targets = 0
    for user, name in enumerate(data.user_ids):
        item_ids = by_user[(name,)]["item_id"].to_list()
        start, end = int(data.offsets[user]), int(data.offsets[user]) + int(data.train_lengths[user])
        history = [item_id for item_id in item_ids if item_id in set(names.gather(np.unique(data.items)))]
        assert names.gather(data.items[start : data.offsets[user + 1]]).to_list() == history
        expected, before = [], 0
        for item_id in item_ids:  # counts the interactions before each held-out item
            if item_id in history:
                before += 1
            elif before and start + before >= end:
                expected.append((start + before, item_id))
        rows = data.cold_targets[data.cold_targets[:, 0] == user]
        assert [(int(p), names[int(i)]) for _, p, i in rows] == expected
        num_targets += len(expected)
    assert num_targets == len(data.cold_targets) > 20
    assert f"held out of training: 8 cold items with {num_targets} targets" in str(info(data))


def test_draw_cold_items_draws_a_share_of_each_domain_by_seed(tmp_path) -> None:
    domains = np.array([0] * 30 + [1] * 5 + [2] * 2)
    drawn = draw_cold_items(domains, 0.1, 0)
    assert [int(drawn[domains == n].sum()) for n in range(3)] == [3, 1, 1]
    assert (draw_cold_items(domains, 0.1, 0) == drawn).all()
    assert (draw_cold_items(domains, 0.1, 1) != drawn).any()
    assert not draw_cold_items(domains, 0.0, 0).any()
    assert draw_cold_items(domains, 0.99, 0).sum() == 29 + 4 + 1  # never all of a domain
    with pytest.raises(HafvtError, match="--hold-out-items is 1"):
        prepare(log(), ITEMS, tmp_path / "data", hold_out_items=1.0)


def test_prepare_without_hold_out_items_has_no_cold_targets(tmp_path) -> None:
    data = prepare(log(), ITEMS, tmp_path / "data")
    assert data.cold_targets.shape == (0, 3)
    assert not (data.folder / "cold.npy").exists()
    assert "held out" not in str(info(data))


def test_cold_target_view_has_a_user_for_each_target(tmp_path) -> None:
    data = prepare(log(), ITEMS, tmp_path / "data", hold_out_items=0.2)
    for longest in (50, 3):
        view = cold_target_view(Dataset.open(data.folder), longest)
        assert len(view.test) == len(data.cold_targets)
        for row, (user, position, item) in enumerate(data.cold_targets.tolist()):
            start = max(int(data.offsets[user]), position - longest)
            history = data.items[start:position].tolist()
            assert view.items[view.offsets[row] : view.offsets[row + 1]].tolist() == [*history, item]
            assert view.test[row] == view.offsets[row + 1] - 1
