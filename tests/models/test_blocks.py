"""Layers and functions that several models share."""

from __future__ import annotations

import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.models.blocks import Dropout, causal_attention
from hafvt.models.sequences import last_states, next_items, select_items

BATCH = Batch(torch.tensor([[3, 8, 1, 9, 2], [7, 6, 0, 0, 0], [5, 0, 0, 0, 0]]), torch.tensor([5, 2, 1]))


def rows(batch: Batch) -> list[list[int]]:
    return [items[:n].tolist() for items, n in zip(batch.items, batch.lengths, strict=True)]


def test_next_items_of_a_batch_pairs_each_item_with_its_successor():
    inputs, mask, targets = next_items(BATCH)
    assert rows(inputs) == [[3, 8, 1, 9], [7], []]
    assert list(zip(inputs.items[mask].tolist(), targets.tolist(), strict=True)) == [
        (3, 8),
        (8, 1),
        (1, 9),
        (9, 2),
        (7, 6),
    ]


def test_select_items_with_a_mask_keeps_order_and_drops_padding():
    assert rows(select_items(BATCH, BATCH.items >= 5)) == [[8, 9], [7, 6], [5]]
    below_5 = select_items(BATCH, BATCH.items < 5)  # the padding 0 is below 5 and must not be selected
    assert rows(below_5) == [[3, 1, 2], [], []]
    assert rows(select_items(BATCH, BATCH.items > 99)) == [[], [], []]


def test_last_states_of_an_empty_sequence_is_zero():
    states = torch.arange(24.0).view(3, 4, 2) + 1
    last = last_states(states, torch.tensor([4, 1, 0]))
    assert last.tolist() == [states[0, 3].tolist(), states[1, 0].tolist(), [0, 0]]


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5])
def test_dropout_in_training_drops_its_rate_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    layer = Dropout(rate)
    x = torch.ones(400, 500, requires_grad=True)
    y = layer(x)
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.005)
    assert y.mean().item() == pytest.approx(1, abs=0.01)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())  # the same mask backward
    torch.manual_seed(0)
    assert torch.equal(layer(x), y)
    assert not torch.equal(layer(x), y)
    assert layer.eval()(x) is x


def test_causal_attention_without_dropout_equals_formula():
    q, k, v = torch.randn(3, 2, 2, 5, 4).double()
    z = q @ k.transpose(-1, -2) / 2
    z = z.masked_fill(torch.ones(5, 5).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(causal_attention(q, k, v), z.softmax(-1) @ v)
