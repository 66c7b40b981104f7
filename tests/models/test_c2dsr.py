"""C2DSR against its reference in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.features.item_features import load_item_features
from hafvt.models.c2dsr import C2dsr
from hafvt.models.configs import C2dsrConfig
from tests.conftest import as_batch
from tests.reference import c2dsr as reference

HISTORIES = [[3, 41, 8, 30, 31, 3, 9], [45, 31, 30], [9], [7, 12, 7], [33, 2], [41, 7, 33, 11, 44]]
THREE = [[3, 41, 22, 8, 29, 44, 1], [12, 14, 11], [40, 2]]

each_history_set = pytest.mark.parametrize(
    "histories", [HISTORIES, HISTORIES[:1], HISTORIES[3:4]], ids=["many", "one", "one domain"]
)


def build(data, **changes):
    torch.manual_seed(0)
    config = C2dsrConfig(**{"width": 6, "dropout": 0.0, "max_length": 9, **changes})
    model = C2dsr(load_item_features(data, (), relations=True), config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model, {key: t.double().numpy() for key, t in model.state_dict().items()}, config


def graphs_of(data, weighted=False):
    """Return the graphs of merged and of within-domain transitions of the training histories."""
    bounds = zip(data.offsets[:-1], data.train_lengths, strict=True)
    histories = [data.items[start : start + end].tolist() for start, end in bounds]
    own = [reference.part(history, domain) for history in histories for domain in data.domains]
    total = data.domains[-1].stop
    return [reference.transitions(rows, total, weighted) for rows in (histories, own)]


def loss_and_corrupted(model, histories, monkeypatch):
    """Return the loss and the corrupted histories of its infomax terms."""
    drawn, randint = [], torch.randint

    def record_randint(*args, **options):
        values = randint(*args, **options)
        if values.ndim == 2:
            drawn.append(values)
        return values

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", record_randint)
        loss = model.loss(as_batch(histories)).item()
    corrupted = []
    for domain, items in zip(model.domains, drawn, strict=True):
        rows = zip(items.tolist(), (h[:-1] for h in histories), strict=True)
        replacements = [list(zip(new, old, strict=False)) for new, old in rows]
        corrupted.append(
            [[n if domain.start <= o < domain.stop else o for n, o in row] for row in replacements]
        )
        assert ((items >= domain.start) & (items < domain.stop)).all()
    return loss, corrupted


@pytest.mark.parametrize(
    "changes",
    [{}, {"graph_layers": 2, "blocks": 1, "heads": 3}, {"graph_layers": 3, "weighted_transitions": True}],
    ids=str,
)
@each_history_set
def test_c2dsr_scores_and_loss_equal_reference(small, changes, histories, monkeypatch):
    model, w, config = build(small, **changes)
    graphs = graphs_of(small, config.weighted_transitions)
    for number, domain in enumerate(small.domains):
        scores = model.scores(as_batch(histories), number).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            expected, _ = reference.logits(history, number, small.domains, graphs, w, config)
            np.testing.assert_allclose(row, expected, atol=2e-5)
        candidates = torch.tensor([[domain.stop - 1, domain.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), number, candidates).detach().numpy()
        np.testing.assert_allclose(alone, scores[:, [-1, 2]], atol=1e-5)
    loss, corrupted = loss_and_corrupted(model, histories, monkeypatch)
    assert loss == pytest.approx(
        reference.loss(histories, corrupted, small.domains, graphs, w, config), abs=1e-5
    )


def test_c2dsr_with_three_domains_equals_reference(make_small, monkeypatch):
    data = make_small(sizes=(10, 15, 20))
    model, w, config = build(data)
    graphs = graphs_of(data)
    loss, corrupted = loss_and_corrupted(model, THREE, monkeypatch)
    assert loss == pytest.approx(reference.loss(THREE, corrupted, data.domains, graphs, w, config), abs=1e-5)
    for number in range(3):
        scores = model.scores(as_batch(THREE), number).detach().numpy()
        for row, history in zip(scores, THREE, strict=True):
            expected, _ = reference.logits(history, number, data.domains, graphs, w, config)
            np.testing.assert_allclose(row, expected, atol=2e-5)


def test_transition_graph_of_a_dataset_has_training_transitions_only(small):
    dense = [torch.zeros(50, 50) for _ in range(2)]
    model, _, _ = build(small)
    eye = torch.eye(50)
    for matrix, encoder in zip(dense, (model.merged, model.own[0]), strict=True):
        matrix += encoder.graph(eye)
    for matrix, expected in zip(dense, graphs_of(small), strict=True):
        np.testing.assert_allclose(matrix.numpy(), expected, atol=1e-6)
    assert graphs_of(small)[0].any()


def test_c2dsr_scores_with_padding_stay_equal(small):
    model, _, _ = build(small)
    for number in range(2):
        alone = [model.scores(as_batch([history]), number) for history in HISTORIES]
        torch.testing.assert_close(
            model.scores(as_batch(HISTORIES, pad=2, width=9), number), torch.cat(alone)
        )


def test_c2dsr_with_empty_histories_gives_bias_and_zero_loss(small):
    model, w, _ = build(small)
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    for number in range(2):
        scores = model.scores(empty, number).detach().numpy()[0]
        np.testing.assert_allclose(scores, w[f"outputs.{number}.bias"], atol=1e-6)
    loss = model.loss(as_batch([[4], [40]]))
    assert loss.item() == 0
    loss.backward()
