"""Random vectors, and comparisons of values and gradients with float64, for tests of softmaxes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hafvt.ops.catalog_softmax import SoftmaxQuery, target_log_probabilities

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


# Errors against float64 on the same rounded inputs. Values: absolute. Gradients: relative to the largest
# entry. In bfloat16 sums of probabilities, probabilities and gradients are rounded to 2**-9, and so
# are the logits: to that comes `ROUNDING` of the largest one, in values and, relatively, in probabilities.
VALUE = {torch.float32: 5e-5, torch.bfloat16: 4e-3, torch.float64: 1e-11}


GRADIENT = {torch.float32: 5e-5, torch.bfloat16: 1.5e-2, torch.float64: 1e-11}


ROUNDING = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float64: 0.0}


def unit(rows: int, d: int, seed: int) -> Tensor:
    return torch.nn.functional.normalize(
        torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=1
    )


def values_and_gradients(f: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The results of f and the gradients of a sum with unequal weights, one of them zero."""
    leaves = [x.detach().clone().requires_grad_() for x in leaves]
    values = f(*leaves)
    weights = torch.linspace(-1, 2, len(values), dtype=values.dtype)
    weights[-1] = 0 if len(values) > 1 else 1
    return [values.detach(), *torch.autograd.grad((weights * values).sum(), leaves)]


def assert_close(
    got: list[Tensor],
    expected: list[Tensor],
    h: Tensor,
    scale: Tensor,
    dtype: torch.dtype,
    largest: float,
) -> None:
    """Compares values and gradients of h, table and scale; that of scale is a sum whose terms may cancel.

    `largest`: of the logits.
    """
    terms = (expected[1] * h / scale).abs()
    value, gradient = (x[dtype] + ROUNDING[dtype] * largest for x in (VALUE, GRADIENT))
    sizes = [value / gradient, expected[1].abs().max(), expected[2].abs().max(), terms.sum()]
    for n, (a, b, size) in enumerate(zip(got, expected, sizes, strict=True)):
        a, b = a.double(), b.double()
        allowed = gradient * max(1e-3, float(size))
        assert (a - b).abs().max() <= allowed, f"output {n}: {(a - b).abs().max()} > {allowed}"


def target_log_probability(h: Tensor, table: Tensor, targets: Tensor, scale: float | Tensor) -> Tensor:
    (log_p,) = target_log_probabilities([SoftmaxQuery(h, targets, slice(0, len(table)))], table, scale)
    return log_p
