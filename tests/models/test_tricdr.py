"""Tri-CDR against its equations in numpy."""

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


some_histories = pytest.mark.parametrize(
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


def made(data, **changes):
    torch.manual_seed(0)
    config = TriCdrConfig(**{**SMALL, **changes})
    model = TriCdr(load_item_features(data), config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model, {key: t.double().numpy() for key, t in model.state_dict().items()}, config


@some_histories
def test_scores_are_the_equations(small, histories):
    model, w, config = made(small)
    for domain, part in enumerate(small.domains):
        found = model.scores(as_batch(histories), domain).detach().numpy()
        for row, history in zip(found, histories, strict=True):
            np.testing.assert_allclose(row, reference.logits(history, domain, w, BORDER, config), atol=1e-5)
        some = torch.tensor([[part.stop - 1, part.start + 2]]).expand(len(histories), 2)
        alone = model.scores(as_batch(histories), domain, some).detach().numpy()
        np.testing.assert_allclose(alone, found[:, [-1, 2]], atol=1e-6)


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
@some_histories
def test_the_full_loss_is_the_equations(small, changes, histories):
    model, w, config = made(small, **changes)
    expected = reference.loss(histories, w, BORDER, config)
    assert model.loss(as_batch(histories)).item() == pytest.approx(expected, abs=1e-5)


@some_histories
def test_the_encoders_train_first_and_the_count_of_steps_is_kept(small, histories):
    model, w, config = made(small, pretrain_steps=2)
    batch = as_batch(histories)
    first = pytest.approx(reference.encoder_loss(histories, w, BORDER, config), abs=1e-5)
    assert model.loss(batch).item() == first
    assert model.eval().loss(batch).item() == first  # evaluation counts no step
    assert model.train().loss(batch).item() == first
    resumed, _, _ = made(small, pretrain_steps=2)
    resumed.load_state_dict(model.state_dict())
    full = pytest.approx(reference.loss(histories, w, BORDER, config), abs=1e-5)
    assert [net.loss(batch).item() for net in (model, resumed)] == [full, full]


def test_padding_changes_nothing(small):
    for pretrain_steps in (0, 9):
        model, _, _ = made(small, pretrain_steps=pretrain_steps)
        short, accumulation_dtype = as_batch(HISTORIES), as_batch(HISTORIES, pad=2, width=9)
        assert model.loss(accumulation_dtype).item() == pytest.approx(model.loss(short).item(), abs=1e-5)
        for domain in range(2):
            torch.testing.assert_close(model.scores(accumulation_dtype, domain), model.scores(short, domain))
            single = [model.scores(as_batch([history]), domain) for history in HISTORIES]
            torch.testing.assert_close(model.scores(accumulation_dtype, domain), torch.cat(single))


def test_drawn_prefixes_are_some_of_all(small, monkeypatch):
    model, _, _ = made(small, num_prefixes=2)
    seen = []

    def prefix_loss(batch, row, slot):
        seen.append(list(zip(row.tolist(), slot.tolist(), strict=True)))
        return torch.zeros(())

    monkeypatch.setattr(model, "prefix_loss", prefix_loss)
    for _ in range(200):
        model.loss(as_batch(HISTORIES))
    assert {len(drawn) for drawn in seen} == {2 + 2 + 0 + 2 + 1 + 2}
    every = {(row, slot) for row, history in enumerate(HISTORIES) for slot in range(len(history) - 1)}
    assert {pair for drawn in seen for pair in drawn} == every
    assert all(drawn == sorted(drawn) for drawn in seen)  # prefix_loss relies on it


def test_an_empty_history_and_histories_without_targets(small):
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    for pretrain_steps in (0, 9):
        model, w, config = made(small, pretrain_steps=pretrain_steps)
        for domain in range(2):
            found = model.scores(empty, domain).detach().numpy()[0]
            np.testing.assert_allclose(found, reference.logits([], domain, w, BORDER, config), atol=1e-5)
        assert model.loss(as_batch([[4], [40]])).item() == 0
        model.loss(as_batch(HISTORIES)).backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_three_domains_are_refused(make_small):
    with pytest.raises(HafvtError, match="defined for two domains, not 3"):
        made(make_small(sizes=(10, 10, 10)))


def test_normalizing_over_candidates_is_a_switch(small):
    round_up_width, more = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 5]])
    for normalize_over_candidates in (False, True):
        model, w, config = made(small, normalize_over_candidates=normalize_over_candidates)
        batch = as_batch(HISTORIES[:1])
        found = model.scores(batch, 0, round_up_width)
        similar_items = torch.allclose(found, model.scores(batch, 0, more)[:, :2], atol=1e-6)
        assert similar_items != normalize_over_candidates
        if normalize_over_candidates:
            table = w["own.0.items.weight"][round_up_width[0]]
            u = reference.user(HISTORIES[0], 0, w, BORDER, config)
            expected = table / np.linalg.norm(table, axis=0) @ u / config.temperature
            np.testing.assert_allclose(found[0].detach().numpy(), expected, atol=1e-5)
