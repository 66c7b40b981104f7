"""Softmax over a whole catalogue, logits never stored.

The loss of a recommender needs, of the logits `z[i, j] = scale * h[i] . table[j]` of N queries over V
items, only the target's and `logsumexp_j z[i, j]`, with their gradients. Three implementations give the same
numbers:

* plain: the formula, the reference. It stores the N * V logits several times over.
* attention: attention with queries h and keys = values = table returns `sum_j softmax(z)[i, j] table[j]`, the
  gradient of the log-partition towards h, and flash attention returns the log-partition besides. So one call
  is forward and backward where the table is frozen. The gradient of a learned table is a second call with the
  roles swapped.
* chunked: the same with plain products, tile after tile of the logits.

Beside the gradient of a learned table nothing grows with the catalogue: its rows are brought to unit length
and to the dtype of the products tile by tile, and several sets of queries share one table and one gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hafvt.errors import HafvtError

Implementation = Literal["auto", "attention", "chunked", "plain"]

TILES = {"cpu": (1024, 1024), "cuda": (4096, 16384)}  # queries x items of one tile of "chunked"
ROWS = 4096  # of a table that are normalised or converted at a time for "attention"


class Ask(NamedTuple):
    """Queries for the softmax over a part of a table."""

    h: Tensor
    """(N, d) queries."""
    targets: Tensor
    """(N,) row numbers of the whole table, int64, each within `among`."""
    among: slice
    """The rows that the softmax is over, start:stop."""


def compute_dtype(device: torch.device) -> torch.dtype:
    """Returns the faster of bfloat16 and float32 on a device, by what its hardware multiplies natively.

    A question of capability, never a timing, so that the same machine always computes the same bits.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private: they may go away
        native = any(getattr(torch.cpu, check, bool)() for check in checks)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def log_partition(
    h: Tensor, table: Tensor, scale: float | Tensor = 1.0, impl: Implementation = "auto"
) -> Tensor:
    """Returns `logsumexp_j(scale * h[i] . table[j])`, with exact gradients for h, table and scale.

    Products are computed in the table's dtype, or autocast's where that is on: `scale * h` is rounded to it
    once, so h is best given in float32; logits, sums and results are float32 at least. The same inputs give
    the same bits.

    Args:
        h: (N, d) queries.
        table: (V, d) item vectors, V > 0; a slice of rows of a bigger table is not copied.
        scale: factor of the logits; a scalar tensor may be learned.
        impl: "auto" takes attention where the machine has it, else chunked.

    Returns:
        (N,) float32 (float64 for a table in float64).

    Raises:
        ValueError: the shapes do not fit each other or the table is empty.
        HafvtError: "attention" is asked for where there is none.
    """
    return -_ask([(h, None, slice(0, len(table)))], table, scale, impl, unit=False)[0]


def target_log_probability(
    h: Tensor, table: Tensor, targets: Tensor, scale: float | Tensor = 1.0, impl: Implementation = "auto"
) -> Tensor:
    """Returns `log softmax_j(scale * h[i] . table[j])` at the target of each query, with exact gradients.

    Args:
        h: (N, d) queries.
        table: (V, d) item vectors.
        targets: (N,) row numbers of `table`, int64.
        scale: see `log_partition`.
        impl: see `log_partition`.

    Returns:
        (N,) float32 (float64 for a table in float64).

    Raises:
        ValueError: the shapes do not fit each other or the table is empty.
        HafvtError: "attention" is asked for where there is none.
    """
    return target_log_probabilities([Ask(h, targets, slice(0, len(table)))], table, scale, impl)[0]


def target_log_probabilities(
    asks: Sequence[Ask],
    table: Tensor,
    scale: float | Tensor = 1.0,
    impl: Implementation = "auto",
    *,
    unit: bool = False,
) -> list[Tensor]:
    """Returns `target_log_probability` of each ask; a learned table gets one gradient for all of them.

    Args:
        asks: queries, their targets, and the rows that they are sought among.
        table: (V, d) item vectors.
        scale: see `log_partition`.
        impl: see `log_partition`.
        unit: the table's rows count with unit length.

    Returns:
        One tensor (N,) per ask.

    Raises:
        ValueError: the shapes do not fit each other or a part of the table is empty.
        HafvtError: "attention" is asked for where there is none.
    """
    return _ask(asks, table, scale, impl, unit)


def mixture_nll(log_weights: Tensor, log_probabilities: Tensor) -> Tensor:
    """Returns the negative log-likelihood of a mixture, `-log sum_m w[m] p[i, m]`.

    Args:
        log_weights: (M,) or (N, M) log-weights; -inf leaves a component out.
        log_probabilities: (N, M) log-probabilities of the target under each component.

    Returns:
        (N,) non-negative where the weights sum to one.
    """
    return -torch.logsumexp(log_weights + log_probabilities, dim=-1)


def _ask(
    asks: Sequence[tuple[Tensor, Tensor | None, slice]],
    table: Tensor,
    scale: float | Tensor,
    impl: Implementation,
    unit: bool,
) -> list[Tensor]:
    """Returns the target's log-probability of each ask; without targets minus the log-partition."""
    dtype = _product_dtype(table)
    has_attention = _has_attention(table.device.type, dtype)
    if impl == "attention" and not has_attention:
        raise HafvtError(
            f"torch {torch.__version__} has no flash attention with log-partition for {dtype} on "
            f"{table.device.type}: use impl='auto'"
        )
    queries = []
    for h, _, among in asks:
        # A flash kernel would read beyond the end of what does not fit.
        inside = 0 <= among.start < among.stop <= len(table)
        if h.ndim != 2 or table.ndim != 2 or h.shape[1] != table.shape[1] or not inside:
            raise ValueError(
                f"queries {tuple(h.shape)} and rows {among.start}:{among.stop} of {tuple(table.shape)}: "
                "expected (N, d) and (V > 0, d)"
            )
        # Autograd takes the gradients back to h and scale.
        queries.append((h.to(_wide(dtype)) * scale).to(dtype))
    parts = [(targets, among) for _, targets, among in asks]
    if impl == "plain":
        return _plain(queries, parts, table.to(dtype), unit)
    attention = has_attention and impl != "chunked"
    return list(_LogProbability.apply(table, parts, attention, unit, *queries))  # type: ignore[no-untyped-call]


def _product_dtype(table: Tensor) -> torch.dtype:
    device = table.device.type
    if torch.is_autocast_enabled(device) and table.dtype == torch.float32:
        return torch.get_autocast_dtype(device)
    return table.dtype


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _plain(
    queries: Sequence[Tensor], parts: Sequence[tuple[Tensor | None, slice]], table: Tensor, unit: bool
) -> list[Tensor]:
    rows = functional.normalize(table, dim=1) if unit else table
    found = []
    for q, (targets, among) in zip(queries, parts, strict=True):
        log_p = -_matmul(q, rows[among].T).logsumexp(1)
        if targets is not None:
            log_p = log_p + (q.to(log_p.dtype) * rows[targets].to(log_p.dtype)).sum(1)
        found.append(log_p)
    return found


class _LogProbability(torch.autograd.Function):
    """Target's logit minus log-partition, by tiles of the table; by attention or by plain products."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        parts: list[tuple[Tensor | None, slice]],
        attention: bool,
        unit: bool,
        *queries: Tensor,
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.attention, ctx.unit = parts, attention, unit
        learns = any(ctx.needs_input_grad[4:])
        found, lses, means = [], [], []
        for q, (targets, among) in zip(queries, parts, strict=True):
            lse = torch.full((len(q),), -torch.inf, dtype=_wide(q.dtype), device=q.device)
            mean = torch.zeros_like(q, dtype=lse.dtype) if learns else None  # of the rows, under the softmax
            for items in _tiles(table, q, among, attention, unit):
                part, part_mean = _attend(q, _rows(table, items, q.dtype, unit), attention, learns)
                total = torch.logaddexp(lse, part)
                if mean is not None and part_mean is not None:
                    mean.mul_((lse - total).exp_()[:, None])
                    mean.addcmul_(part_mean.to(mean.dtype), (part - total).exp_()[:, None])
                lse = total
            log_p = -lse
            if targets is not None:
                rows = _rows(table, targets, q.dtype, unit).to(lse.dtype)  # (N, d)
                log_p += (q.to(lse.dtype) * rows).sum(1)
                mean = None if mean is None else rows.sub_(mean)
            elif mean is not None:
                mean.neg_()
            found.append(log_p)
            lses.append(lse)
            means.append(mean)
        ctx.save_for_backward(table, *queries, *lses, *means)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        table, *saved = ctx.saved_tensors
        n = len(grads)
        queries, lses, means = saved[:n], saved[n : 2 * n], saved[2 * n :]
        grad_queries = [
            (grad[:, None] * mean).to(q.dtype) if needed else None
            for q, mean, grad, needed in zip(queries, means, grads, ctx.needs_input_grad[4:], strict=True)
        ]
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, *grad_queries
        grad_table = torch.zeros_like(table, dtype=_wide(table.dtype))
        for q, lse, grad, (targets, among) in zip(queries, lses, grads, ctx.parts, strict=True):
            for items in _tiles(table, q, among, ctx.attention, ctx.unit) if len(q) else ():
                rows = _rows(table, items, q.dtype, ctx.unit)
                change = _attend_back(q, rows, lse, grad, ctx.attention).to(grad_table.dtype)
                grad_table[items] -= _through_unit(change, table[items], ctx.unit)
            if targets is not None:
                change = grad[:, None] * q.to(grad.dtype)
                grad_table.index_add_(0, targets, _through_unit(change, table[targets], ctx.unit))
        return grad_table.to(table.dtype), None, None, None, *grad_queries


def _tiles(table: Tensor, q: Tensor, among: slice, attention: bool, unit: bool) -> Iterator[slice]:
    """Yields the parts of `among` that are taken at a time; all of it where no row must be changed first."""
    copied = unit or q.dtype != table.dtype
    size = (ROWS if copied else len(table)) if attention else TILES["cuda" if table.is_cuda else "cpu"][1]
    for start in range(among.start, among.stop, size):
        yield slice(start, min(start + size, among.stop))


def _rows(table: Tensor, items: slice | Tensor, dtype: torch.dtype, unit: bool) -> Tensor:
    rows = table[items]
    return (functional.normalize(rows, dim=1) if unit else rows).to(dtype)


def _through_unit(change: Tensor, rows: Tensor, unit: bool) -> Tensor:
    """Takes the gradient of normalised rows back to the rows."""
    if not unit:
        return change
    rows = rows.to(change.dtype)
    length: Tensor = rows.norm(dim=1, keepdim=True).clamp(min=1e-12)
    direction = rows / length
    return (change - (change * direction).sum(1, keepdim=True) * direction) / length


def _attend(q: Tensor, rows: Tensor, attention: bool, learns: bool) -> tuple[Tensor, Tensor | None]:
    """Returns the log-partition over `rows`, (N,), and their mean under the softmax, (N, d)."""
    if len(q) == 0:  # the kernel divides by the number of queries
        return torch.zeros(0, dtype=_wide(q.dtype), device=q.device), torch.zeros_like(q)
    if attention:
        mean, lse = _flash(q, rows, rows)
        return lse, mean
    lses, means = [], []
    height = TILES["cuda" if q.is_cuda else "cpu"][0]
    for start in range(0, len(q), height):
        z = _matmul(q[start : start + height], rows.T)
        lses.append(z.logsumexp(1))
        if learns:
            means.append(_matmul(z.sub_(lses[-1][:, None]).exp_(), rows))
    return torch.cat(lses), torch.cat(means) if learns else None


def _attend_back(q: Tensor, rows: Tensor, lse: Tensor, grad: Tensor, attention: bool) -> Tensor:
    """Returns `sum_i exp(z_ij - lse_i) grad_i q_i`, the gradient of the log-partitions at `rows`, (V, d)."""
    if attention:
        # Attention of the items over the queries, times its own partition, which is at most N because no
        # exp(z_ij - lse_i) exceeds one.
        mean, log_mass = _flash(rows, q, (grad[:, None] * q).to(q.dtype), bias=-lse)
        return mean.to(lse.dtype).mul_(log_mass.exp()[:, None])
    change = torch.zeros_like(rows, dtype=lse.dtype)
    height = TILES["cuda" if q.is_cuda else "cpu"][0]
    for start in range(0, len(q), height):
        part, its_lse, its_grad = (x[start : start + height] for x in (q, lse, grad))
        p = _matmul(part, rows.T).sub_(its_lse[:, None]).exp_().mul_(its_grad[:, None])
        change += _matmul(p.T, part)
    return change


def _flash(q: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Attention and log-partition of the logits `q[i] . keys[j] + bias[j]`: (N, d) and (N,)."""
    # The kernel silently takes the last dimension for contiguous.
    q, keys, values = (
        x[None, None] if x.stride(1) == 1 else x.contiguous()[None, None] for x in (q, keys, values)
    )
    mask = (
        None if bias is None else bias.view(1, 1, 1, -1).expand(1, 1, q.shape[2], -1)
    )  # a view: nothing is stored
    attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    out, lse = attend(q, keys, values, 0.0, False, attn_mask=mask, scale=1.0)
    return out[0, 0], lse[0, 0]


@cache
def _has_attention(device_type: str, dtype: torch.dtype) -> bool:
    """Whether the private kernel is there and does what we need; asked of the kernel itself, once."""
    if device_type != "cpu" or dtype not in (torch.float32, torch.bfloat16, torch.float64):
        return False  # CUDA's flash kernel takes no bias and no d > 256; float16 would lose small gradients
    x = torch.tensor([[1.0, -0.5], [0.25, 2.0], [-1.0, 0.5]], dtype=dtype)
    bias = torch.tensor([0.5, -3.0, 1.0], dtype=_wide(dtype))
    try:
        out, lse = _flash(x, x, x, bias)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    logits = x.double() @ x.double().T + bias
    right = torch.allclose(lse.double(), logits.logsumexp(1), atol=1e-3)
    return right and torch.allclose(out.double(), logits.softmax(1) @ x.double(), atol=2e-2)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in b's dtype, with sums and result in float32 at least, whatever autocast would have."""
    with torch.autocast(b.device.type, enabled=False):
        if b.is_cuda and b.dtype == torch.bfloat16 and hasattr(torch.ops.aten.mm, "dtype"):  # torch >= 2.8
            return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
        return a.to(_wide(b.dtype)) @ b.to(_wide(b.dtype))
