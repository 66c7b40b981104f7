"""A look-up gives the rows and the gradients of an ordinary one."""

from __future__ import annotations

import torch
from torch.nn import functional

from hafvt.ops.lookup import links, look_up, sums_of_linked


def test_rows_and_gradient():
    torch.manual_seed(0)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    one, two = torch.tensor([[0, 8, 8], [3, 0, 0]]), torch.tensor([8])
    weights = [torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 4), (1, 4), (9, 4))]
    whole, (first, second) = look_up(table, one, two)
    expected = [functional.embedding(one, table), functional.embedding(two, table), table]
    for got, right in zip((first, second, whole), expected, strict=True):
        assert torch.equal(got, right)
    sum((a * w).sum() for a, w in zip((first, second, whole), weights, strict=True)).backward()
    got, table.grad = table.grad, None
    sum((a * w).sum() for a, w in zip(expected, weights, strict=True)).backward()
    torch.testing.assert_close(got, table.grad)


def test_rows_alone_have_their_gradient():
    table = torch.randn(5, 2, requires_grad=True)
    _, (rows,) = look_up(table, torch.tensor([1, 1, 4]))
    rows.sum().backward()
    assert torch.equal(table.grad, torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0])[:, None].expand(5, 2))


def test_a_frozen_table_is_left_as_it_is():
    table = torch.randn(5, 2)
    whole, (rows,) = look_up(table, torch.tensor([4]))
    assert whole is table
    assert not rows.requires_grad


def test_sums_of_linked_rows_and_their_gradient():
    torch.manual_seed(0)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    rows = torch.randint(0, 7, (12, 3))  # to 7 and 8 nothing leads
    weights = torch.rand(12, 3, dtype=torch.float64)
    found = sums_of_linked(table, links(rows, weights, 9))
    expected = (table[rows] * weights[..., None]).sum(1)
    torch.testing.assert_close(found, expected)
    asked = torch.randn(12, 4, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(found, table, asked)
    (plain,) = torch.autograd.grad(expected, table, asked)
    torch.testing.assert_close(gradient, plain)
    assert plain[7:].abs().max() == 0
