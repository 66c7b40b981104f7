"""SASRec and popularity."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.errors import HafvtError
from hafvt.features.item_features import load_item_features
from hafvt.models import configure
from hafvt.models.blocks import Dropout, causal_attention
from hafvt.models.configs import PopularityConfig, SasRecConfig
from hafvt.models.popularity import Popularity
from hafvt.models.sasrec import SasRec, sample_unseen_items
from tests.conftest import as_batch
from tests.reference import sasrec as reference


def norm(x, w, b):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference_states(history, w, heads, blocks):
    """Return the state after each item in numpy, (t,) -> (t, d)."""
    x = norm(w["items.weight"][history], w["enter.weight"], w["enter.bias"])
    x = x + w["positions.weight"][: len(history)][::-1]
    for n in range(blocks):
        b = {k.removeprefix(f"blocks.{n}."): v for k, v in w.items() if k.startswith(f"blocks.{n}.")}
        qkv = norm(x, b["norm1.weight"], b["norm1.bias"]) @ b["qkv.weight"].T + b["qkv.bias"]
        outs = []
        width = x.shape[1] // heads
        for h in range(heads):
            q, k, v = (part[:, h * width : (h + 1) * width] for part in np.split(qkv, 3, axis=1))
            z = q @ k.T / math.sqrt(width)
            z[np.triu_indices(len(x), 1)] = -np.inf
            outs.append(softmax(z) @ v)
        x = x + np.concatenate(outs, 1) @ b["project.weight"].T + b["project.bias"]
        inner = norm(x, b["norm2.weight"], b["norm2.bias"]) @ b["inner.weight"].T + b["inner.bias"]
        gelu = np.array([0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in inner.ravel()]).reshape(
            inner.shape
        )
        x = x + gelu @ b["outer.weight"].T + b["outer.bias"]
    return norm(x, w["norm.weight"], w["norm.bias"])


def test_sasrec_default_equals_reference(small):
    torch.manual_seed(0)
    model = SasRec(load_item_features(small), SasRecConfig(width=8, heads=2, dropout=0.0)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    weights = {name: t.double().numpy() for name, t in model.state_dict().items()}
    histories = [list(small.items[a:b]) for a, b in zip(small.offsets[:6], small.offsets[1:7], strict=True)]
    batch = collate(small.items, small.offsets[:6], small.offsets[1:7])
    losses = []
    for history in histories:
        states = reference_states(history[:-1], weights, 2, 2)
        logits = states @ weights["items.weight"].T
        losses += [-np.log(softmax(z)[t]) for z, t in zip(logits, history[1:], strict=True)]
    np.testing.assert_allclose(model.loss(batch).item(), np.mean(losses), rtol=1e-5)
    expected = [reference_states(h, weights, 2, 2)[-1] @ weights["items.weight"][30:].T for h in histories]
    scores = model.scores(batch, 1).detach()
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-4)
    candidates = torch.randint(30, 50, (6, 4))
    torch.testing.assert_close(model.scores(batch, 1, candidates), scores.gather(1, candidates - 30))


def test_sasrec_with_an_empty_history_scores_zero(small):
    model = SasRec(load_item_features(small), SasRecConfig(width=8)).eval()
    assert model.scores(Batch(torch.tensor([[0]]), torch.tensor([0])), 0).unique().tolist() == [0.0]


def test_popularity_scores_equal_train_counts(small):
    model = Popularity(load_item_features(small), PopularityConfig())
    counts = np.zeros(50)
    for start, end in zip(small.offsets[:-1], small.train_lengths, strict=True):
        for item in small.items[start : start + end]:
            counts[item] += 1
    batch = collate(small.items, small.offsets[:3], small.offsets[1:4])
    assert model.scores(batch, 1).tolist() == [counts[30:].tolist()] * 3
    assert model.scores(batch, 0, torch.tensor([[2], [4], [2]])).tolist() == [
        [counts[2]],
        [counts[4]],
        [counts[2]],
    ]


HISTORIES = [[3, 41, 8, 30, 31, 3, 9], [45, 31, 30], [9, 2], [7, 12, 7, 12, 13, 14, 15, 16, 33]]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("histories", [HISTORIES, HISTORIES[2:3]], ids=["many", "one"])
def test_sasrec_paper_preset_equals_authors_code(small, heads, histories, monkeypatch):
    torch.manual_seed(0)
    config = configure("sasrec", "paper").replace(width=6, heads=heads, dropout=0.0, max_length=9)
    model = SasRec(load_item_features(small), config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    w = {name: t.double().numpy() for name, t in model.state_dict().items()}
    for domain, part in enumerate(small.domains):
        scores = model.scores(as_batch(histories), domain).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            h = reference.states(history, w, 9, 2, heads)[-1]
            np.testing.assert_allclose(row, w["items.weight"][part.start : part.stop] @ h, atol=1e-5)
    batch = as_batch(histories)
    negatives = torch.randint(50, (len(histories), batch.items.shape[1] - 1))
    monkeypatch.setattr("hafvt.models.sasrec.sample_unseen_items", lambda *_: negatives)
    rows = [others[: len(h) - 1] for others, h in zip(negatives.tolist(), histories, strict=True)]
    losses = [reference.binary_loss(h, o, w, 9, 2, heads) for h, o in zip(histories, rows, strict=True)]
    expected = sum(losses) / sum(len(h) - 1 for h in histories)
    assert model.loss(batch).item() == pytest.approx(expected, abs=1e-5)


def test_causal_attention_in_training_drops_weights(small):
    torch.manual_seed(0)
    q = torch.randn(2, 1, 5, 4)
    dropout = Dropout(0.5)
    mean = torch.stack([causal_attention(q, q, q, dropout) for _ in range(4000)]).mean(0)
    torch.testing.assert_close(mean, causal_attention(q, q, q), atol=0.1, rtol=0.1)
    assert not torch.equal(causal_attention(q, q, q, dropout), causal_attention(q, q, q))
    assert torch.equal(causal_attention(q, q, q, dropout.eval()), causal_attention(q, q, q))


def test_sample_unseen_items_returns_any_unseen_item_of_the_domain(make_small):
    data = make_small(sizes=(4, 5))
    torch.manual_seed(0)
    batch = as_batch([[0, 2, 2, 5, 8, 2], [4, 5, 6, 7, 8]], pad=1)
    samples = torch.stack([sample_unseen_items(batch, batch.items[:, 1:], data.domains) for _ in range(3000)])
    for slot, target in enumerate([2, 2, 5, 8, 2]):
        values, times = samples[:, 0, slot].unique(return_counts=True)
        assert values.tolist() == ([1, 3] if target < 4 else [4, 6, 7])
        assert (abs(times / 3000 - 1 / len(values)) < 0.04).all()
    assert set(samples[:, 1, :4].flatten().tolist()) == {8}  # the history contains the whole domain


def test_sasrec_config_with_an_unknown_loss_is_refused():
    with pytest.raises(HafvtError, match="sasrec: parameter loss is 'hinge': choose catalog or binary"):
        configure("sasrec", params={"loss": "hinge"})


@pytest.mark.parametrize("paper_blocks", [False, True])
@torch.inference_mode()
def test_history_vectors_are_the_last_of_all_states(small, paper_blocks):
    torch.manual_seed(0)
    config = SasRecConfig(width=8, heads=2, paper_blocks=paper_blocks, max_length=4)
    model = SasRec(load_item_features(small), config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    batch = Batch(torch.tensor([[3, 1, 4, 1], [5, 2, 0, 0], [0, 0, 0, 0]]), torch.tensor([4, 2, 0]))
    states = model.states(model.items(batch.items), batch.lengths)
    state = model.history_vectors(batch)
    torch.testing.assert_close(state[0], states[0, 3])
    torch.testing.assert_close(state[1], states[1, 1])
    assert not state[2].any()
