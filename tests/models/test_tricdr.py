"""Tri-CDR against its reference in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.features.item_features import load_item_features
from hafvt.models.configs import TriCdrConfig
from hafvt.models.tricdr import TriCdr
from tests.conftest import as_batch
from tests.reference import tricdr as reference

BORDER = 30
HISTORIES = [[3, 41, 8, 30, 31, 3, 9], [45, 31, 30], [9], [7, 12, 7], [33, 2], [41, 7, 33, 11, 44]]


each_history_set = pytest.mark.parametrize(
    "histories", [HISTORIES, HISTORIES[:1], HISTORIES[3:4]], ids=["many", "one", "one domain"]
)
SMALL = {
    "width": 6,
    "dropout": 0.0,
    "max_length": 9,
    "pretrain_steps": 0,
    "num_prefixes": 100,
    "triplet_weight": 1.0,
}


def build(data, **changes):
    torch.manual_seed(0)
    config = TriCdrConfig(**{**SMALL, **changes})
    model = TriCdr(load_item_features(data), config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, {key: t.double().numpy() for key, t in model.state_dict().items()}, config


@each_history_set
def test_tricdr_scores_equal_reference(small, histories):
    model, w, config = build(small)
    for domain, part in enumerate(small.domains):
        scores = model.scores(as_batch(histories), domain).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            np.testing.assert_allclose(row, reference.logits(history, domain, w, BORDER, config), atol=1e-5)
        candidates = torch.tensor([[part.stop - 1, part.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), domain, candidates).detach().numpy()
        np.testing.assert_allclose(alone, scores[:, [-1, 2]], atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"blocks": 1, "heads": 3, "temperature": 0.5},
        {"contrast_weight": 4.0, "contrast_rates": (5.0, 1.0, 2.0), "triplet_margin": 0.3},
        {"contrast_weight": 0.0, "triplet_weight": 0.0},
    ],
    ids=str,
)
@each_history_set
def test_tricdr_full_loss_equals_reference(small, changes, histories):
    model, w, config = build(small, **changes)
    expected = reference.loss(histories, w, BORDER, config)
    assert model.loss(as_batch(histories)).item() == pytest.approx(expected, abs=1e-5)


@each_history_set
def test_tricdr_first_steps_train_encoders_and_are_counted(small, histories):
    model, w, config = build(small, pretrain_steps=2)
    batch = as_batch(histories)
    first = pytest.approx(reference.encoder_loss(histories, w, BORDER, config), abs=1e-5)
    assert model.loss(batch).item() == first
    assert model.eval().loss(batch).item() == first  # evaluation counts no step
    assert model.train().loss(batch).item() == first
    resumed, _, _ = build(small, pretrain_steps=2)
    resumed.load_state_dict(model.state_dict())
    full = pytest.approx(reference.loss(histories, w, BORDER, config), abs=1e-5)
    assert [net.loss(batch).item() for net in (model, resumed)] == [full, full]


def test_tricdr_scores_and_loss_with_padding_stay_equal(small):
    for pretrain_steps in (0, 9):
        model, _, _ = build(small, pretrain_steps=pretrain_steps)
        batch, padded = as_batch(HISTORIES), as_batch(HISTORIES, pad=2, width=9)
        assert model.loss(padded).item() == pytest.approx(model.loss(batch).item(), abs=1e-5)
        for domain in range(2):
            torch.testing.assert_close(model.scores(padded, domain), model.scores(batch, domain))
            single = [model.scores(as_batch([history]), domain) for history in HISTORIES]
            torch.testing.assert_close(model.scores(padded, domain), torch.cat(single))


def test_tricdr_loss_samples_prefixes_in_ascending_order(small, monkeypatch):
    model, _, _ = build(small, num_prefixes=2)
    seen = []

    def prefix_loss(batch, row, position):
        seen.append(list(zip(row.tolist(), position.tolist(), strict=True)))
        return torch.zeros(())

    monkeypatch.setattr(model, "prefix_loss", prefix_loss)
    for _ in range(200):
        model.loss(as_batch(HISTORIES))
    assert {len(prefixes) for prefixes in seen} == {2 + 2 + 0 + 2 + 1 + 2}
    every = {(row, position) for row, history in enumerate(HISTORIES) for position in range(len(history) - 1)}
    assert {pair for prefixes in seen for pair in prefixes} == every
    assert all(prefixes == sorted(prefixes) for prefixes in seen)  # prefix_loss relies on it


def test_tricdr_with_empty_histories_is_finite(small):
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    for pretrain_steps in (0, 9):
        model, w, config = build(small, pretrain_steps=pretrain_steps)
        for domain in range(2):
            scores = model.scores(empty, domain).detach().numpy()[0]
            np.testing.assert_allclose(scores, reference.logits([], domain, w, BORDER, config), atol=1e-5)
        assert model.loss(as_batch([[4], [40]])).item() == 0
        model.loss(as_batch(HISTORIES)).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_tricdr_with_three_domains_is_refused(make_small):
    with pytest.raises(HafvtError, match="defined for two domains, not 3"):
        build(make_small(sizes=(10, 10, 10)))


def test_tricdr_normalize_over_candidates_makes_scores_depend_on_candidates(small):
    two, three = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 5]])
    for normalize_over_candidates in (False, True):
        model, w, config = build(small, normalize_over_candidates=normalize_over_candidates)
        batch = as_batch(HISTORIES[:1])
        scores = model.scores(batch, 0, two)
        are_equal = torch.allclose(scores, model.scores(batch, 0, three)[:, :2], atol=1e-6)
        assert are_equal != normalize_over_candidates
        if normalize_over_candidates:
            table = w["own.0.items.weight"][two[0]]
            u = reference.user(HISTORIES[0], 0, w, BORDER, config)
            expected = table / np.linalg.norm(table, axis=0) @ u / config.temperature
            np.testing.assert_allclose(scores[0].detach().numpy(), expected, atol=1e-5)
