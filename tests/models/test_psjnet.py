"""pi-Net (PSJNet-I) and PSJNet-II against their references in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.features.item_features import load_item_features
from hafvt.models.configs import PiNetConfig, PsjNetConfig
from hafvt.models.pinet import PiNet
from hafvt.models.psjnet import PsjNet
from tests.conftest import as_batch
from tests.reference import psjnet as reference

BORDER = 30
HISTORIES = [[3, 41, 8, 30, 31, 3, 9], [45, 31, 30], [9], [7, 12, 7], [33, 2]]  # one domain empty, length one
MODELS = {
    "pinet": (PiNet, PiNetConfig, reference.pinet_logits),
    "psjnet": (PsjNet, PsjNetConfig, reference.psjnet_logits),
}


def build(data, name, **changes):
    torch.manual_seed(0)
    model_class, config, logits = MODELS[name]
    model = model_class(
        load_item_features(data), config(**{"width": 5, "latent_users": 3, "dropout": 0.0, **changes})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, {key: t.double().numpy() for key, t in model.state_dict().items()}, logits


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("changes", [{}, {"latent_users": 1}, {"tie_user_projections": True}], ids=str)
@pytest.mark.parametrize("histories", [HISTORIES, HISTORIES[1:2]], ids=["many", "one"])
def test_pinet_and_psjnet_loss_and_scores_equal_reference(small, name, changes, histories):
    model, w, logits = build(small, name, **changes)
    expected = reference.loss(histories, logits, w, BORDER)
    assert model.loss(as_batch(histories)).item() == pytest.approx(expected, abs=1e-5)
    for domain in range(2):
        scores = model.scores(as_batch(histories), domain).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            np.testing.assert_allclose(row, logits(history, domain, w, BORDER), atol=1e-5)
        part = small.domains[domain]
        candidates = torch.tensor([[part.stop - 1, part.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), domain, candidates).detach().numpy()
        np.testing.assert_allclose(alone, scores[:, [-1, 2]], atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_pinet_and_psjnet_with_empty_histories_score_by_bias(small, name):
    model, w, _ = build(small, name)
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    for domain in range(2):
        scores = model.scores(empty, domain).detach().numpy()[0]
        np.testing.assert_allclose(scores, w[f"outputs.{domain}.bias"], atol=1e-6)
    model.loss(as_batch(HISTORIES)).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.loss(as_batch([[4], [40]])).item() == 0


@pytest.mark.parametrize("name", MODELS)
def test_pinet_and_psjnet_with_three_domains_are_refused(make_small, name):
    with pytest.raises(HafvtError, match="defined for two domains, not 3"):
        build(make_small(sizes=(10, 10, 10)), name)
