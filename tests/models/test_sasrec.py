"""SASRec and popularity."""

from __future__ import annotations

import math

import numpy as np
import torch

from hafvt.data.batches import Batch, gather
from hafvt.features.catalogue import read_catalogue
from hafvt.models.popularity import Popularity, PopularityConfig
from hafvt.models.sasrec import SasRec, SasRecConfig


def norm(x, w, b):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) * w + b


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def reference_states(history, w, heads, blocks):
    """The block of the docstring in numpy, (t,) -> (t, d)."""
    x = w["items.weight"][history] + w["positions.weight"][: len(history)]
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


def test_sasrec_is_its_equations(small):
    torch.manual_seed(0)
    model = SasRec(read_catalogue(small), SasRecConfig(width=8, heads=2, dropout=0.0)).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    weights = {name: t.double().numpy() for name, t in model.state_dict().items()}
    histories = [list(small.items[a:b]) for a, b in zip(small.offsets[:6], small.offsets[1:7], strict=True)]
    batch = gather(small.items, small.offsets[:6], small.offsets[1:7])
    losses = []
    for history in histories:
        states = reference_states(history, weights, 2, 2)
        logits = states[:-1] @ weights["items.weight"].T
        losses += [-np.log(softmax(z)[t]) for z, t in zip(logits, history[1:], strict=True)]
    np.testing.assert_allclose(model.loss(batch).item(), np.mean(losses), rtol=1e-5)
    expected = [reference_states(h, weights, 2, 2)[-1] @ weights["items.weight"][30:].T for h in histories]
    found = model.scores(batch, 1).detach()
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)
    candidates = torch.randint(30, 50, (6, 4))
    torch.testing.assert_close(model.scores(batch, 1, candidates), found.gather(1, candidates - 30))


def test_sasrec_says_nothing_of_an_empty_history(small):
    model = SasRec(read_catalogue(small), SasRecConfig(width=8)).eval()
    assert model.scores(Batch(torch.tensor([[0]]), torch.tensor([0])), 0).unique().tolist() == [0.0]


def test_popularity_counts_training_alone(small):
    model = Popularity(read_catalogue(small), PopularityConfig())
    counts = np.zeros(50)
    for start, end in zip(small.offsets[:-1], small.train_ends, strict=True):
        for item in small.items[start : start + end]:
            counts[item] += 1
    batch = gather(small.items, small.offsets[:3], small.offsets[1:4])
    assert model.scores(batch, 1).tolist() == [counts[30:].tolist()] * 3
    assert model.scores(batch, 0, torch.tensor([[2], [4], [2]])).tolist() == [
        [counts[2]],
        [counts[4]],
        [counts[2]],
    ]
