"""The exponential moving average of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from hafvt.training.ema import WARMUP, EmaWeights


def average_random_steps(decay: float, steps: int) -> tuple[nn.Linear, EmaWeights, list[np.ndarray]]:
    """Returns a model, its average and the weights after each random step."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    ema, history = EmaWeights(model, decay), [model.weight.detach().numpy().copy()]
    for step in range(1, steps + 1):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        ema.update(step)
        history.append(model.weight.detach().numpy().copy())
    return model, ema, history


def test_ema_after_many_steps_equals_the_definition() -> None:
    _, ema, history = average_random_steps(0.6, 40)
    expected = history[0]
    for step, weights in enumerate(history[1:], start=1):
        decay = min(0.6, step / (step + WARMUP))
        expected = decay * expected + (1 - decay) * weights
    assert set(ema.weights) == {"weight"}  # frozen weights have no average
    np.testing.assert_allclose(ema.weights["weight"].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_ema_with_decay_zero_equals_the_weights() -> None:
    model, ema, _ = average_random_steps(0.0, 3)
    assert torch.equal(ema.weights["weight"], model.weight)


def test_ema_applied_loads_the_average_and_restores_the_weights() -> None:
    model, ema, history = average_random_steps(0.9, 5)
    average = ema.weights["weight"].clone()
    with ema.applied(5):
        assert torch.equal(model.weight, average)
    np.testing.assert_array_equal(model.weight.detach().numpy(), history[-1])
    assert torch.equal(ema.weights["weight"], average)
    with pytest.raises(RuntimeError), ema.applied(5):
        raise RuntimeError
    np.testing.assert_array_equal(model.weight.detach().numpy(), history[-1])
