"""Softmax cross-entropy over an item table of which each process holds a slice.

Each process computes the logits of all processes' queries with the rows of its slice. The log-partitions of
the slices are then combined, as in the vocabulary-parallel cross-entropy of Megatron-LM (Shoeybi et al.,
2019). Gradients of the table stay in the process that holds the rows; gradients of queries are summed over
the slices.

The functions have the contract of their namesakes in `ops.catalog_softmax`, and call those without a shard.
Targets are rows of the whole table, candidates are ranges of the slice. All processes call them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from hafvt.ops.catalog_softmax import (
    SoftmaxQuery,
    catalog_nll,
    log_subtract_exp,
    log_subtract_exp_grads,
    scale_query,
    target_log_probabilities,
    to_accumulation_dtype,
)
from hafvt.ops.collectives import all_gather_rows, all_reduce_max_, all_reduce_sum_
from hafvt.ops.shards import Shard
from hafvt.ops.tiles import accumulation_dtype, iter_tiles, normalize_backward, prepare_rows
from hafvt.ops.weights import weighted_sum
from hafvt.processes import process_index


def sharded_catalog_nll(
    queries: Sequence[SoftmaxQuery],
    table: Tensor,
    shard: Shard | None,
    scale: float | Tensor = 1.0,
    *,
    normalize_rows: bool = False,
) -> Tensor:
    """Return `catalog_nll` of this process's queries; the gradient of the slice is that of all queries."""
    if shard is None:
        return catalog_nll(queries, table, scale, normalize_rows=normalize_rows)
    log_p = sharded_log_probabilities(queries, table, shard, scale, normalize_rows=normalize_rows)
    loss = torch.zeros((), dtype=accumulation_dtype(table.dtype), device=table.device)
    for query, values in zip(queries, log_p, strict=True):
        others = to_accumulation_dtype(query.log_other_components, table)
        mixture = values if others is None else torch.logaddexp(others, values)
        loss = loss - weighted_sum(mixture, query.weight)
    return loss


def sharded_log_probabilities(
    queries: Sequence[SoftmaxQuery],
    table: Tensor,
    shard: Shard | None,
    scale: float | Tensor = 1.0,
    *,
    normalize_rows: bool = False,
) -> list[Tensor]:
    """Return `target_log_probabilities` of this process's queries."""
    if shard is None:
        return target_log_probabilities(queries, table, scale, normalize_rows=normalize_rows)
    h = [scale_query(query.h, table, scale) for query in queries]
    parts = [(query.targets, query.candidates) for query in queries]
    log_subtracted = [to_accumulation_dtype(query.log_subtracted_mass, table) for query in queries]
    with torch.autocast(table.device.type, enabled=False):
        return list(_ShardedLogProbability.apply(table, shard, parts, normalize_rows, *h, *log_subtracted))  # type: ignore[no-untyped-call]


class _ShardedLogProbability(torch.autograd.Function):
    """Log-probabilities of targets by tiles; `inputs` are h of all parts, then all log_subtracted_mass."""

    @staticmethod
    def forward(
        ctx: Any,
        table: Tensor,
        shard: Shard,
        parts: list[tuple[Tensor, slice]],
        normalize_rows: bool,
        *inputs: Tensor | None,
    ) -> tuple[Tensor, ...]:
        own: Any = inputs[: len(parts)]
        counts = all_gather_rows(torch.tensor([[len(q) for q in own]]), [1] * shard.num_processes)
        ctx.counts = [row[0].tolist() for row in counts]  # of each process
        queries = _gather(own, ctx.counts)  # of all processes, as all below
        targets = [shard.locate(t) for t in _gather([targets for targets, _ in parts], ctx.counts)]
        rows, logits_are_bounded = prepare_rows(table, queries, normalize_rows)
        needs_query_grad = any(ctx.needs_input_grad[4:])
        statistics, ctx.targets = [], []
        for q, (owners, positions), (_, candidates) in zip(queries, targets, parts, strict=True):
            dtype = accumulation_dtype(q.dtype)
            is_local = owners == shard.process
            log_partition = torch.full((len(q),), -torch.inf, dtype=dtype, device=q.device)
            mean, target_rows = torch.zeros_like(q, dtype=dtype), torch.zeros_like(q, dtype=dtype)
            if candidates.start < candidates.stop:
                for chunk, tile in iter_tiles(
                    q,
                    rows[candidates],
                    logits_are_bounded,
                    with_means=needs_query_grad,
                    store_exponentials=False,
                ):
                    log_partition[chunk] = tile.log_partition
                    mean[chunk] = tile.mean
            target_rows[is_local] = rows[positions[is_local]].to(dtype)
            statistics.append((log_partition, (q.to(dtype) * target_rows).sum(1), mean, target_rows))
            ctx.targets.append((is_local, positions[is_local]))
        log_partitions, target_logits, means, target_rows = map(torch.cat, zip(*statistics, strict=True))
        largest = log_partitions.clone()
        all_reduce_max_([largest])
        sums = torch.stack([(log_partitions - largest).exp(), target_logits])
        all_reduce_sum_(sums)
        total = largest + sums[0].log()  # the whole log-partitions
        shares = (log_partitions - total).exp()  # of this process in the partitions
        if needs_query_grad:
            means = torch.cat([shares[:, None] * means, target_rows], dim=1)
            all_reduce_sum_(means)
        ctx.shares = torch.split(shares, [len(q) for q in queries])
        ctx.save_for_backward(table, *queries)
        ctx.parts, ctx.normalize_rows, ctx.own_grads = parts, normalize_rows, []
        results, offset = [], 0
        for n, log_subtracted in enumerate(inputs[len(parts) :]):
            start = offset + sum(count[n] for count in ctx.counts[: process_index()])
            own_rows = slice(start, start + ctx.counts[process_index()][n])
            offset += len(queries[n])
            d_partition, d_mass = log_subtract_exp_grads(total[own_rows], log_subtracted)
            results.append(sums[1, own_rows] - log_subtract_exp(total[own_rows], log_subtracted))
            grad_q = means[own_rows]
            if needs_query_grad:
                mean, target_row = grad_q.chunk(2, dim=1)
                grad_q = target_row - d_partition[:, None] * mean
            ctx.own_grads.append((grad_q, d_partition, d_mass))
        return tuple(results)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        table, *queries = ctx.saved_tensors
        needs_grad, count = ctx.needs_input_grad[4:], len(grads)
        grads_q, grads_mass, pairs = [], [], []
        for n, (grad, (grad_q, d_partition, d_mass)) in enumerate(zip(grads, ctx.own_grads, strict=True)):
            grads_q.append((grad[:, None] * grad_q).to(queries[n].dtype) if needs_grad[n] else None)
            grads_mass.append(grad * d_mass if needs_grad[count + n] else None)
            pairs.append(torch.stack([grad, grad * d_partition], dim=1))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, *grads_q, *grads_mass
        rows, logits_are_bounded = prepare_rows(table, queries, ctx.normalize_rows)
        table_grad = torch.zeros_like(table, dtype=accumulation_dtype(rows.dtype))
        for q, pair, share, (is_local, positions), (_, candidates) in zip(
            queries, _gather(pairs, ctx.counts), ctx.shares, ctx.targets, ctx.parts, strict=True
        ):
            q_accumulated, weight = q.to(table_grad.dtype), pair[:, 1] * share
            if candidates.start < candidates.stop:
                with torch.autocast(q.device.type, enabled=False):
                    for chunk, tile in iter_tiles(
                        q, rows[candidates], logits_are_bounded, with_means=False, store_exponentials=True
                    ):
                        tile.add_table_grad(table_grad[candidates], weight[chunk], -q_accumulated[chunk])
            table_grad.index_add_(0, positions, pair[is_local, :1] * q_accumulated[is_local])
        table_grad = normalize_backward(table_grad, table, ctx.normalize_rows).to(table.dtype)
        return table_grad, None, None, None, *grads_q, *grads_mass


def _gather(parts: Sequence[Tensor], counts: list[list[int]]) -> list[Tensor]:
    """Return the rows of all processes for each of S tensors; `counts` has S numbers of rows per process."""
    gathered = all_gather_rows(torch.cat(list(parts)), [sum(count) for count in counts])
    by_process = [torch.split(rows, count) for rows, count in zip(gathered, counts, strict=True)]
    return [torch.cat(group) for group in zip(*by_process, strict=True)]
