"""SR-GNN against its reference in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.features.item_features import load_item_features
from hafvt.models.configs import SrGnnConfig
from hafvt.models.srgnn import SrGnn, session_graphs
from tests.conftest import as_batch
from tests.reference import srgnn as reference

HISTORIES = [
    [3, 41, 3, 8, 41, 3, 3],
    [45, 31],
    [9],
    [7, 12, 7, 12, 7, 12, 33, 34],
]  # repeats, and histories of one domain


def build(data, **changes):
    torch.manual_seed(0)
    model = SrGnn(load_item_features(data), SrGnnConfig(**{"width": 6, **changes}))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, {name: t.double().numpy() for name, t in model.state_dict().items()}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("hybrid", [True, False])
@pytest.mark.parametrize("histories", [HISTORIES, HISTORIES[2:3]])
def test_srgnn_scores_equal_reference(small, steps, hybrid, histories):
    model, w = build(small, steps=steps, hybrid=hybrid)
    for number, domain in enumerate(small.domains):
        scores = model.scores(as_batch(histories), number).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            s = reference.session(np.array(history), w, steps, hybrid)
            np.testing.assert_allclose(row, w["items.weight"][domain.start : domain.stop] @ s, atol=1e-5)
        candidates = torch.tensor([[domain.stop - 1, domain.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), number, candidates).detach().numpy()
        np.testing.assert_allclose(alone, scores[:, [-1, 2]], atol=1e-6)


def test_srgnn_loss_of_all_prefixes_equals_reference(small):
    model, w = build(small, num_prefixes=100)
    expected = [
        reference.prefix_loss(np.array(history), length, w, 1, True)
        for history in HISTORIES
        for length in range(1, len(history))
    ]
    assert model.loss(as_batch(HISTORIES)).item() == pytest.approx(np.mean(expected), abs=1e-5)


def test_sample_prefixes_over_many_steps_is_uniform(small, monkeypatch):
    model, _ = build(small, num_prefixes=2)
    seen = []

    def prefix_loss(batch, row, length):
        seen.extend(zip(row.tolist(), length.tolist(), strict=True))
        return torch.zeros(())

    monkeypatch.setattr(model, "prefix_loss", prefix_loss)
    for _ in range(300):
        model.loss(as_batch(HISTORIES))
    counts = {pair: seen.count(pair) for pair in set(seen)}
    assert set(counts) == {(r, n) for r, history in enumerate(HISTORIES) for n in range(1, len(history))}
    assert counts[1, 1] == 300  # its only prefix
    assert all(60 <= counts[0, n] <= 140 for n in range(1, 7))  # 2 of 6: 100 expected


def test_srgnn_loss_without_next_items_is_zero(small):
    model, _ = build(small)
    assert model.loss(as_batch([[5], [9]])).item() == 0


def test_session_graphs_of_a_history_normalize_edges(small):
    node, a_in, a_out = session_graphs(as_batch([[4, 6, 4, 8, 6, 4]]))
    assert node.tolist() == [[0, 1, 0, 3, 1, 0]]
    # 4 -> 6, 6 -> 4, 4 -> 8, 8 -> 6; the second 6 -> 4 counts once
    assert a_out[0, 0].tolist() == [0, 0.5, 0, 0.5, 0, 0]
    assert a_in[0, 1].tolist() == [0.5, 0, 0, 0.5, 0, 0]
    assert a_in[0, 0].tolist() == [0, 1, 0, 0, 0, 0]
    assert not a_out[0, [2, 4, 5]].any()
