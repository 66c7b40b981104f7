"""The switch to sampled softmaxes: the same loss where the sample is the catalog, a fair run elsewhere."""

from __future__ import annotations

import pytest
import torch

from hafvt.data.batches import collate
from hafvt.features.item_features import load_item_features
from hafvt.models import build_model, configure
from hafvt.ops.sampled_softmax import ItemSample


@pytest.mark.parametrize("name", ["hafvt", "sasrec"])
def test_a_sample_of_every_item_gives_the_exact_loss(small, name, monkeypatch):
    def every(popularity, among, count):
        assert count == 7
        assert len(popularity) == len(catalog)
        return ItemSample(torch.arange(among.start, among.stop), torch.zeros(among.stop - among.start))

    catalog = load_item_features(small)
    monkeypatch.setattr(f"hafvt.models.{name}.sample_items", every)
    batch = collate(small.items, small.offsets[:6], small.offsets[1:7])
    losses, gradients = [], []
    for sampled in (0, 7):
        torch.manual_seed(0)
        model = build_model(name, catalog, configure(name, params={"num_negatives": sampled, "dropout": 0.0}))
        losses.append(model.loss(batch))
        losses[-1].backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(losses[0], losses[1])
    for exact, estimate in zip(*gradients, strict=True):
        torch.testing.assert_close(exact, estimate, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["hafvt", "sasrec"])
def test_draws_change_the_loss_and_seeds_fix_it(small, name):
    batch = collate(small.items, small.offsets[:6], small.offsets[1:7])
    torch.manual_seed(0)
    model = build_model(name, load_item_features(small), configure(name, params={"num_negatives": 5})).eval()
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(float(model.loss(batch).detach()))
    assert found[0] == found[1] != found[2]
