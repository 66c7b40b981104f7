"""The running average of weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from hafvt.training.ema import WARM, EmaWeights


def trained(keep: float, steps: int) -> tuple[nn.Module, EmaWeights, list[np.ndarray]]:
    """Returns a model, its average and the weights after each step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    average, met = EmaWeights(model, keep), [model.weight.detach().numpy().copy()]
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update(step)
        met.append(model.weight.detach().numpy().copy())
    return model, average, met


def test_the_average_is_the_one_defined() -> None:
    _, average, met = trained(0.6, 40)
    expected = met[0]
    for step, weights in enumerate(met[1:], start=1):
        keep = min(0.6, step / (step + WARM))
        expected = keep * expected + (1 - keep) * weights
    assert set(average.weights) == {"weight"}  # what does not learn has none
    np.testing.assert_allclose(average.weights["weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_without_memory_it_is_the_weights() -> None:
    model, average, _ = trained(0.0, 3)
    assert torch.equal(average.weights["weight"], model.weight)


def test_the_model_has_the_average_for_a_while_alone() -> None:
    model, average, met = trained(0.9, 5)
    mean = average.weights["weight"].clone()
    with average.in_place():
        assert torch.equal(model.weight, mean)
    np.testing.assert_array_equal(model.weight.detach().numpy(), met[-1])
    assert torch.equal(average.weights["weight"], mean)
    try:
        with average.in_place():
            raise RuntimeError
    except RuntimeError:
        pass
    np.testing.assert_array_equal(model.weight.detach().numpy(), met[-1])
