"""Steps on sparse gradients cost what their rows cost, and equal plain implementations on these rows."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from hafvt.data.batches import Batch, collate
from hafvt.data.dataset import Dataset, Domain
from hafvt.features.item_features import ItemFeatures, Vectors, load_item_features
from hafvt.models import build_model, configure
from hafvt.models.base import Model
from hafvt.training.ema import EmaWeights
from hafvt.training.optimizer import RowAdam

SAMPLED: dict[str, dict[str, Any]] = {
    "sasrec": {"num_negatives": 5, "width": 8},
    "hafvt": {"num_negatives": 5, "id_width": 8},
    "gru4rec": {"loss": "bpr-max", "num_negatives": 5, "width": 8},
}


def sampled_model(data: Dataset, name: str) -> Model:
    torch.manual_seed(0)
    return build_model(name, load_item_features(data), configure(name, params=SAMPLED[name]))


def tables(model: nn.Module) -> dict[str, nn.Parameter]:
    return {
        f"{name}.weight": module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and module.sparse
    }


def test_row_adam_equals_the_sparse_and_dense_adam_of_torch() -> None:
    torch.manual_seed(0)
    ours = nn.ModuleList([nn.Embedding(9, 4, sparse=True), nn.Linear(4, 1)])
    theirs = copy.deepcopy(ours)
    optimizers = [
        RowAdam(ours.parameters(), lr=0.1, fused=True),
        torch.optim.SparseAdam(theirs[0].parameters(), lr=0.1),
        torch.optim.Adam(theirs[1].parameters(), lr=0.1, fused=True),
    ]
    untouched = ours[0].weight[[0, 6, 7, 8]].clone()
    for _ in range(7):
        rows = torch.randint(1, 6, (4,))
        for model in (ours, theirs):
            model[1](model[0](rows)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert torch.equal(ours[0].weight[[0, 6, 7, 8]], untouched)


def test_row_adam_with_weight_decay_shrinks_the_rows_of_the_gradient() -> None:
    table = nn.Embedding(5, 3, sparse=True)
    nn.init.ones_(table.weight)
    optimizer = RowAdam(table.parameters(), lr=0.1, weight_decay=0.5)
    (0 * table(torch.tensor([2]))).sum().backward()
    optimizer.step()
    assert table.weight[:, 0].tolist() == pytest.approx([1, 1, 0.9, 1, 1])


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_gradients_have_the_rows_at_hand_only(small: Dataset, name: str) -> None:
    model = sampled_model(small, name)
    batch = collate(small.items, small.offsets[:2], small.offsets[:2] + 5)
    model.loss(batch).backward()
    for weight in tables(model).values():
        gradient = weight.grad
        assert gradient is not None
        assert gradient.is_sparse
        rows = gradient._indices()[0]
        assert len(rows.unique()) == len(rows) <= 2 * 5 + 3 * 5
        assert set(batch.items.flatten().tolist()) <= set(rows.tolist())


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_steps_keep_bits_of_other_rows_and_average_exactly(small: Dataset, name: str) -> None:
    """The dense averages are a plain loop over all weights after each step."""
    model = sampled_model(small, name)
    optimizer, ema = RowAdam(model.parameters(), lr=0.01, fused=True), EmaWeights(model, 0.6)
    average = {key: weight.detach().double() for key, weight in model.named_parameters()}
    for step in range(1, 41):
        first = step % 17
        batch = collate(small.items, small.offsets[first : first + 2], small.offsets[first : first + 2] + 4)
        before = {key: weight.detach().clone() for key, weight in tables(model).items()}
        model.loss(batch).backward()
        rows = {
            key: weight.grad._indices()[0] for key, weight in tables(model).items() if weight.grad is not None
        }
        ema.update_rows(step - 1)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(step)
        decay = min(0.6, step / (step + 20))
        for key, weight in model.named_parameters():
            average[key] = decay * average[key] + (1 - decay) * weight.detach()
        for key, weight in tables(model).items():
            is_other = torch.ones(len(weight), dtype=torch.bool).index_fill(0, rows[key], False)
            assert torch.equal(weight[is_other], before[key][is_other])
            assert not torch.equal(weight, before[key])
        if step in (1, 25, 40):
            with ema.applied(step):
                for key, weight in model.named_parameters():
                    torch.testing.assert_close(weight.double(), average[key], rtol=1e-5, atol=1e-6)


def allocated_bytes(name: str, num_items: int) -> int:
    """Returns the most memory of tensors that a step allocates, over that before it."""
    torch.manual_seed(0)
    half = num_items // 2
    vectors = {
        "title": Vectors(nn.functional.normalize(torch.randn(num_items, 8)), torch.ones(num_items).bool())
    }
    features = ItemFeatures(
        (Domain("x", 0, half), Domain("y", half, num_items)), vectors, torch.ones(num_items)
    )
    if name != "hafvt":
        features = ItemFeatures(features.domains, {}, features.train_counts)
    params = SAMPLED[name] | ({"cluster_sizes": (500,)} if name == "hafvt" else {})
    model = build_model(name, features, configure(name, params=params))
    optimizer, ema = RowAdam(model.parameters(), lr=0.01, fused=True), EmaWeights(model, 0.9)
    batch = Batch(torch.randint(0, num_items, (8, 10)), torch.full((8,), 10))

    def step(number: int) -> None:
        model.loss(batch).backward()
        ema.update_rows(number - 1)
        optimizer.step()
        optimizer.zero_grad()
        ema.update(number)

    step(1)  # allocates moments
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step(2)
    return sum(max(event.self_cpu_memory_usage, 0) for event in profiler.key_averages())


@pytest.mark.parametrize("name", SAMPLED)
def test_sampled_steps_allocate_memory_that_does_not_grow_with_the_catalog(name: str) -> None:
    few, many = allocated_bytes(name, 1_000), allocated_bytes(name, 32_000)
    assert many < 1.25 * few + 100_000  # one column of the larger catalog has 128,000 bytes
