"""Negative log-likelihood of targets under mixtures of softmaxes over an item catalog, exact or sampled.

S groups of targets have a mixture of M softmaxes each. Every softmax m has an item table of its own, by which
it gives a target i the probability p[s, m](i). With mixture weights w, the value is

    sum over s of weight[s] * sum over targets i of -log(sum over m of w[s, m] p[s, m](i))
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from hafvt.ops.catalog_softmax import SoftmaxQuery
from hafvt.ops.sampled_softmax import ItemSample, SeenItems, sampled_log_probabilities
from hafvt.ops.sharded_softmax import sharded_catalog_nll, sharded_log_probabilities
from hafvt.ops.shards import Shard
from hafvt.ops.weights import weighted_sum


def mixture_nll(
    queries: Sequence[Sequence[SoftmaxQuery]],
    tables: Sequence[Tensor],
    log_weights: Tensor,
    scale: float,
    *,
    normalize_rows: Sequence[bool],
    samples: Sequence[ItemSample] = (),
    seen_items: Sequence[SeenItems] = (),
    shard: Shard | None = None,
) -> Tensor:
    """Return the value of the module's docstring, a scalar.

    Args:
        queries: S rows of M. The queries of a row have the same targets and the same `weight`.
        tables: M tables of item vectors, (V, d).
        log_weights: (S, M) logs of the mixture weights w.
        scale: of the logits.
        normalize_rows: for each table, whether to normalize its rows to length 1 first.
        samples: S samples of the queries' candidates, for sampled softmaxes; none for exact ones.
        seen_items: with samples, the S groups of items of the queries' `log_subtracted_mass`.
        shard: of the tables, for exact softmaxes over slices, see `ops.sharded_softmax`; None for whole ones.
    """
    by_table = [list(column) for column in zip(*queries, strict=True)]  # M lists of S
    if not samples:
        return _exact_nll(by_table, tables, log_weights, scale, normalize_rows, shard)
    log_p = [  # M lists of S (N,)
        sampled_log_probabilities(column, samples, table, scale, normalize_rows=unit, seen_items=seen_items)
        for column, table, unit in zip(by_table, tables, normalize_rows, strict=True)
    ]
    loss = torch.zeros((), device=log_weights.device)
    for s, row in enumerate(queries):
        mixture = (log_weights[s] + torch.stack([p[s] for p in log_p], dim=1)).logsumexp(1)  # (N,)
        loss = loss - weighted_sum(mixture, row[0].weight)
    return loss


def _exact_nll(
    by_table: Sequence[list[SoftmaxQuery]],
    tables: Sequence[Tensor],
    log_weights: Tensor,
    scale: float,
    normalize_rows: Sequence[bool],
    shard: Shard | None,
) -> Tensor:
    """Return `mixture_nll` with exact softmaxes; `by_table` has M lists of S queries.

    The table that needs a gradient comes last: `catalog_nll` computes its loss and gradient in one pass, by
    log sum_m w_m p_m = log w_last + log(p_last + sum of w_m p_m / w_last over the other tables m).
    """
    *others, last = sorted(range(len(tables)), key=lambda m: tables[m].requires_grad)
    log_p = {
        m: sharded_log_probabilities(by_table[m], tables[m], shard, scale, normalize_rows=normalize_rows[m])
        for m in others
    }
    loss, last_queries = torch.zeros((), device=log_weights.device), []
    for s, query in enumerate(by_table[last]):
        if others:
            log_terms = torch.stack([log_weights[s, m] + log_p[m][s] for m in others])  # (M - 1, N)
            query = query._replace(log_other_components=log_terms.logsumexp(0) - log_weights[s, last])
        weight = query.weight
        total = weight.sum() if isinstance(weight, Tensor) else weight * len(query.targets)
        loss = loss - total * log_weights[s, last]
        last_queries.append(query)
    unit = normalize_rows[last]
    return loss + sharded_catalog_nll(last_queries, tables[last], shard, scale, normalize_rows=unit)
