"""No position's weight that scoring reads is left at its initial value, in any model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import TrainBatches, target_batches
from hafvt.features.item_features import load_item_features
from hafvt.models import MODELS, build_model, configure, resolve_modalities
from hafvt.models.blocks import PositionEmbedding

SIZES = {"width": 8, "id_width": 8, "max_length": 50, "pretrain_steps": 0, "num_prefixes": 50}


def build(name, data):
    torch.manual_seed(0)
    fields = MODELS[name].config_class.model_fields
    config = configure(name, params={key: value for key, value in SIZES.items() if key in fields})
    item_features = load_item_features(data, relations=True)
    return build_model(name, item_features, resolve_modalities(config, item_features)), item_features


@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("popularity", "hafvt")])
def test_scores_of_the_longest_test_history_read_trained_positions_only(name, make_small):
    data = make_small(users=60)
    model, item_features = build(name, data)
    model.train()
    (batch,) = TrainBatches(data, batch_size=60, max_length=model.max_length, seed=0).epoch(0)
    model.loss(batch).backward()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter_name.endswith("positions.weight"):
                parameter[(parameter.grad == 0).all(1)] = torch.nan
    model.eval()
    (*_, (_, longest)) = target_batches(data, np.asarray(data.test), 1, model.max_length)
    assert longest.lengths.max() > batch.lengths.max() - 1
    for number, domain in enumerate(data.domains):
        is_trained = item_features.is_trained[domain.start : domain.stop]
        scores = model.scores(longest, number)[:, is_trained]
        assert scores.isfinite().all()


def test_position_embedding_counts_from_the_latest_item():
    torch.manual_seed(0)
    positions = PositionEmbedding(5, 2)
    rows = positions.weight
    positions.eval()
    expected = torch.stack([rows[[2, 1, 0, 0]], rows[[0, 0, 0, 0]]])
    assert torch.equal(positions.from_latest(torch.tensor([3, 1]), 4), expected)
    positions.train().from_latest(torch.tensor([3, 2]), 3)
    positions.eval()
    assert torch.equal(positions.from_latest(torch.tensor([5]), 5)[0], rows[[2, 2, 2, 1, 0]])
