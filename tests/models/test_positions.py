"""No position's weight that scoring reads is left at its initial value, in any model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import TrainBatches, target_batches
from hafvt.features.item_features import load_item_features
from hafvt.models import MODELS, build_model, configure, resolve_config
from hafvt.models.blocks import PositionEmbedding

SIZES = {"width": 8, "id_width": 8, "max_length": 50, "pretrain_steps": 0, "num_prefixes": 50}


def build(name, data):
    torch.manual_seed(0)
    fields = MODELS[name].config_class.model_fields
    config = configure(name, params={key: value for key, value in SIZES.items() if key in fields})
    item_features = load_item_features(data, relations=True)
    return build_model(name, item_features, resolve_config(config, item_features)), item_features


def used_positions(model):
    """Return by parameter the positions, or distances, that have a gradient."""
    used = {}
    for name, parameter in model.named_parameters():
        if name.endswith(("positions.weight", "distances")):
            is_used = (parameter.grad != 0).any(0 if name.endswith("distances") else 1)
            used[name] = set(is_used.nonzero()[:, 0].tolist())
    return used


@pytest.mark.parametrize("name", [name for name in MODELS if MODELS[name].has_weights])
def test_scores_of_the_longest_test_history_read_trained_positions_only(name, make_small):
    data = make_small(users=60)
    model, _ = build(name, data)
    model.train()
    (batch,) = TrainBatches(data, batch_size=60, max_length=model.max_length, seed=0).epoch(0)
    model.loss(batch).backward()
    trained = used_positions(model)
    torch.optim.Adam(model.parameters()).step()
    model.zero_grad()
    model.eval()
    (*_, (_, longest)) = target_batches(data, np.asarray(data.test), 1, model.max_length)
    assert longest.lengths.max() > batch.lengths.max() - 1
    for number in range(len(data.domains)):
        if name == "hafvt":  # its scores are computed in place, without gradients
            outputs = [query.h for query in model.branch_queries(longest, number)]
        else:
            outputs = [model.scores(longest, number)]
        torch.stack([output.pow(3).sum() for output in outputs]).sum().backward()
    read = used_positions(model)
    assert all(read[parameter] <= trained[parameter] for parameter in trained)
    assert bool(trained) == (name in ("hafvt", "sasrec", "tricdr", "c2dsr"))


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
