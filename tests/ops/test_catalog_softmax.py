"""The catalog softmax matches the formula in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hafvt.ops import tiles
from hafvt.ops.catalog_softmax import (
    SoftmaxQuery,
    catalog_nll,
    log_partition,
    target_log_probabilities,
)
from tests.ops.softmax_helpers import (
    DTYPES,
    GRADIENT,
    ROUNDING,
    VALUE,
    assert_close,
    target_log_probability,
    unit,
    values_and_gradients,
)

pytestmark = pytest.mark.usefixtures("small_tiles")

SHAPES = [(7, 13, 5), (1, 1, 1), (1, 37, 3), (33, 1, 17), (70, 1029, 9), (259, 515, 33), (3, 40, 300)]


def reference(h: Tensor, table: Tensor, scale: Tensor) -> Tensor:
    return torch.logsumexp(scale * h @ table.T, dim=1)


@pytest.mark.parametrize("has_tiles", [False, True])
@pytest.mark.parametrize("learns", [False, True])
def test_catalog_softmax_where_attention_is_faster_uses_it(
    monkeypatch: pytest.MonkeyPatch, has_tiles: bool, learns: bool
) -> None:
    dtypes = []
    monkeypatch.setattr(tiles, "has_matrix_units", lambda: has_tiles)
    plain = tiles._flash_tile
    monkeypatch.setattr(tiles, "_flash_tile", lambda q, rows: dtypes.append(q.dtype) or plain(q, rows))
    targets = torch.arange(5)
    for dtype in DTYPES:
        h, table = unit(5, 4, 0).requires_grad_(), unit(9, 4, 1).to(dtype).requires_grad_(learns)
        query = SoftmaxQuery(h, targets, slice(0, 9), 1 / 5)
        catalog_nll([query], table)
        log_partition(h.detach(), table.detach())  # without means: one product
    assert (dtypes.count(torch.float32), dtypes.count(torch.float64)) == (0 if learns else 1, 0)
    assert dtypes.count(torch.bfloat16) == (2 if has_tiles else 0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "v", "d"), SHAPES)
@pytest.mark.parametrize("scale", [0.5, 16.0, 100.0])
def test_log_partition_matches_float64_values_and_gradients(
    kernel: None, dtype: torch.dtype, n: int, v: int, d: int, scale: float
) -> None:
    table, s = unit(v, d, 1).to(dtype), torch.tensor(scale, dtype=torch.float64)
    q = (scale * unit(n, d, 0)).to(dtype)  # rounded once: what is tested is what comes after
    h = q.double() / scale
    got = values_and_gradients(lambda h, t, s: log_partition(h, t, s), [h, table, s])
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert [x.dtype for x in got[1:]] == [h.dtype, dtype, s.dtype]
    assert_close(got, values_and_gradients(reference, [h, table.double(), s]), h, s, dtype, scale)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_target_log_probabilities_matches_float64_values_and_gradients(
    kernel: None, dtype: torch.dtype
) -> None:
    h, table = unit(50, 12, 0), unit(31, 12, 1).to(dtype)
    targets = torch.arange(50) % 29  # some twice, some never
    h = (8 * h).to(dtype).double() / 8
    s = torch.tensor(8.0, dtype=torch.float64)
    got = values_and_gradients(lambda h, t, s: target_log_probability(h, t, targets, s), [h, table, s])

    def formula(h: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return torch.log_softmax(s * h @ t.T, 1)[torch.arange(50), targets]

    assert_close(got, values_and_gradients(formula, [h, table.double(), s]), h, s, dtype, 8.0)


def test_target_log_probabilities_passes_gradcheck(kernel: None) -> None:
    h, table, scale = unit(5, 3, 0), unit(4, 3, 1), torch.tensor(2.0, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (h, table, scale)]
    targets = torch.tensor([0, 3, 3, 1, 2])
    torch.autograd.gradcheck(lambda h, t, s: target_log_probability(h, t, targets, s), leaves)


@pytest.mark.parametrize("which", list(itertools.product([False, True], repeat=3)), ids=str)
def test_log_partition_gives_gradients_only_where_needed(kernel: None, which: tuple[bool, ...]) -> None:
    leaves = [unit(6, 4, 0), unit(9, 4, 1), torch.tensor(3.0, dtype=torch.float64)]
    expected = values_and_gradients(reference, leaves)
    leaves = [x.clone().requires_grad_(needs) for x, needs in zip(leaves, which, strict=True)]
    values = log_partition(*leaves)  # type: ignore[arg-type]
    assert values.requires_grad == any(which)
    torch.testing.assert_close(values.detach(), expected[0])
    if any(which):
        weights = torch.linspace(-1, 2, 6, dtype=torch.float64)
        weights[-1] = 0
        (weights * values).sum().backward()
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        if leaf.requires_grad:
            torch.testing.assert_close(leaf.grad, gradient)
        else:
            assert leaf.grad is None


def test_log_partition_with_slices_and_strides_matches_formula(kernel: None) -> None:
    big, accumulation_dtype = unit(40, 6, 0), unit(5, 12, 1)
    complete = big.clone().requires_grad_()
    views = {
        "rows of a bigger table": (accumulation_dtype[:, :6], complete[11:29]),
        "every other column": (accumulation_dtype[:, ::2], complete[11:29]),
        "transposed": (big[:5], unit(6, 18, 2).T),
        "one row for all": (big[:1].expand(5, 6), complete[11:29]),
    }
    one = torch.tensor(1.0, dtype=torch.float64)
    for name, (h, table) in views.items():
        torch.testing.assert_close(log_partition(h, table, 1.0), reference(h, table, one), msg=name)
    log_partition(accumulation_dtype[:, :6], complete[11:29], 1.0).sum().backward()
    assert complete.grad is not None
    assert complete.grad[:11].abs().max() == 0
    assert complete.grad[29:].abs().max() == 0
    assert complete.grad[11:29].abs().min() > 0


def test_target_log_probabilities_without_queries_is_empty(kernel: None) -> None:
    h, table = torch.zeros(0, 4, requires_grad=True), unit(9, 4, 1).float().requires_grad_()
    values = target_log_probability(h, table, torch.zeros(0, dtype=torch.int64), 2.0)
    assert values.shape == (0,)
    values.sum().backward()
    assert table.grad is not None
    assert table.grad.abs().max() == 0


def test_log_partition_with_huge_logits_stays_finite(kernel: None) -> None:
    table = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    h = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    values, grad_h, grad_table = values_and_gradients(lambda h, t: log_partition(h, t, 3e4), [h, table])
    torch.testing.assert_close(values, torch.tensor([3e4, 3e4]))
    torch.testing.assert_close(grad_h, -3e4 * torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    torch.testing.assert_close(grad_table, -3e4 * torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]))


def test_log_partition_rounds_queries_once_after_scaling() -> None:
    h, table = unit(9, 8, 0).float(), unit(20, 8, 1).bfloat16()
    scaled = (h * 1.7).bfloat16()
    assert torch.equal(log_partition(h, table, 1.7), log_partition(scaled, table))


def test_target_log_probabilities_under_autocast_uses_its_dtype(kernel: None) -> None:
    h, table, targets = unit(9, 8, 0).float(), unit(20, 8, 1).float(), torch.arange(9)

    def run(table: Tensor) -> list[Tensor]:
        return values_and_gradients(lambda h, t: target_log_probability(h, t, targets, 3.0), [h, table])

    expected = run(table.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = run(table)
    assert [x.dtype for x in got] == [torch.float32] * 3
    torch.testing.assert_close(got[0], expected[0])
    for a, b in zip(got[1:], expected[1:], strict=True):
        torch.testing.assert_close(a, b.float(), atol=2e-2, rtol=2e-2)
    assert not torch.equal(got[0], run(table)[0])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize_rows", [False, True])
def test_target_log_probabilities_of_several_queries_match_formula(
    kernel: None, dtype: torch.dtype, normalize_rows: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "ROW_CHUNK", 16)
    lengths = torch.linspace(0.3, 3, 90, dtype=torch.float64)[:, None]
    table = (unit(90, 12, 0) * lengths).to(dtype)
    parts = (slice(0, 41), slice(41, 90), slice(0, 90), slice(7, 8))
    targets = [
        torch.arange(n) % (s.stop - s.start) + s.start for n, s in zip((8, 0, 70, 5), parts, strict=True)
    ]
    h = [
        (4 * unit(max(len(t), 1), 12, 9 + n)[: len(t)]).to(dtype).double() / 4 for n, t in enumerate(targets)
    ]

    def ours(table: Tensor, *h: Tensor) -> Tensor:
        queries = [SoftmaxQuery(*query) for query in zip(h, targets, parts, strict=True)]
        return torch.cat(target_log_probabilities(queries, table, 4.0, normalize_rows=normalize_rows))

    def formula(table: Tensor, *h: Tensor) -> Tensor:
        rows = torch.nn.functional.normalize(table, dim=1) if normalize_rows else table
        target_log_p = []
        for q, t, part in zip(h, targets, parts, strict=True):
            log_p = torch.log_softmax(4.0 * q @ rows[part].T, 1)
            target_log_p.append(log_p[torch.arange(len(t)), t - part.start])
        return torch.cat(target_log_p)

    got = values_and_gradients(ours, [table, *h])
    expected = values_and_gradients(formula, [table.double(), *h])
    largest = float(max((4 * q.norm(dim=1)).max() for q in h if len(q))) * (1 if normalize_rows else 3)
    value = VALUE[dtype] + 2 * ROUNDING[dtype] * largest  # normalized rows are rounded once more
    assert (got[0].double() - expected[0]).abs().max() <= value
    for a, b in zip(got[1:], expected[1:], strict=True):
        assert a.shape == b.shape
        if b.numel():
            assert (a.double() - b).abs().max() <= 2 * GRADIENT[dtype] * max(b.abs().max(), 0.3)


def test_normalize_rows_with_zero_rows_gives_finite_gradients(kernel: None) -> None:
    table = torch.zeros(3, 2, requires_grad=True)
    query = SoftmaxQuery(torch.ones(2, 2), torch.tensor([0, 2]), slice(0, 3))
    (log_p,) = target_log_probabilities([query], table, 5.0, normalize_rows=True)
    torch.testing.assert_close(log_p, torch.full((2,), 1 / 3).log())
    log_p.sum().backward()
    assert table.grad is not None
    assert table.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_target_log_probabilities_of_equal_inputs_are_equal_bits(kernel: None, dtype: torch.dtype) -> None:
    h, table = unit(800, 24, 0).float(), unit(1500, 24, 1).to(dtype)
    targets, scale = torch.arange(800) % 7, torch.tensor(20.0)

    def run() -> list[Tensor]:
        return values_and_gradients(
            lambda *x: target_log_probability(*x[:2], targets, x[2]), [h, table, scale]
        )

    first = run()
    for _ in range(3):
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)


def peak_bytes(f: Callable[[], object]) -> int:
    """The most bytes that tensors held at a time, over what they held before, kernels' scratch included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        f()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]  # type: ignore[union-attr]
    assert events
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


@pytest.mark.parametrize("learned", [False, True])
def test_target_log_probabilities_memory_does_not_grow_with_the_catalog(
    kernel: None, learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiles.MAX_STORED_EXPONENTIALS, "cpu", 2**19)
    monkeypatch.setitem(tiles.TILE_SHAPE, "cpu", (64, 2000))
    monkeypatch.setattr(tiles, "FLASH_GROUP_ITEMS", 2000)
    n, d, v = 300, 16, (8_000, 64_000)

    def extra(v: int) -> int:
        h = unit(n, d, 0).float().requires_grad_()
        table = unit(v, d, 1).float().requires_grad_(learned)
        queries = [
            SoftmaxQuery(h, torch.arange(n), slice(0, n)),
            SoftmaxQuery(h, torch.arange(n), slice(0, v)),
        ]

        def step(queries: list[SoftmaxQuery]) -> None:
            torch.cat(target_log_probabilities(queries, table, 10.0, normalize_rows=learned)).sum().backward()

        step([SoftmaxQuery(h[:2], torch.arange(2), slice(0, v))])  # what is done once only
        table.grad = None
        peak = peak_bytes(lambda: step(queries))
        # Tables aside: the gradient and the rows of unit length.
        return peak - 4 * v * learned * 2 * d

    small, large = map(extra, v)
    assert large <= 1.1 * small


@pytest.mark.parametrize(
    ("h", "table"), [((4, 3), (9, 2)), ((4, 3), (0, 3)), ((3,), (9, 3)), ((4, 3), (9, 3, 1))], ids=str
)
def test_log_partition_with_unfit_shapes_raises(
    kernel: None, h: tuple[int, ...], table: tuple[int, ...]
) -> None:
    with pytest.raises(ValueError, match="expected"):
        log_partition(torch.zeros(h), torch.zeros(table), 1.0)
    with pytest.raises(ValueError, match="expected"):
        target_log_probability(torch.zeros(h), torch.zeros(table), torch.zeros(4, dtype=torch.int64), 1.0)
