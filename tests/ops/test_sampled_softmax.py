"""The sampled softmax is unbiased and exact for a complete sample."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.ops.catalog_softmax import SoftmaxQuery, target_log_probabilities
from hafvt.ops.sampled_softmax import (
    ItemSample,
    SeenItems,
    cumulative_weights,
    popularity_weights,
    sample_items,
    sampled_log_probabilities,
)

V, D, N = 50, 6, 20
GENERATOR = torch.Generator().manual_seed(0)
TABLE = torch.randn(V, D, generator=GENERATOR)
H = torch.randn(N, D, generator=GENERATOR)
PART = slice(10, 40)
TARGETS = torch.arange(N) + 12
CUMULATIVE = cumulative_weights(popularity_weights(torch.arange(V) ** 2))


def test_sampled_log_probabilities_are_unbiased() -> None:
    torch.manual_seed(0)
    (exact,) = target_log_probabilities([SoftmaxQuery(H, TARGETS, PART)], TABLE, 0.5)
    estimates = []
    for _ in range(2000):
        sample = sample_items(CUMULATIVE, PART, 20)
        (log_p,) = sampled_log_probabilities([SoftmaxQuery(H, TARGETS, PART)], [sample], TABLE, 0.5)
        estimates.append((-log_p).exp())  # partition over the target's exponential: linear in the estimate
    mean, deviation = torch.stack(estimates).mean(0), torch.stack(estimates).std(0) / 2000**0.5
    # The target is left out of the sample and counted as itself, so nothing else biases the sum.
    assert ((mean - (-exact).exp()).abs() <= 4 * deviation).all()


def test_sampled_log_probabilities_count_seen_items_exactly() -> None:
    """Seen items keep a tenth; the last slot of each history is empty; every other target is a seen item."""
    items = torch.stack([PART.start + (TARGETS + 3 * k) % 30 for k in range(3)] + [TARGETS * 0 - 1], dim=1)
    items[::2, 2] = TARGETS[::2]
    z = ((0.5 * H)[:, None] * TABLE[items]).sum(2).masked_fill(items < 0, -torch.inf)
    seen = SeenItems(items, torch.tensor(0.1 / 0.9).log())
    query = SoftmaxQuery(H, TARGETS, PART, log_subtracted_mass=z.logsumexp(1) + torch.tensor(0.9).log())
    (exact,) = target_log_probabilities([query], TABLE, 0.5)
    every = ItemSample(torch.arange(PART.start, PART.stop), torch.zeros(30))
    (got,) = sampled_log_probabilities([query], [every], TABLE, 0.5, seen_items=[seen])
    torch.testing.assert_close(got, exact)
    torch.manual_seed(0)
    estimates = []
    for _ in range(2000):
        sample = sample_items(CUMULATIVE, PART, 20)
        (log_p,) = sampled_log_probabilities([query], [sample], TABLE, 0.5, seen_items=[seen])
        estimates.append((-log_p).exp())
    mean, deviation = torch.stack(estimates).mean(0), torch.stack(estimates).std(0) / 2000**0.5
    assert ((mean - (-exact).exp()).abs() <= 4 * deviation).all()


def test_sampled_log_probabilities_with_every_item_once_are_exact() -> None:
    every = ItemSample(torch.arange(PART.start, PART.stop), torch.zeros(30))
    for normalize_rows in (False, True):
        leaves = [H.clone().requires_grad_(), TABLE.clone().requires_grad_()]
        other = [x.detach().clone().requires_grad_() for x in leaves]
        (got,) = sampled_log_probabilities(
            [SoftmaxQuery(leaves[0], TARGETS, PART)], [every], leaves[1], 2.0, normalize_rows=normalize_rows
        )
        (exact,) = target_log_probabilities(
            [SoftmaxQuery(other[0], TARGETS, PART)], other[1], 2.0, normalize_rows=normalize_rows
        )
        torch.testing.assert_close(got, exact)
        got.sum().backward()
        exact.sum().backward()
        for a, b in zip(leaves, other, strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_sample_items_stay_in_candidates_and_follow_popularity() -> None:
    torch.manual_seed(0)
    sample = sample_items(CUMULATIVE, PART, 100_000)
    assert sample.items.min() >= PART.start
    assert sample.items.max() < PART.stop
    drawn = torch.bincount(sample.items, minlength=V)[PART].float()
    rate = torch.zeros(V).scatter(0, sample.items, sample.log_rate.exp())[PART]
    assert rate[-1] > 7 * rate[0]
    torch.testing.assert_close(drawn, rate, rtol=0.1, atol=0)


def test_sampled_log_probabilities_with_one_item_are_zero() -> None:
    table = torch.ones(1, 2, requires_grad=True)
    sample = sample_items(torch.ones(1, dtype=torch.float64), slice(0, 1), 3)
    targets: Tensor = torch.zeros(2, dtype=torch.int64)
    (log_p,) = sampled_log_probabilities(
        [SoftmaxQuery(torch.ones(2, 2), targets, slice(0, 1))], [sample], table
    )
    log_p.sum().backward()
    assert torch.equal(log_p, torch.zeros(2))
    assert table.grad is not None
    assert torch.equal(table.grad, torch.zeros(1, 2))
