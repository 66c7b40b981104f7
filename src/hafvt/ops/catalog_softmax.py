"""Softmax cross-entropy over a whole item catalog, without storing the logits.

N queries h, (N, d), choose among the items of a table, (V, d), or of a contiguous part of it, the candidates:

    z[i, j]      = scale * h[i] . table[j]                              logit of item j for query i
    partition[i] = sum over candidates j of exp(z[i, j])                denominator of the softmax
    log_p[i]     = z[i, target[i]] - log(partition[i] - subtracted[i])    log-probability of the target
    nll          = -sum over i of weight * log(other[i] + exp(log_p[i]))

*subtracted* lowers the partition where items of the query's history weigh less than others (0 if omitted);
*other* is the probability that the other components of a mixture give to the target (0 if omitted).

`target_log_probabilities` returns log_p; if the table needs a gradient, its backward pass computes the logits
a second time. `catalog_nll` returns nll; its forward pass also computes the gradients, from the same
exponentials. Both process a few hundred queries and a few thousand items at a time (`ops.tiles`), so that
logits stay in the processor's cache until they are used up.

Common arguments: `scale` is a number or a scalar tensor, which may be learned; `normalize_rows` first
normalizes the rows of the table to length 1. ValueError is raised if queries, table and candidates do not fit
each other or a part of the table is empty.

Precision: matrix products run in the table's dtype or autocast's, sums in float32 at least. The rounding of
bfloat16 logits, by up to 2**-8 of their size, dominates the error. On a CPU, equal inputs give bitwise equal
results.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hafvt.ops.tiles import accumulation_dtype, iter_tiles, normalize_backward, prepare_rows
from hafvt.ops.weights import mean_factor, weighted_sum

MIN_REMAINING = 0.01
"""Least share of the total that `log_subtract_exp` leaves; by rounding, a difference could be negative."""


class SoftmaxQuery(NamedTuple):
    """N queries with their targets and candidates, in the terms of the module's docstring."""

    h: Tensor
    """(N, d) query vectors."""
    targets: Tensor
    """(N,) int64 row numbers in the whole table, each within `candidates`."""
    candidates: slice
    """Rows start:stop of the table, over which the partition sums."""
    weight: float | Tensor = 1.0
    """Factor of the queries in `catalog_nll`, one for all or (N,); 1 / N gives a mean."""
    log_other_components: Tensor | None = None
    """(N,) log of `other`; only `catalog_nll` uses it."""
    log_subtracted_mass: Tensor | None = None
    """(N,) log of `subtracted`."""


def catalog_nll(
    queries: Sequence[SoftmaxQuery],
    table: Tensor,
    scale: float | Tensor = 1.0,
    *,
    normalize_rows: bool = False,
) -> Tensor:
    """Return the sum of the weighted negative log-likelihoods of all targets, a scalar.

    Call `backward` on it at most once: the stored gradient of the table is scaled in place.
    """
    h = [scale_query(query.h, table, scale, query.candidates) for query in queries]
    parts = [(query.targets, query.candidates, query.weight) for query in queries]
    log_terms = [to_accumulation_dtype(query.log_other_components, table) for query in queries]
    log_terms += [to_accumulation_dtype(query.log_subtracted_mass, table) for query in queries]
    with torch.autocast(table.device.type, enabled=False):
        loss: Tensor = _CatalogNll.apply(table, parts, normalize_rows, *h, *log_terms)  # type: ignore[no-untyped-call]
    return loss


def mean_nll(
    h: Tensor, table: Tensor, targets: Tensor, scale: float | Tensor = 1.0, weights: Tensor | None = None
) -> Tensor:
    """Return the mean of `-log softmax_j(scale * h[i] . table[j])` at the targets; 0 if there are none.

    The queries h are (N, d), the targets (N,) int64 row numbers of `table`. The mean is over the targets of
    all processes, see `ops.collectives`, with `weights`, (N,), if they are given.
    """
    weight = mean_factor(len(h), weights)
    return catalog_nll([SoftmaxQuery(h, targets, slice(0, len(table)), weight)], table, scale)


def target_log_probabilities(
    queries: Sequence[SoftmaxQuery],
    table: Tensor,
    scale: float | Tensor = 1.0,
    *,
    normalize_rows: bool = False,
) -> list[Tensor]:
    """Return the log-probability of each target, (N,) for each of `queries`, with exact gradients.

    The results are float32 (float64 for a table in float64). `weight` and `log_other_components` are ignored.
    """
    h = [scale_query(query.h, table, scale, query.candidates) for query in queries]
    parts = [(query.targets, query.candidates) for query in queries]
    log_subtracted = [to_accumulation_dtype(query.log_subtracted_mass, table) for query in queries]
    with torch.autocast(table.device.type, enabled=False):
        return list(_LogProbability.apply(table, parts, normalize_rows, *h, *log_subtracted))  # type: ignore[no-untyped-call]


def log_partition(h: Tensor, table: Tensor, scale: float | Tensor = 1.0) -> Tensor:
    """Return `logsumexp_j(scale * h[i] . table[j])`, (N,), with exact gradients for h, table and scale.

    Pass `h`, (N, d), in float32: `scale * h` is then rounded only once, to the dtype of the products.
    """
    candidates = slice(0, len(table))
    q = scale_query(h, table, scale, candidates)
    if torch.compiler.is_exporting():  # tiles cannot be traced
        return (q @ table.T).logsumexp(1)
    with torch.autocast(table.device.type, enabled=False):
        (log_p,) = _LogProbability.apply(table, [(None, candidates)], False, q, None)  # type: ignore[no-untyped-call]
    return -log_p  # type: ignore[no-any-return]


def log_subtract_exp(log_total: Tensor, log_subtrahend: Tensor | None) -> Tensor:
    """Return `log(exp(log_total) - exp(log_subtrahend))`, (N,); without subtrahend, `log_total`.

    At least the share `MIN_REMAINING` of the total remains; where that bound acts, `log_subtrahend` has no
    gradient.
    """
    if log_subtrahend is None:
        return log_total
    return log_total + (1 - (log_subtrahend - log_total).exp()).clamp(min=MIN_REMAINING).log()


def log_subtract_exp_grads(log_total: Tensor, log_subtrahend: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the derivative of `log_subtract_exp` by log_total, and minus that by the other, (N,) each."""
    if log_subtrahend is None:
        return torch.ones_like(log_total), torch.zeros_like(log_total)
    share = (log_subtrahend - log_total).exp()
    remaining = (1 - share).clamp(min=MIN_REMAINING)
    in_bounds = remaining > MIN_REMAINING
    return torch.where(in_bounds, 1 / remaining, 1.0), torch.where(in_bounds, share / remaining, 0.0)


def to_accumulation_dtype(log_term: Tensor | None, table: Tensor) -> Tensor | None:
    """Return log terms of queries in the dtype in which the table's values are summed."""
    return None if log_term is None else log_term.to(accumulation_dtype(table.dtype))


def scale_query(h: Tensor, table: Tensor, scale: float | Tensor, candidates: slice | None = None) -> Tensor:
    """Return `scale * h` in the dtype of the matrix products; autograd differentiates it.

    Raises:
        ValueError: the shapes do not fit, or `candidates` is empty or not within the table.
    """
    part = slice(0, len(table)) if candidates is None else candidates
    is_empty = candidates is not None and not 0 <= part.start < part.stop <= len(table)
    if h.ndim != 2 or table.ndim != 2 or h.shape[1] != table.shape[1] or is_empty:
        raise ValueError(
            f"queries {tuple(h.shape)} and rows {part.start}:{part.stop} of "
            f"{tuple(table.shape)}: expected (N, d) and (V > 0, d)"
        )
    dtype, device = table.dtype, table.device.type
    if torch.is_autocast_enabled(device) and dtype == torch.float32:
        dtype = torch.get_autocast_dtype(device)
    return (h.to(accumulation_dtype(dtype)) * scale).to(dtype)


class _CatalogNll(torch.autograd.Function):
    """`catalog_nll` by tiles; the forward pass computes all gradients.

    `parts` has targets, candidates and weight of each query. `inputs` are the scaled vectors of all queries,
    then all log_other_components, then all log_subtracted_mass. `d_partition` and `d_mass` are the results of
    `log_subtract_exp_grads`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        parts: list[tuple[Tensor, slice, float | Tensor]],
        normalize_rows: bool,
        *inputs: Tensor | None,
    ) -> Tensor:
        count = len(parts)
        h: Any = inputs[:count]
        rows, logits_are_bounded = prepare_rows(table, h, normalize_rows)
        dtype = accumulation_dtype(rows.dtype)
        table_grad = torch.zeros_like(table, dtype=dtype) if ctx.needs_input_grad[0] else None
        loss = torch.zeros((), dtype=dtype, device=table.device)
        gradients = []
        for q, log_others, log_subtracted, (targets, candidates, weight) in zip(
            h, inputs[count : 2 * count], inputs[2 * count :], parts, strict=True
        ):
            grad_q = torch.zeros_like(q, dtype=dtype)
            grad_others = None if log_others is None else torch.zeros_like(log_others)
            grad_mass = None if log_subtracted is None else torch.zeros_like(log_subtracted)
            for chunk, tile in iter_tiles(
                q,
                rows[candidates],
                logits_are_bounded,
                with_means=True,
                store_exponentials=table_grad is not None,
            ):
                part = weight[chunk] if isinstance(weight, Tensor) else weight
                target_rows, q_chunk = rows[targets[chunk]].to(dtype), q[chunk].to(dtype)  # (n, d) each
                log_mass = None if log_subtracted is None else log_subtracted[chunk]
                d_partition, d_mass = log_subtract_exp_grads(tile.log_partition, log_mass)
                log_p = (q_chunk * target_rows).sum(1) - log_subtract_exp(tile.log_partition, log_mass)
                grad = -part * torch.ones_like(log_p)  # of the loss with respect to log_p, (n,)
                if log_others is not None and grad_others is not None:
                    mixture = torch.logaddexp(log_others[chunk], log_p)
                    grad_others[chunk] = -part * (log_others[chunk] - mixture).exp()
                    grad *= (log_p - mixture).exp()
                    log_p = mixture
                loss -= weighted_sum(log_p, part)
                grad_q[chunk] = grad[:, None] * (target_rows - d_partition[:, None] * tile.mean)
                if grad_mass is not None:
                    grad_mass[chunk] = grad * d_mass
                if table_grad is not None:
                    tile.add_table_grad(table_grad[candidates], -grad * d_partition, q_chunk)
                    table_grad.index_add_(0, targets[chunk], grad[:, None] * q_chunk)
            gradients.append((grad_q.to(q.dtype), grad_others, grad_mass))
        if table_grad is not None:
            table_grad = normalize_backward(table_grad, table, normalize_rows).to(table.dtype)
        ctx.save_for_backward(table_grad, *(grad for kind in zip(*gradients, strict=True) for grad in kind))
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        table_grad, *input_grads = ctx.saved_tensors
        table_grad = None if table_grad is None else table_grad.mul_(grad)  # in place: no copy of the table
        return table_grad, None, None, *(None if g is None else g * grad for g in input_grads)


class _LogProbability(torch.autograd.Function):
    """Log-probabilities of targets by tiles; without targets, negative log-partitions.

    The forward pass computes all gradients except that of the table. `parts` has targets and candidates of
    each query. `inputs` are the scaled vectors of all queries, then all log_subtracted_mass.
    """

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        parts: list[tuple[Tensor | None, slice]],
        normalize_rows: bool,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, ...]:
        ctx.parts, ctx.normalize_rows = parts, normalize_rows
        needs_query_grad = any(ctx.needs_input_grad[3:])
        h: Any = inputs[: len(parts)]
        rows, logits_are_bounded = prepare_rows(table, h, normalize_rows)
        results, grads_q, all_d_partition, all_d_mass = [], [], [], []
        for q, log_subtracted, (targets, candidates) in zip(h, inputs[len(parts) :], parts, strict=True):
            log_p = torch.zeros(len(q), dtype=accumulation_dtype(q.dtype), device=q.device)
            grad_q = torch.zeros_like(q, dtype=log_p.dtype) if needs_query_grad else None
            d_partition, d_mass = torch.ones_like(log_p), torch.zeros_like(log_p)
            for chunk, tile in iter_tiles(
                q, rows[candidates], logits_are_bounded, with_means=needs_query_grad, store_exponentials=False
            ):
                log_mass = None if log_subtracted is None else log_subtracted[chunk]
                d_partition[chunk], d_mass[chunk] = log_subtract_exp_grads(tile.log_partition, log_mass)
                log_p[chunk] = -log_subtract_exp(tile.log_partition, log_mass)
                if grad_q is not None:
                    grad_q[chunk] = -d_partition[chunk][:, None] * tile.mean
            if targets is not None:
                target_rows = rows[targets].to(log_p.dtype)  # (N, d)
                log_p += (q.to(log_p.dtype) * target_rows).sum(1)
                grad_q = None if grad_q is None else grad_q.add_(target_rows)
            results.append(log_p)
            grads_q.append(grad_q)
            all_d_partition.append(d_partition)
            all_d_mass.append(d_mass)
        ctx.save_for_backward(table, *h, *grads_q, *all_d_partition, *all_d_mass)
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        table, *saved = ctx.saved_tensors
        count = len(grads)
        h, log_p_grads_q, all_d_partition, all_d_mass = (saved[n * count : (n + 1) * count] for n in range(4))
        needs_grad = ctx.needs_input_grad[3:]
        grads_q = [
            (grad[:, None] * grad_q).to(q.dtype) if needed else None
            for q, grad_q, grad, needed in zip(h, log_p_grads_q, grads, needs_grad[:count], strict=True)
        ]
        grads_mass = [
            grad * d_mass if needed else None
            for d_mass, grad, needed in zip(all_d_mass, grads, needs_grad[count:], strict=True)
        ]
        if not ctx.needs_input_grad[0]:
            return None, None, None, *grads_q, *grads_mass
        rows, logits_are_bounded = prepare_rows(table, h, ctx.normalize_rows)
        table_grad = torch.zeros_like(table, dtype=accumulation_dtype(rows.dtype))
        for q, grad, d_partition, (targets, candidates) in zip(
            h, grads, all_d_partition, ctx.parts, strict=True
        ):
            grad_partition = -grad * d_partition
            with torch.autocast(q.device.type, enabled=False):
                for chunk, tile in iter_tiles(
                    q, rows[candidates], logits_are_bounded, with_means=False, store_exponentials=True
                ):
                    tile.add_table_grad(
                        table_grad[candidates], grad_partition[chunk], q[chunk].to(table_grad.dtype)
                    )
            if targets is not None:
                table_grad.index_add_(0, targets, grad[:, None] * q.to(table_grad.dtype))
        table_grad = normalize_backward(table_grad, table, ctx.normalize_rows).to(table.dtype)
        return table_grad, None, None, *grads_q, *grads_mass
