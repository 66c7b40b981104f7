"""The loss with sampled negatives."""

from __future__ import annotations

import pytest
import torch

from hafvt.data.batches import collate
from hafvt.features.item_features import load_item_features
from hafvt.models import build_model, configure
from hafvt.ops.sampled_softmax import ItemSample


@pytest.mark.parametrize("name", ["hafvt", "sasrec"])
def test_sampled_loss_with_every_item_equals_exact_loss(small, name, monkeypatch):
    def draw_all(cumulative, candidates, count, device):
        assert count == 7
        assert len(cumulative) == len(item_features)
        return ItemSample(
            torch.arange(candidates.start, candidates.stop), torch.zeros(candidates.stop - candidates.start)
        )

    item_features = load_item_features(small)
    module = {"hafvt": "step_items", "sasrec": "sasrec"}[name]
    monkeypatch.setattr(f"hafvt.models.{module}.sample_items", draw_all)
    batch = collate(small.items, small.offsets[:6], small.offsets[1:7])
    losses, gradients = [], []
    for num_negatives in (0, 7):
        torch.manual_seed(0)
        model = build_model(
            name, item_features, configure(name, params={"num_negatives": num_negatives, "dropout": 0.0})
        )
        losses.append(model.loss(batch))
        losses[-1].backward()
        gradients.append([p.grad.to_dense() for p in model.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    for exact, estimate in zip(*gradients, strict=True):
        torch.testing.assert_close(exact, estimate, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hafvt", "sasrec"])
def test_sampled_loss_with_a_seed_is_reproducible(small, name):
    batch = collate(small.items, small.offsets[:6], small.offsets[1:7])
    torch.manual_seed(0)
    model = build_model(name, load_item_features(small), configure(name, params={"num_negatives": 5})).eval()
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(model.loss(batch).detach()))
    assert losses[0] == losses[1] != losses[2]
