"""Batches: every training sequence once, nothing at or after a target."""

from __future__ import annotations

import numpy as np
import pytest

from hafvt.data.batches import TrainBatches, collate, target_batches


def rows(batch):
    return [tuple(items[:n].tolist()) for items, n in zip(batch.items, batch.lengths, strict=True)]


@pytest.mark.parametrize("max_length", [3, 50])
def test_train_batches_epoch_has_every_training_sequence_once(small, max_length):
    batches = TrainBatches(small, batch_size=7, max_length=max_length, seed=0)
    seen = [row for batch in batches.epoch(0) for row in rows(batch)]
    expected = [
        tuple(small.items[start : start + end][-max_length:].tolist())
        for start, end in zip(small.offsets[:-1], small.train_lengths, strict=True)
        if end >= 2
    ]
    assert sorted(seen) == sorted(expected)
    assert len(list(batches.epoch(0))) == len(batches)
    assert batches.num_targets == sum(len(row) - 1 for row in expected)


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
