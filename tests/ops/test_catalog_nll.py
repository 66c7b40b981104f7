"""The negative log-likelihood over a catalog equals its formula, with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hafvt.ops import tiles
from hafvt.ops.catalog_softmax import (
    MIN_REMAINING,
    SoftmaxQuery,
    catalog_nll,
    log_partition,
    mean_nll,
    target_log_probabilities,
)
from tests.ops.softmax_helpers import (
    DTYPES,
    GRADIENT,
    ROUNDING,
    target_log_probability,
    unit,
    values_and_gradients,
)

pytestmark = pytest.mark.usefixtures("small_tiles")


def nll_by_formula(queries: list[SoftmaxQuery], table: Tensor, scale: Tensor, normalize_rows: bool) -> Tensor:
    rows = torch.nn.functional.normalize(table, dim=1) if normalize_rows else table
    total = torch.zeros((), dtype=table.dtype)
    for h, targets, candidates, weight, log_other_components, _ in queries:
        p = torch.softmax(scale * h @ rows[candidates].T, 1)[torch.arange(len(h)), targets - candidates.start]
        total = (
            total
            - weight * (p if log_other_components is None else p + log_other_components.exp()).log().sum()
        )
    return total


@pytest.mark.parametrize("safe", [0.0, tiles.MAX_SAFE_LOGIT], ids=["any logits", "small logits"])
@pytest.mark.parametrize("normalize_rows", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_catalog_nll_matches_formula_and_gradients(
    kernel: None,
    dtype: torch.dtype,
    normalize_rows: bool,
    safe: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tiles, "ROW_CHUNK", 16)
    monkeypatch.setattr(tiles, "MAX_SAFE_LOGIT", safe)
    monkeypatch.setitem(tiles.MAX_STORED_EXPONENTIALS, "cpu", 400)  # four queries at a time
    table = (unit(90, 12, 0) * torch.linspace(0.3, 3, 90, dtype=torch.float64)[:, None]).to(dtype)
    parts = (slice(0, 41), slice(41, 90), slice(0, 90))
    counts = (8, 0, 70)
    targets = [torch.arange(n) % (s.stop - s.start) + s.start for n, s in zip(counts, parts, strict=True)]
    h = [(4 * unit(80, 12, 9 + n)[:count]).to(dtype).double() / 4 for n, count in enumerate(counts)]
    log_other_components = torch.linspace(-9, 0, 70, dtype=torch.float64)
    scale = torch.tensor(4.0, dtype=torch.float64)

    def queries(h: tuple[Tensor, ...], log_other_components: Tensor) -> list[SoftmaxQuery]:
        of_each = (0.5, 0.25, 1 / 70), (None, None, log_other_components)
        return [SoftmaxQuery(*query) for query in zip(h, targets, parts, *of_each, strict=True)]

    def gradients(f: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in leaves]
        loss = f(*leaves)
        return [loss.detach(), *torch.autograd.grad(3 * loss, leaves)]

    got = gradients(
        lambda t, s, b, *h: catalog_nll(queries(h, b), t, s, normalize_rows=normalize_rows),
        [table, scale, log_other_components, *h],
    )
    expected = gradients(
        lambda t, s, b, *h: nll_by_formula(queries(h, b), t, s, normalize_rows),
        [table.double(), scale, log_other_components, *h],
    )
    loose = 2 * (GRADIENT[dtype] + ROUNDING[dtype] * (4 if normalize_rows else 12))
    assert [x.shape for x in got] == [x.shape for x in expected]
    for n, (a, b) in enumerate(zip(got, expected, strict=True)):
        if b.numel():
            worst = float((a.double() - b).abs().max())
            assert worst <= loose * float(b.abs().max()), f"output {n}: {worst}"


@pytest.mark.parametrize("joint", [False, True], ids=["log-probabilities", "loss"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_log_subtracted_mass_is_subtracted_from_the_partition(
    kernel: None, dtype: torch.dtype, joint: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiles.MAX_STORED_EXPONENTIALS, "cpu", 400)
    table, candidates, targets = unit(90, 12, 1).to(dtype), slice(20, 90), 20 + torch.arange(70)
    h = (4 * unit(70, 12, 0)).to(dtype).double() / 4
    weight = torch.linspace(0.01, 0.9, 70, dtype=torch.float64)
    log_subtracted_mass = (4.0 * h @ table[candidates].double().T).logsumexp(1) + weight.log()
    log_other_components = torch.linspace(-9, 0, 70, dtype=torch.float64)

    def ours(h: Tensor, table: Tensor, log_subtracted_mass: Tensor, log_other_components: Tensor) -> Tensor:
        query = SoftmaxQuery(
            h, targets, candidates, 0.5, log_other_components if joint else None, log_subtracted_mass
        )
        if joint:
            return catalog_nll([query], table, 4.0)[None]
        (log_p,) = target_log_probabilities([query], table, 4.0)
        return log_p + 0 * log_other_components

    def formula(
        h: Tensor, table: Tensor, log_subtracted_mass: Tensor, log_other_components: Tensor
    ) -> Tensor:
        z = 4.0 * h @ table[candidates].T
        p = z.exp()[torch.arange(70), targets - 20] / (z.exp().sum(1) - log_subtracted_mass.exp())
        return (
            -0.5 * (p + log_other_components.exp()).log().sum()[None]
            if joint
            else p.log() + 0 * log_other_components
        )

    got = values_and_gradients(ours, [h, table, log_subtracted_mass, log_other_components])
    expected = values_and_gradients(formula, [h, table.double(), log_subtracted_mass, log_other_components])
    loose = 2 * (GRADIENT[dtype] + 8 * ROUNDING[dtype])  # what is left of a sum is rounded as the sum is
    for a, b in zip(got, expected, strict=True):
        assert (a.double() - b).abs().max() <= loose * max(float(b.abs().max()), 0.1)


def test_log_subtracted_mass_above_the_partition_leaves_the_minimum(kernel: None) -> None:
    h, table, targets = unit(3, 4, 0), unit(9, 4, 1).requires_grad_(), torch.arange(3)
    lse = log_partition(h, table, 2.0).detach()
    log_subtracted_mass = (lse + torch.tensor([0.0, 0.5, -40.0], dtype=torch.float64)).requires_grad_()
    (log_p,) = target_log_probabilities(
        [SoftmaxQuery(h, targets, slice(0, 9), log_subtracted_mass=log_subtracted_mass)], table, 2.0
    )
    (complete,) = target_log_probabilities([SoftmaxQuery(h, targets, slice(0, 9))], table, 2.0)
    expected = (
        complete.detach() - torch.tensor([MIN_REMAINING, MIN_REMAINING, 1.0], dtype=torch.float64).log()
    )
    torch.testing.assert_close(log_p.detach(), expected)
    log_p.sum().backward()
    assert log_subtracted_mass.grad is not None
    assert log_subtracted_mass.grad[:2].abs().max() == 0
    assert table.grad is not None
    assert table.grad.isfinite().all()


def test_mean_nll_is_the_mean_over_targets(kernel: None) -> None:
    h, table, targets = unit(50, 12, 0), unit(31, 12, 1), torch.arange(50) % 29
    one_by_one = target_log_probability(h, table, targets, 8.0)
    torch.testing.assert_close(mean_nll(h, table, targets, 8.0), -one_by_one.mean())
    assert mean_nll(h[:0], table, targets[:0], 8.0) == 0


def test_catalog_nll_backward_twice_raises() -> None:
    table = unit(31, 12, 1).requires_grad_()
    loss = mean_nll(unit(5, 12, 0), table, torch.arange(5))
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
