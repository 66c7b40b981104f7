"""Softmax over a whole catalog, logits never stored.

The loss of a recommender needs, of the logits `z[i, j] = scale * h[i] . table[j]` of N queries over V
items, only the target's and `logsumexp_j z[i, j]`, with their gradients. Two implementations give the same
numbers:

* plain: the formula, the reference. It stores the N * V logits several times over.
* tiles: a few hundred queries at a time, of these a few thousand items at a time, so that a tile of logits
  stays in the processor's cache from the product that makes it to the sums and products that use it up.
  On processors that multiply tiles themselves (AMX) PyTorch's attention does the same in one kernel: the
  queries' attention to the items gives log-partitions and the gradient of the queries, the items' attention
  to the queries the gradient of a learned table. In float32 it does the former for frozen tables.

`catalog_nll` is the loss itself. It knows what each log-probability weighs in it, so the gradient of a
learned table is made from the exponentials at hand: three products and one exp per logit in all (four and
two by attention).
`target_log_probabilities` does not know; its backward pass makes the logits a second time for a learned
table.

Exponentials are taken of the logits as they are, without looking for a row's greatest, wherever the lengths
of queries and items forbid that one overflows. In bfloat16 a logit is rounded by up to 2**-8 of its size:
that, not the sums, is the error of a log-partition.

A softmax may count some rows less than the others, a few that differ from query to query (`SoftmaxQuery.less`): what
they count less is taken off the sum of the exponentials when that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from hafvt.ops.tiles import accumulation_dtype, iter_tiles, normalize_backward, prepared

Implementation = Literal["tiles", "plain"]

LEAST = 0.01  # share of a sum that `SoftmaxQuery.less` leaves at least: what is rounded may seem to take more than all


class SoftmaxQuery(NamedTuple):
    """Queries for the softmax over a part of a table."""

    h: Tensor
    """(N, d) queries."""
    targets: Tensor
    """(N,) row numbers of the whole table, int64, each within `among`."""
    among: slice
    """The rows that the softmax is over, start:stop."""
    share: float = 1.0
    """What each target counts in `catalog_nll`: 1 / N for a mean."""
    beside: Tensor | None = None
    """(N,) log of what other components of a mixture give the target, for `catalog_nll`."""
    less: Tensor | None = None
    """(N,) log of what is taken off each query's sum of exponentials."""


def catalog_nll(
    softmax_queries: Sequence[SoftmaxQuery],
    table: Tensor,
    scale: float | Tensor = 1.0,
    impl: Implementation = "tiles",
    *,
    unit: bool = False,
) -> Tensor:
    """Returns the sum, over all asks and targets, of `-share * log(exp(beside) + p(target))`, a scalar.

    Equal to what `target_log_probabilities` gives, added up; its gradients are made on the way forward.

    Args:
        asks: queries, targets, the rows that they are sought among, what each counts.
        table: (V, d) item vectors.
        scale: see `log_partition`.
        impl: see `log_partition`.
        unit: the table's rows count with unit length.

    Raises:
        ValueError: the shapes do not fit each other or a part of the table is empty.
    """
    if impl == "plain":
        total = torch.zeros((), device=table.device)
        for ask, log_p in zip(
            softmax_queries,
            target_log_probabilities(softmax_queries, table, scale, impl, unit=unit),
            strict=True,
        ):
            joint = log_p if ask.beside is None else torch.logaddexp(ask.beside, log_p)
            total = total - ask.share * joint.sum()
        return total
    queries = [_query(ask.h, ask.among, table, scale) for ask in softmax_queries]
    parts = [(ask.targets, ask.among, ask.share) for ask in softmax_queries]
    others = [
        None if other is None else other.to(accumulation_dtype(table.dtype))
        for other in (*(ask.beside for ask in softmax_queries), *(ask.less for ask in softmax_queries))
    ]
    with torch.autocast(table.device.type, enabled=False):
        found: Tensor = _Nll.apply(table, parts, unit, *queries, *others)  # type: ignore[no-untyped-call]
    return found


def mean_nll(
    h: Tensor, table: Tensor, targets: Tensor, scale: float | Tensor = 1.0, impl: Implementation = "tiles"
) -> Tensor:
    """Returns the mean of `-log softmax_j(scale * h[i] . table[j])` at the targets, 0 of none, a scalar.

    Args:
        h: (N, d) queries.
        table: (V, d) item vectors.
        targets: (N,) row numbers of `table`, int64.
        scale: see `log_partition`.
        impl: see `log_partition`.

    Raises:
        ValueError: the shapes do not fit each other or the table is empty.
    """
    return catalog_nll(
        [SoftmaxQuery(h, targets, slice(0, len(table)), 1 / max(len(h), 1))], table, scale, impl
    )


def target_log_probabilities(
    softmax_queries: Sequence[SoftmaxQuery],
    table: Tensor,
    scale: float | Tensor = 1.0,
    impl: Implementation = "tiles",
    *,
    unit: bool = False,
) -> list[Tensor]:
    """Returns `log softmax_j(scale * h[i] . table[j])` at the target of each query, with exact gradients.

    Args:
        asks: queries, their targets, and the rows that they are sought among; the rest is not looked at.
        table: (V, d) item vectors; a learned one gets one gradient for all asks.
        scale: see `log_partition`.
        impl: see `log_partition`.
        unit: the table's rows count with unit length.

    Returns:
        One tensor (N,) per ask, float32 (float64 for a table in float64).

    Raises:
        ValueError: the shapes do not fit each other or a part of the table is empty.
    """
    return _log_probabilities(
        [(ask.h, ask.targets, ask.among, ask.less) for ask in softmax_queries], table, scale, impl, unit
    )


def log_partition(
    h: Tensor, table: Tensor, scale: float | Tensor = 1.0, impl: Implementation = "tiles"
) -> Tensor:
    """Returns `logsumexp_j(scale * h[i] . table[j])`, with exact gradients for h, table and scale.

    Products are computed in the table's dtype, or autocast's where that is on: `scale * h` is rounded to it
    once, so h is best given in float32, and so are the logits; sums and results are float32 at least. The
    same inputs give the same bits.

    Args:
        h: (N, d) queries.
        table: (V, d) item vectors, V > 0.
        scale: factor of the logits; a scalar tensor may be learned.
        impl: "tiles", or "plain" for the reference.

    Returns:
        (N,) float32 (float64 for a table in float64).

    Raises:
        ValueError: the shapes do not fit each other or the table is empty.
    """
    if torch.compiler.is_exporting():  # a graph has no tiles
        impl = "plain"
    return -_log_probabilities([(h, None, slice(0, len(table)), None)], table, scale, impl, unit=False)[0]


def without(lse: Tensor, less: Tensor | None) -> Tensor:
    """Returns `log(exp(lse) - exp(less))`, (N,).

    `LEAST` of the sum is left at least, then without a gradient for `less`.
    """
    return lse if less is None else lse + (1 - (less - lse).exp()).clamp(min=LEAST).log()


def _slopes(lse: Tensor, less: Tensor | None) -> tuple[Tensor, Tensor]:
    """Returns the derivatives of `without` by lse and by -less, (N,) each."""
    if less is None:
        return torch.ones_like(lse), torch.zeros_like(lse)
    share = (less - lse).exp()
    kept = (1 - share).clamp(min=LEAST)
    clear = kept > LEAST
    return torch.where(clear, 1 / kept, 1.0), torch.where(clear, share / kept, 0.0)


def _log_probabilities(
    softmax_queries: Sequence[tuple[Tensor, Tensor | None, slice, Tensor | None]],
    table: Tensor,
    scale: float | Tensor,
    impl: Implementation,
    unit: bool,
) -> list[Tensor]:
    """Returns the target's log-probability of each ask; without targets minus the log-partition."""
    queries = [_query(h, among, table, scale) for h, _, among, _ in softmax_queries]
    parts = [(targets, among) for _, targets, among, _ in softmax_queries]
    less = [
        None if part is None else part.to(accumulation_dtype(table.dtype)) for *_, part in softmax_queries
    ]
    if impl == "plain":
        return _plain(queries, parts, less, table, unit)
    with torch.autocast(table.device.type, enabled=False):
        return list(_LogProbability.apply(table, parts, unit, *queries, *less))  # type: ignore[no-untyped-call]


def _query(h: Tensor, among: slice, table: Tensor, scale: float | Tensor) -> Tensor:
    """Returns `scale * h` in the products' dtype; autograd takes the gradients back to h and scale."""
    if (
        h.ndim != 2
        or table.ndim != 2
        or h.shape[1] != table.shape[1]
        or not 0 <= among.start < among.stop <= len(table)
    ):
        raise ValueError(
            f"queries {tuple(h.shape)} and rows {among.start}:{among.stop} of {tuple(table.shape)}: "
            "expected (N, d) and (V > 0, d)"
        )
    dtype, device = table.dtype, table.device.type
    if torch.is_autocast_enabled(device) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
    return (h.to(accumulation_dtype(dtype)) * scale).to(dtype)


def _plain(
    queries: Sequence[Tensor],
    parts: Sequence[tuple[Tensor | None, slice]],
    less: Sequence[Tensor | None],
    table: Tensor,
    unit: bool,
) -> list[Tensor]:
    found = []
    with torch.autocast(table.device.type, enabled=False):
        for q, (targets, among), taken in zip(queries, parts, less, strict=True):
            rows = (
                (functional.normalize(table, dim=1) if unit else table)
                .to(q.dtype)
                .to(accumulation_dtype(q.dtype))
            )
            log_p = -without((q.to(rows.dtype) @ rows[among].T).logsumexp(1), taken)
            found.append(log_p if targets is None else log_p + (q.to(rows.dtype) * rows[targets]).sum(1))
    return found


class _Nll(torch.autograd.Function):
    """The loss, with all gradients made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        parts: list[tuple[Tensor, slice, float]],
        unit: bool,
        *given: Tensor | None,
    ) -> Tensor:
        count = len(parts)
        queries: Any = given[:count]
        rows, safe = prepared(table, queries, unit)
        change = (
            torch.zeros_like(table, dtype=accumulation_dtype(rows.dtype)) if ctx.needs_input_grad[0] else None
        )
        loss = torch.zeros((), dtype=accumulation_dtype(rows.dtype), device=table.device)
        gradients = []
        for q, beside, less, (targets, among, share) in zip(
            queries, given[count : 2 * count], given[2 * count :], parts, strict=True
        ):
            grad_q = torch.zeros_like(q, dtype=loss.dtype)
            grad_beside = None if beside is None else torch.zeros_like(beside)
            grad_less = None if less is None else torch.zeros_like(less)
            for here, tile in iter_tiles(q, rows[among], safe, means=True, hold=change is not None):
                row, part = rows[targets[here]].to(loss.dtype), q[here].to(loss.dtype)  # (r, d)
                off = None if less is None else less[here]
                by_lse, by_less = _slopes(tile.lse, off)
                log_p = (part * row).sum(1) - without(tile.lse, off)  # (r,)
                grad = log_p.new_full(log_p.shape, -share)  # of the loss, towards log_p
                if beside is not None and grad_beside is not None:
                    joint = torch.logaddexp(beside[here], log_p)
                    grad_beside[here] = -share * (beside[here] - joint).exp()
                    grad *= (log_p - joint).exp()
                    log_p = joint
                loss -= share * log_p.sum()
                grad_q[here] = grad[:, None] * (row - by_lse[:, None] * tile.mean)
                if grad_less is not None:
                    grad_less[here] = grad * by_less
                if change is not None:
                    tile.add_to(change[among], -grad * by_lse, part)
                    change.index_add_(0, targets[here], grad[:, None] * part)
            gradients.append((grad_q.to(q.dtype), grad_beside, grad_less))
        if change is not None:
            change = normalize_backward(change, table, unit).to(table.dtype)
        ctx.save_for_backward(change, *(grad for kind in zip(*gradients, strict=True) for grad in kind))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        change, *others = ctx.saved_tensors
        table = None if change is None else change.mul_(grad)  # in place: nobody else holds it
        return table, None, None, *(None if other is None else other * grad for other in others)


class _LogProbability(torch.autograd.Function):
    """Target's logit minus log-partition, with the gradient of the queries made on the way forward."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        parts: list[tuple[Tensor | None, slice]],
        unit: bool,
        *given: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.unit = parts, unit
        learns = any(ctx.needs_input_grad[3:])
        queries: Any = given[: len(parts)]
        rows, safe = prepared(table, queries, unit)
        found, means, by_lses, by_lesses = [], [], [], []
        for q, less, (targets, among) in zip(queries, given[len(parts) :], parts, strict=True):
            log_p = torch.zeros(len(q), dtype=accumulation_dtype(q.dtype), device=q.device)
            mean = torch.zeros_like(q, dtype=log_p.dtype) if learns else None  # of the rows, but the target's
            by_lse, by_less = torch.ones_like(log_p), torch.zeros_like(log_p)
            for here, tile in iter_tiles(q, rows[among], safe, means=learns, hold=False):
                off = None if less is None else less[here]
                by_lse[here], by_less[here] = _slopes(tile.lse, off)
                log_p[here] = -without(tile.lse, off)
                if mean is not None:
                    mean[here] = -by_lse[here][:, None] * tile.mean
            if targets is not None:
                row = rows[targets].to(log_p.dtype)  # (N, d)
                log_p += (q.to(log_p.dtype) * row).sum(1)
                mean = None if mean is None else mean.add_(row)
            found.append(log_p)
            means.append(mean)
            by_lses.append(by_lse)
            by_lesses.append(by_less)
        ctx.save_for_backward(table, *queries, *means, *by_lses, *by_lesses)
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        table, *saved = ctx.saved_tensors
        count = len(grads)
        queries, means, by_lses, by_lesses = (saved[n * count : (n + 1) * count] for n in range(4))
        needed = ctx.needs_input_grad[3:]
        grad_queries = [
            (grad[:, None] * mean).to(q.dtype) if wanted else None
            for q, mean, grad, wanted in zip(queries, means, grads, needed[:count], strict=True)
        ]
        grad_lesses = [
            grad * by_less if wanted else None
            for by_less, grad, wanted in zip(by_lesses, grads, needed[count:], strict=True)
        ]
        if not ctx.needs_input_grad[0]:
            return None, None, None, *grad_queries, *grad_lesses
        rows, safe = prepared(table, queries, ctx.unit)
        change = torch.zeros_like(table, dtype=accumulation_dtype(rows.dtype))
        for q, grad, by_lse, (targets, among) in zip(queries, grads, by_lses, ctx.parts, strict=True):
            with torch.autocast(q.device.type, enabled=False):
                for here, tile in iter_tiles(q, rows[among], safe, means=False, hold=True):
                    tile.add_to(change[among], (grad * by_lse)[here], -q[here].to(change.dtype))
            if targets is not None:
                change.index_add_(0, targets, grad[:, None] * q.to(change.dtype))
        change = normalize_backward(change, table, ctx.unit).to(table.dtype)
        return change, None, None, *grad_queries, *grad_lesses
