"""GRU4Rec against its reference in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import Batch, collate
from hafvt.errors import HafvtError
from hafvt.features.item_features import load_item_features
from hafvt.models import configure
from hafvt.models.configs import Gru4RecConfig
from hafvt.models.gru4rec import Gru4Rec
from hafvt.ops.sampled_softmax import ItemSample, sample_items
from tests.reference import gru4rec as reference

NO_DROPOUT = {"dropout_embed": 0.0, "dropout_hidden": 0.0}


def build(data, **changes):
    torch.manual_seed(0)
    model = Gru4Rec(
        load_item_features(data), Gru4RecConfig(**{"width": 7, "layers": 2, **NO_DROPOUT, **changes})
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def weights_of(model):
    w = {name: t.double().numpy() for name, t in model.state_dict().items()}
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    layers = [[w[f"gru.{name}_l{n}"] for name in names] for n in range(model.config.layers)]
    return w["items.weight"], w["bias.weight"][:, 0], layers


def histories_and_batch(data, rows):
    starts, stops = data.offsets[rows], data.offsets[rows + 1]
    histories = [list(data.items[a:b]) for a, b in zip(starts, stops, strict=True)]
    return histories, collate(data.items, starts, stops)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4], [7]])
def test_gru4rec_loss_and_scores_equal_reference(small, rows):
    model = build(small)
    histories, batch = histories_and_batch(small, np.array(rows))
    items, bias, layers = weights_of(model)
    domains = [(d.start, d.stop) for d in small.domains]
    expected = reference.catalog_loss(histories, items, bias, layers, domains)
    assert model.loss(batch).item() == pytest.approx(expected, abs=1e-5)
    for number, (start, stop) in enumerate(domains):
        scores = model.scores(batch, number).detach().numpy()
        for row, history in zip(scores, histories, strict=True):
            h = reference.states(history, items, layers)[-1]
            np.testing.assert_allclose(row, items[start:stop] @ h + bias[start:stop], atol=1e-5)
        candidates = torch.tensor([[stop - 1, start + 2]]).expand(len(rows), 2)
        np.testing.assert_allclose(
            model.scores(batch, number, candidates).detach().numpy(), scores[:, [-1, 2]], atol=1e-6
        )


@pytest.mark.parametrize(("kind", "elu"), [("cross-entropy", 0.0), ("bpr-max", 0.0), ("bpr-max", 0.5)])
def test_gru4rec_sampled_losses_equal_reference(small, kind, elu, monkeypatch):
    parameters = {"logq": 0.8} if kind == "cross-entropy" else {"bpreg": 0.7, "elu": elu}
    model = build(small, loss=kind, num_negatives=6, sample_alpha=0.3, **parameters)
    samples = torch.tensor([3, 8, 8, 41, 20, 0])
    monkeypatch.setattr("hafvt.models.gru4rec.sample_items", lambda *_: ItemSample(samples, samples.float()))
    histories, batch = histories_and_batch(small, np.arange(5))
    items, bias, layers = weights_of(model)
    popularity = model.popularity.double().numpy()
    expected = reference.sampled_loss(
        histories, items, bias, layers, samples.numpy(), popularity, kind, 0.3, 0.8, 0.7, elu
    )
    assert model.loss(batch).item() == pytest.approx(expected, abs=1e-5)


def test_gru4rec_log_q_takes_counts(small, monkeypatch):
    model = build(small, loss="cross-entropy", num_negatives=1, sample_alpha=0.5, logq=1.0)
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    model.popularity[:3] = torch.tensor([8.0, 1.0, 1.0])
    sample = ItemSample(torch.tensor([0]), torch.zeros(1))
    monkeypatch.setattr("hafvt.models.gru4rec.sample_items", lambda *_: sample)
    batch = Batch(torch.tensor([[1, 2]]), torch.tensor([2]))
    assert model.loss(batch).item() == pytest.approx(0.302733, abs=1e-6)  # of the authors' code


def test_gru4rec_negatives_are_trained_items(small):
    model = build(small, loss="bpr-max", num_negatives=5000, sample_alpha=0.0)
    samples = sample_items(model.cumulative_weights, slice(0, len(model.popularity)), 5000).items
    assert (model.popularity[samples] > 0).all()
    assert torch.isfinite(model.loss(histories_and_batch(small, np.arange(4))[1]))


def test_gru4rec_with_an_empty_history_scores_by_bias(small):
    model = build(small).eval()
    empty = Batch(torch.zeros(1, 3, dtype=torch.int64), torch.tensor([0]))
    np.testing.assert_allclose(
        model.scores(empty, 0).detach().numpy()[0], model.bias.weight.detach().numpy()[:30, 0], atol=1e-6
    )


def test_gru4rec_config_with_an_unknown_loss_is_refused():
    with pytest.raises(HafvtError, match="loss is 'top1': choose catalog or cross-entropy or bpr-max"):
        configure("gru4rec", params={"loss": "top1"})
