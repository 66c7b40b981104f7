"""Ranks are those of a plain loop over the candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hafvt.ops import ranking
from hafvt.ops.ranking import ranks

few_values = st.sampled_from([-math.inf, -1.0, 0.0, 1.0, 2.5, math.inf, math.nan])  # so that ties abound


@st.composite
def tables(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Scores (B, C), targets (B,) and columns to ignore (B, S) with repetitions and padding."""
    b, c, s = draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(0, 6))
    scores = draw(st.lists(few_values, min_size=b * c, max_size=b * c))
    target = draw(st.lists(st.integers(0, c - 1), min_size=b, max_size=b))
    ignore = draw(st.lists(st.integers(-1, c - 1), min_size=b * s, max_size=b * s))
    return (
        torch.tensor(scores).view(b, c),
        torch.tensor(target),
        torch.tensor(ignore, dtype=torch.int64).view(b, s),
    )


def plain_rank(scores: list[float], target: int, ignore: set[int]) -> float:
    others = [s for c, s in enumerate(scores) if c != target and c not in ignore]
    mine = scores[target]
    if math.isnan(mine):
        return 1 + len(others)
    return 1 + sum(s > mine for s in others) + 0.5 * sum(s == mine for s in others)


@settings(max_examples=200, deadline=None)
@given(tables(), st.sampled_from([1, 5, 2**20]))
def test_ranks_match_a_plain_loop(table: tuple[Tensor, Tensor, Tensor], chunk: int) -> None:
    scores, target, ignore = table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SCORE_CHUNK", chunk)
        got = ranks(scores, target, ignore)
    assert got.dtype == torch.float64
    assert got.tolist() == [
        plain_rank(s, t, set(i))
        for s, t, i in zip(scores.tolist(), target.tolist(), ignore.tolist(), strict=True)
    ]


@settings(max_examples=100, deadline=None)
@given(tables(), st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_item_order(table: tuple[Tensor, Tensor, Tensor], random: object) -> None:
    scores, target, _ = table
    order = torch.randperm(scores.shape[1], generator=torch.Generator().manual_seed(random.getrandbits(32)))  # type: ignore[attr-defined]
    moved = torch.empty_like(order)
    moved[order] = torch.arange(len(order))
    assert torch.equal(ranks(scores, target), ranks(scores[:, order], moved[target]))


@pytest.mark.parametrize("value", [0.0, -math.inf, math.inf])
@pytest.mark.parametrize("c", [1, 2, 99, 100])
def test_ranks_of_a_constant_scorer_are_the_middle(value: float, c: int) -> None:
    assert ranks(torch.full((1, c), value), torch.tensor([c // 3])).tolist() == [(c + 1) / 2]


def test_ranks_of_nan_targets_are_last() -> None:
    nan = math.nan
    scores = torch.tensor([[nan, nan, nan, nan], [nan, 1.0, 2.0, -math.inf], [nan, -math.inf, 0.0, nan]])
    assert ranks(scores, torch.tensor([0, 0, 1])).tolist() == [4, 4, 2]
    assert ranks(scores, torch.tensor([0, 0, 1]), torch.tensor([[1, 1], [0, 3], [2, -1]])).tolist() == [
        3,
        3,
        1,
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_ranks_of_large_tables_in_any_precision_match(dtype: torch.dtype) -> None:
    random = np.random.default_rng(0)
    scores = torch.from_numpy(random.integers(0, 50, (5, 3000))).to(dtype)
    target, ignore = (
        torch.from_numpy(random.integers(0, 3000, 5)),
        torch.from_numpy(random.integers(-1, 3000, (5, 900))),
    )
    rows = list(zip(scores.tolist(), target.tolist(), map(set, ignore.tolist()), strict=True))
    assert ranks(scores, target, ignore).tolist() == [plain_rank(s, t, i) for s, t, i in rows]


def test_ranks_without_rows_are_empty() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    assert ranks(torch.zeros(0, 5), nothing, torch.zeros(0, 2, dtype=torch.int64)).shape == (0,)
