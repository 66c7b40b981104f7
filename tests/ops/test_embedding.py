"""Embedding look-ups and weighted row sums match plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from hafvt.ops.embedding import ROW_CHUNK, add_weighted_rows, build_links, distinct_rows, embedding_lookup


def test_embedding_lookup_matches_values_and_gradients():
    torch.manual_seed(0)
    table = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    one, two = torch.tensor([[0, 8, 8], [3, 0, 0]]), torch.tensor([8])
    weights = [torch.randn(*shape, dtype=torch.float64) for shape in ((2, 3, 4), (1, 4), (9, 4))]
    same_table, (first, second) = embedding_lookup(table, one, two)
    expected = [functional.embedding(one, table), functional.embedding(two, table), table]
    for got, right in zip((first, second, same_table), expected, strict=True):
        assert torch.equal(got, right)
    sum((a * w).sum() for a, w in zip((first, second, same_table), weights, strict=True)).backward()
    got, table.grad = table.grad, None
    sum((a * w).sum() for a, w in zip(expected, weights, strict=True)).backward()
    torch.testing.assert_close(got, table.grad)


def test_embedding_lookup_of_rows_alone_gives_their_gradient():
    table = torch.randn(5, 2, requires_grad=True)
    _, (rows,) = embedding_lookup(table, torch.tensor([1, 1, 4]))
    rows.sum().backward()
    assert torch.equal(table.grad, torch.tensor([0.0, 2.0, 0.0, 0.0, 1.0])[:, None].expand(5, 2))


def test_embedding_lookup_of_frozen_table_returns_it():
    table = torch.randn(5, 2)
    same_table, (rows,) = embedding_lookup(table, torch.tensor([4]))
    assert same_table is table
    assert not rows.requires_grad


@pytest.mark.parametrize("items", [12, 2 * ROW_CHUNK + 1])
def test_add_weighted_rows_matches_values_and_gradients(items):
    torch.manual_seed(0)
    double = {"dtype": torch.float64}
    start, table = torch.randn(items, 4, **double, requires_grad=True), torch.randn(9, 4, **double)
    rows = torch.randint(0, 7, (items, 3))  # no link leads to rows 7 and 8
    weights = torch.rand(items, 3, **double)
    scale = torch.rand(items, 1, **double)
    table.requires_grad_()
    total = start.clone()
    updated = add_weighted_rows(total, table, build_links(rows, weights, 9), scale)
    assert updated.data_ptr() == total.data_ptr()  # in place
    expected = start + scale * (table[rows] * weights[..., None]).sum(1)
    torch.testing.assert_close(updated, expected)
    upstream, inputs = torch.randn(items, 4, **double), [start, table]
    gradients = torch.autograd.grad(updated, inputs, upstream)
    plain = torch.autograd.grad(expected, inputs, upstream)
    torch.testing.assert_close(gradients, plain)
    assert plain[1][7:].abs().max() == 0


def test_distinct_rows_number_the_rows_of_all_indices():
    one, two = torch.tensor([[7, 2], [7, 9]]), torch.tensor([4, 2])
    rows, positions = distinct_rows(one, two)
    assert rows.tolist() == [2, 4, 7, 9]
    assert all(torch.equal(rows[p], index) for p, index in zip(positions, (one, two), strict=True))
