"""Weights of interactions: in the losses of all models, and in the counts of popularity models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hafvt.data.batches import TrainBatches
from hafvt.data.dataset import Dataset, write_dataset
from hafvt.models import MODELS, build_model, configure
from hafvt.training.run import model_item_features
from tests.conftest import SMALL_PARAMS, write_small

CONFIGS = {name: [SMALL_PARAMS[name]] for name in SMALL_PARAMS if MODELS[name].has_weights}
CONFIGS["hafvt"] += [{"id_width": 8, "num_negatives": 20}]
CONFIGS["sasrec"] += [{"width": 8, "num_negatives": 20}, {"width": 8, "heads": 1, "loss": "binary"}]
CONFIGS["gru4rec"] += [
    {"width": 8, "loss": loss, "num_negatives": 20} for loss in ("cross-entropy", "bpr-max")
]
CONFIGS["hafvt-paper"] = [{"width": 8}]
CASES = [(name, params) for name, values in CONFIGS.items() for params in values]


def weighted(data: Dataset, folder, weights) -> Dataset:
    """Returns a dataset with weights, and the vectors of `data`."""
    arrays = ("items", "times", "offsets", "train_lengths", "valid", "test")
    copy = write_dataset(
        folder,
        domains=list(data.domains),
        item_table=data.item_table,
        user_ids=data.user_ids,
        weights=np.asarray(weights, dtype=np.float32),
        **{name: getattr(data, name) for name in arrays},
    )
    (folder / "features").symlink_to(data.folder / "features")
    return copy


def losses(model_name, params, data, batch_change=lambda batch: batch, steps=1):
    """Returns loss and gradients of a new model on the first batch."""
    config = configure(model_name, params=params)
    torch.manual_seed(0)
    model = build_model(model_name, model_item_features(data, model_name, config), config)
    model.eval()
    batch = batch_change(next(iter(TrainBatches(data, 8, model.max_length + 1, seed=0).epoch(0))))
    torch.manual_seed(1)
    loss = model.loss(batch)
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def close(first, second):
    """Asserts that two results of `losses` are close."""
    torch.testing.assert_close(first[0], second[0], atol=1e-5, rtol=1e-4)
    for name, gradient in first[1].items():
        torch.testing.assert_close(
            gradient.to_dense(), second[1][name].to_dense(), atol=1e-5, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize(("name", "params"), CASES)
def test_loss_with_equal_weights_is_that_without(name, params, tmp_path):
    data = write_small(tmp_path / "data")
    for value in (1.0, 3.0):
        equal = weighted(data, tmp_path / f"weighted{value}", np.full(len(data.items), value))
        close(losses(name, params, data), losses(name, params, equal))


@pytest.mark.parametrize(("name", "params"), CASES)
def test_loss_ignores_the_order_of_targets_of_weight_zero(name, params, tmp_path):
    data = write_small(tmp_path / "data")
    random = np.random.default_rng(0)
    mask = random.random(len(data.items)) < 0.5
    other = weighted(data, tmp_path / "weighted", mask)
    plain, masked = losses(name, params, data), losses(name, params, other)
    assert abs(float(plain[0].detach()) - float(masked[0].detach())) > 1e-6
    zero = losses(name, params, other, lambda batch: batch._replace(weights=batch.weights * 0))
    if name != "c2dsr":  # its infomax has no targets
        contrast = name == "tricdr" and params.get("pretrain_steps") == 0
        assert contrast or float(zero[0].detach()) == pytest.approx(0, abs=1e-6)
    scaled = losses(name, params, other, lambda batch: batch._replace(weights=batch.weights * 7))
    close(masked, scaled)


@pytest.mark.parametrize("name", ["hafvt", "sasrec", "gru4rec", "c2dsr", "pinet", "psjnet", "hafvt-paper"])
def test_loss_is_linear_in_the_weights(name, tmp_path):
    params = CONFIGS[name][0]
    data = write_small(tmp_path / "data")
    random = np.random.default_rng(0)
    first, second = (weighted(data, tmp_path / f"w{n}", random.random(len(data.items))) for n in range(2))
    both = weighted(data, tmp_path / "both", first.weights + second.weights)

    def value_and_weight(dataset):
        totals = []

        def note(batch):
            columns = torch.arange(batch.items.shape[1] - 1) < (batch.lengths - 1)[:, None]
            totals.append(float(batch.weights[:, 1:][columns].sum()))
            return batch

        value = float(losses(name, params, dataset, note)[0].detach())
        return value * totals[0], totals[0]

    if name in ("hafvt", "hafvt-paper", "c2dsr"):  # sums of means over the targets of each sequence
        pytest.skip("each sequence has a mean of its own")
    (a, _), (b, _), (total, _) = map(value_and_weight, (first, second, both))
    assert a + b == pytest.approx(total, rel=1e-4)


def test_popularity_sums_weights(tmp_path):
    data = write_small(tmp_path / "data")
    weights = np.random.default_rng(0).integers(0, 5, len(data.items))
    other = weighted(data, tmp_path / "weighted", weights)
    positions = other.train_positions()
    expected = np.bincount(other.items[positions], weights[positions], other.num_items)
    for name in ("popularity", "recent-popularity"):
        config = configure(name, params={"days": 100_000} if name != "popularity" else {})
        features = model_item_features(other, name, config)
        model = build_model(name, features, config)
        batch = next(iter(TrainBatches(other, 2, 5, seed=0).epoch(0)))
        scores = torch.cat([model.scores(batch, domain)[0] for domain in range(2)])
        np.testing.assert_allclose(scores.numpy(), expected)
