"""Batches: every training sequence once, nothing at or after a target."""

from __future__ import annotations

import numpy as np
import pytest

from hafvt.data.batches import TrainBatches, collate, target_batches


def rows(batch):
    return [tuple(items[:n].tolist()) for items, n in zip(batch.items, batch.lengths, strict=True)]


def training_sequences(data):
    parts = zip(data.offsets[:-1], data.train_lengths, strict=True)
    return [tuple(data.items[start : start + length].tolist()) for start, length in parts if length >= 2]


def test_train_batches_epoch_has_every_training_sequence_once(small):
    batches = TrainBatches(small, batch_size=7, max_length=50, seed=0)
    seen = [row for batch in batches.epoch(0) for row in rows(batch)]
    expected = training_sequences(small)
    assert sorted(seen) == sorted(expected)
    assert len(list(batches.epoch(0))) == len(batches)
    assert batches.num_targets == sum(len(row) - 1 for row in expected)


@pytest.mark.parametrize("max_length", [2, 3, 4, 5, 7])
def test_windows_of_long_sequences_have_each_target_once(small, max_length):
    batches = TrainBatches(small, batch_size=7, max_length=max_length, seed=0)
    for epoch in range(3):
        starts, stops = batches.windows(epoch)
        assert ((stops - starts >= 2) & (stops - starts <= max_length)).all()
        targets = [position for a, b in zip(starts, stops, strict=True) for position in range(a + 1, b)]
        wanted = [p for a, b in zip(batches.starts, batches.stops, strict=True) for p in range(a + 1, b)]
        assert sorted(targets) == wanted
        assert len(targets) == batches.num_targets
        assert len(list(batches.epoch(epoch))) == len(batches)


def test_windows_begin_elsewhere_in_each_epoch_and_the_same_for_a_seed(small):
    def windows(epoch, seed=0):
        return np.stack(TrainBatches(small, 7, 4, seed).windows(epoch)).tolist()

    assert windows(0) == windows(0)
    assert windows(0) != windows(1)
    assert windows(0) != windows(0, seed=1)


def test_train_batches_order_depends_on_seed_and_epoch_only(small):
    def order(seed, epoch, first=0):
        return [rows(batch) for batch in TrainBatches(small, 7, 50, seed).epoch(epoch, first)]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 4)
    assert order(0, 3) != order(1, 3)
    assert order(0, 3, first=2) == order(0, 3)[2:]


def test_target_batches_histories_end_right_before_their_target(small):
    seen = 0
    for picked, batch in target_batches(small, small.test, 6, max_length=4):
        for index, row in zip(picked, rows(batch), strict=True):
            position = small.test[index]
            start = max(small.offsets[small.users_at(np.array([position]))[0]], position - 4)
            assert row == tuple(small.items[start:position].tolist())
            seen += 1
    assert seen == len(small.test)


def test_collate_empty_slice_is_padding():
    batch = collate(np.array([5, 6, 7]), np.array([1, 0]), np.array([1, 3]))
    assert rows(batch) == [(), (5, 6, 7)]
    assert batch.items[0].tolist() == [0, 0, 0]
