"""Repeats of the training part, and what follows from them for candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from hafvt.data import repeats
from hafvt.data.dataset import Dataset
from hafvt.data.info import info
from hafvt.data.prepare import prepare
from hafvt.data.repeats import RepeatCounts, count_repeats, find_repeats


@pytest.mark.parametrize("chunk", [1, 7, repeats.CHUNK])
def test_count_repeats_equals_counting_by_definition(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeats, "CHUNK", chunk)
    random = np.random.default_rng(0)
    lengths = random.integers(0, 9, 30)
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = random.integers(0, 6, lengths.sum()).astype(np.int32)
    train_lengths = np.maximum(lengths - random.integers(0, 3, 30), 0)
    expected = [[0, 0], [0, 0]]
    for start, length in zip(offsets, train_lengths, strict=False):
        history = items[start : start + length].tolist()
        for position in range(1, len(history)):
            domain = int(history[position] >= 4)
            expected[domain][0] += 1
            expected[domain][1] += history[position] in history[:position]
    assert count_repeats(items, offsets, train_lengths, [0, 4]) == [RepeatCounts(*pair) for pair in expected]
    histories = np.split(items, offsets[1:-1])
    is_repeat = [item in history[:n] for history in histories for n, item in enumerate(history.tolist())]
    assert find_repeats(items, offsets).tolist() == is_repeat


@pytest.fixture
def shop(tmp_path) -> Dataset:
    """Two domains: everybody buys new books, and the same food again and again, in baskets of two."""
    rows = [
        (f"u{user}", item, 10 * step, domain)
        for user in range(6)
        for step in range(4)
        for item, domain in [(f"b{(user + step) % 6}", "books"), (f"f{user % 3}", "food")]
    ]
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp", "domain"], orient="row")
    return prepare(frame, out=tmp_path / "shop", ties="input")


def test_prepare_stores_repeats_and_info_prints_them(shop: Dataset) -> None:
    books, food = shop.repeats
    assert (books.repeats, food.repeats) == (0, food.next_items - 6)
    assert shop.manifest["repeats"] == [list(books), list(food)]
    text = str(info(shop))
    assert f"{food.share:.1%}" in next(
        line for line in text.splitlines() if line.startswith("repeats (next items")
    )
    # Books and food of a basket have one time; the last food and the last book are targets.
    assert info(shop).same_time_targets == 6
    assert "targets at the time of the last item of their history: 6 of 12 (50.0%)" in text


def test_exclude_seen_follows_the_repeats_of_a_domain(shop: Dataset) -> None:
    assert shop.exclude_seen() == (True, False)
    assert shop.exclude_seen("all") == (False, False)
    assert shop.exclude_seen("unseen") == (True, True)
    unmeasured = {name: value for name, value in shop.manifest.items() if name != "repeats"}
    assert replace(shop, manifest=unmeasured).repeats == shop.repeats
