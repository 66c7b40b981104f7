"""Softmax over a whole catalogue, logits never stored.

The loss of a recommender needs, of the logits `z[i, j] = scale * h[i] . table[j]` of N queries over V items,
only `logsumexp_j z[i, j]` and its gradients. Three implementations give the same numbers:

* plain: the formula, the reference. It stores the N * V logits several times over.
* attention: attention with queries h and keys = values = table returns `sum_j softmax(z)[i, j] table[j]`, the
  gradient of the log-partition towards h, and flash attention returns the log-partition besides. So one call
  is forward and backward where the table is frozen. The gradient of a learned table is a second call with the
  roles swapped.
* chunked: tile after tile of the logits, computed anew in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hafvt.errors import HafvtError

Implementation = Literal["auto", "attention", "chunked", "plain"]

TILES = {"cpu": (1024, 1024), "cuda": (4096, 16384)}  # queries x items of one tile of "chunked"


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

    It is computed in the table's dtype: `scale * h` is rounded to it once, so h is best given in float32;
    logits, sums and results are float32 at least. The same inputs give the same bits.

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
    _check(h, table)
    return _log_partition(_queries(h, table, scale), table, impl)


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
    _check(h, table)
    q = _queries(h, table, scale)
    wide = _wide(table.dtype)
    logits = (q.to(wide) * functional.embedding(targets, table).to(wide)).sum(1)
    return logits - _log_partition(q, table, impl)


def mixture_nll(log_weights: Tensor, log_probabilities: Tensor) -> Tensor:
    """Returns the negative log-likelihood of a mixture, `-log sum_m w[m] p[i, m]`.

    Args:
        log_weights: (M,) or (N, M) log-weights; -inf leaves a component out.
        log_probabilities: (N, M) log-probabilities of the target under each component.

    Returns:
        (N,) non-negative where the weights sum to one.
    """
    return -torch.logsumexp(log_weights + log_probabilities, dim=-1)


def _check(h: Tensor, table: Tensor) -> None:
    # A flash kernel would read beyond the end of what does not fit.
    if h.ndim != 2 or table.ndim != 2 or h.shape[1] != table.shape[1] or len(table) == 0:
        raise ValueError(
            f"queries {tuple(h.shape)} and table {tuple(table.shape)}: expected (N, d) and (V > 0, d)"
        )


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _queries(h: Tensor, table: Tensor, scale: float | Tensor) -> Tensor:
    """The scaled queries in the table's dtype; autograd takes the gradients back to h and scale."""
    return (h.to(_wide(table.dtype)) * scale).to(table.dtype)


def _log_partition(q: Tensor, table: Tensor, impl: Implementation) -> Tensor:
    has_attention = _has_attention(table.device.type, table.dtype)
    if impl == "attention" and not has_attention:
        raise HafvtError(
            f"torch {torch.__version__} has no flash attention with log-partition for {table.dtype} on "
            f"{table.device.type}: use impl='auto'"
        )
    if impl == "plain":
        return _matmul(q, table.T).logsumexp(1)
    if impl == "chunked" or not has_attention or len(q) == 0:  # the kernel divides by the number of queries
        return _Chunked.apply(q, table)  # type: ignore[no-any-return, no-untyped-call]
    return _Attention.apply(q, table)  # type: ignore[no-any-return, no-untyped-call]


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


class _Attention(torch.autograd.Function):
    """Log-partition by flash attention."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, table: Tensor) -> Tensor:
        out, lse = _flash(q, table, table)
        ctx.save_for_backward(q, table, lse, out if ctx.needs_input_grad[0] else None)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        q, table, lse, out = ctx.saved_tensors
        grad_q = grad_table = None
        if ctx.needs_input_grad[0]:
            grad_q = (grad[:, None] * out).to(q.dtype)
        if ctx.needs_input_grad[1]:
            # d/d table[j] = sum_i exp(z_ij - lse_i) grad_i q_i: attention of the items over the queries,
            # times its own partition, which is at most N because no exp(z_ij - lse_i) exceeds one.
            grad_table, log_mass = _flash(table, q, (grad[:, None] * q).to(q.dtype), bias=-lse)
            grad_table.mul_(log_mass.exp()[:, None])
        return grad_q, grad_table


class _Chunked(torch.autograd.Function):
    """Log-partition by tiles of the logits."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, table: Tensor) -> Tensor:
        lse = torch.full((len(q),), -torch.inf, dtype=_wide(q.dtype), device=q.device)
        for rows, items in _tiles(q, table):
            lse[rows] = torch.logaddexp(lse[rows], _matmul(q[rows], table[items].T).logsumexp(1))
        ctx.save_for_backward(q, table, lse)
        return lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        q, table, lse = ctx.saved_tensors
        needs_q, needs_table = ctx.needs_input_grad
        grad_q = torch.zeros_like(q, dtype=lse.dtype) if needs_q else None
        grad_table = torch.zeros_like(table, dtype=lse.dtype) if needs_table else None
        for rows, items in _tiles(q, table):
            p = _matmul(q[rows], table[items].T).sub_(lse[rows, None]).exp_().mul_(grad[rows, None])
            if grad_q is not None:
                grad_q[rows] += _matmul(p, table[items])
            if grad_table is not None:
                grad_table[items] += _matmul(p.T, q[rows])
        return (
            None if grad_q is None else grad_q.to(q.dtype),
            None if grad_table is None else grad_table.to(table.dtype),
        )


def _tiles(q: Tensor, table: Tensor) -> Iterator[tuple[slice, slice]]:
    height, width = TILES["cuda" if q.is_cuda else "cpu"]
    for row in range(0, len(q), height):
        for item in range(0, len(table), width):
            yield slice(row, row + height), slice(item, item + width)


def _matmul(a: Tensor, b: Tensor) -> Tensor:
    """`a @ b` in b's dtype, with sums and result in float32 at least, whatever autocast would have."""
    with torch.autocast(b.device.type, enabled=False):
        if b.is_cuda and b.dtype == torch.bfloat16 and hasattr(torch.ops.aten.mm, "dtype"):  # torch >= 2.8
            return torch.mm(a.to(b.dtype), b, out_dtype=torch.float32)
        return a.to(_wide(b.dtype)) @ b.to(_wide(b.dtype))
