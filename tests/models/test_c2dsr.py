"""C2DSR against its equations in numpy."""

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

some_histories = pytest.mark.parametrize(
    "histories", [HISTORIES, HISTORIES[:1], HISTORIES[3:4]], ids=["many", "one", "one domain"]
)


def made(data, **changes):
    torch.manual_seed(0)
    config = C2dsrConfig(**{"width": 6, "dropout": 0.0, "max_length": 9, **changes})
    model = C2dsr(load_item_features(data, (), relations=True), config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model, {key: t.double().numpy() for key, t in model.state_dict().items()}, config


def graphs_of(data, counts=False):
    """The merged graph and that of each domain's own transitions, from the training histories."""
    bounds = zip(data.offsets[:-1], data.train_lengths, strict=True)
    histories = [data.items[start : start + end].tolist() for start, end in bounds]
    own = [reference.part(history, domain) for history in histories for domain in data.domains]
    total = data.domains[-1].stop
    return [reference.transitions(some, total, counts) for some in (histories, own)]


def loss_and_wrong(model, histories, monkeypatch):
    """The loss, and the corrupted histories that it was made with."""
    drawn, randint = [], torch.randint

    def recorded(*args, **options):
        found = randint(*args, **options)
        if found.ndim == 2:
            drawn.append(found)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(torch, "randint", recorded)
        loss = model.loss(as_batch(histories)).item()
    wrong = []
    for domain, items in zip(model.domains, drawn, strict=True):
        rows = zip(items.tolist(), (h[:-1] for h in histories), strict=True)
        pairs = [list(zip(new, old, strict=False)) for new, old in rows]
        wrong.append([[n if domain.start <= o < domain.stop else o for n, o in row] for row in pairs])
        assert ((items >= domain.start) & (items < domain.stop)).all()
    return loss, wrong


@pytest.mark.parametrize(
    "changes",
    [{}, {"graph_layers": 2, "blocks": 1, "heads": 3}, {"graph_layers": 3, "weighted_transitions": True}],
    ids=str,
)
@some_histories
def test_scores_and_loss_are_the_equations(small, changes, histories, monkeypatch):
    model, w, config = made(small, **changes)
    graphs = graphs_of(small, config.weighted_transitions)
    for number, domain in enumerate(small.domains):
        found = model.scores(as_batch(histories), number).detach().numpy()
        for row, history in zip(found, histories, strict=True):
            expected, _ = reference.logits(history, number, small.domains, graphs, w, config)
            np.testing.assert_allclose(row, expected, atol=2e-5)
        some = torch.tensor([[domain.stop - 1, domain.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), number, some).detach().numpy()
        np.testing.assert_allclose(alone, found[:, [-1, 2]], atol=1e-5)
    loss, wrong = loss_and_wrong(model, histories, monkeypatch)
    assert loss == pytest.approx(reference.loss(histories, wrong, small.domains, graphs, w, config), abs=1e-5)


def test_three_domains_have_three_encoders(make_small, monkeypatch):
    data = make_small(sizes=(10, 15, 20))
    model, w, config = made(data)
    graphs = graphs_of(data)
    loss, wrong = loss_and_wrong(model, THREE, monkeypatch)
    assert loss == pytest.approx(reference.loss(THREE, wrong, data.domains, graphs, w, config), abs=1e-5)
    for number in range(3):
        found = model.scores(as_batch(THREE), number).detach().numpy()
        for row, history in zip(found, THREE, strict=True):
            expected, _ = reference.logits(history, number, data.domains, graphs, w, config)
            np.testing.assert_allclose(row, expected, atol=2e-5)


def test_the_graph_holds_training_transitions_alone(small):
    dense = [torch.zeros(50, 50) for _ in range(2)]
    model, _, _ = made(small)
    eye = torch.eye(50)
    for matrix, encoder in zip(dense, (model.merged, model.own[0]), strict=True):
        matrix += encoder.graph(eye)
    for found, expected in zip(dense, graphs_of(small), strict=True):
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert graphs_of(small)[0].any()


def test_padding_and_company_change_no_score(small):
    model, _, _ = made(small)
    for number in range(2):
        alone = [model.scores(as_batch([history]), number) for history in HISTORIES]
        torch.testing.assert_close(
            model.scores(as_batch(HISTORIES, pad=2, width=9), number), torch.cat(alone)
        )


def test_an_empty_history_and_histories_without_targets(small):
    model, w, _ = made(small)
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    for number in range(2):
        found = model.scores(empty, number).detach().numpy()[0]
        np.testing.assert_allclose(found, w[f"outputs.{number}.bias"], atol=1e-6)
    loss = model.loss(as_batch([[4], [40]]))
    assert loss.item() == 0
    loss.backward()
