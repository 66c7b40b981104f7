"""The few items of a large domain that are worth scoring: found by faiss, scored as the model scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.data.dataset import Int64
from hafvt.errors import missing_package
from hafvt.inference.scorer import Float32
from hafvt.models.hafvt import HafVt, Query
from hafvt.ops.catalog_softmax import without
from hafvt.ops.tiles import SAFE

TILE = 8192  # items whose logits are made at a time, so that they stay in the processor's cache


class FaissShortlist:
    """See `Shortlist`: the union of what each branch would put on top.

    An item's score (10) is a sum over branches, so an item among the best of the sum stands high in a branch
    at least. Which stand high is looked up, approximately; the scores are those of `HafVt.scores`, softmaxes
    over the whole catalog included.

    Args:
        models: one for each domain.
        indexes: by number of the domain, a faiss index of its items' vectors for each modality.
    """

    def __init__(self, models: Sequence[HafVt], indexes: dict[int, list[Any]]) -> None:
        self.models, self.indexes, self.domains = models, indexes, frozenset(indexes)

    @torch.inference_mode()
    def scores(self, items: Int64, lengths: Int64, domain: int, depth: int) -> tuple[Int64, Float32]:
        """See `Shortlist.scores`."""
        model = self.models[domain]
        tables, start = model.items.candidates(), model.domains[domain].start
        asked: list[list[Query]] = [[] for _ in tables]
        batch = Batch(torch.from_numpy(items), torch.from_numpy(lengths))
        for query in model.queries(batch, domain):
            asked[query.modality].append(query)
        columns = self.find(asked, domain, depth)
        numbers = torch.from_numpy(columns.clip(min=0) + start)  # (B, C)
        new = model.items.unmet[numbers]
        total = torch.zeros(numbers.shape)
        for (table, met), queries in zip(tables, asked, strict=True):
            h = torch.stack([query.h for query in queries], dim=1)  # (B, S, d)
            # (2), (B, S, C); history by history, as all candidates' vectors at a time are many
            z = torch.stack(
                [one @ table[round_up_width].T for one, round_up_width in zip(h, numbers, strict=True)]
            )
            for row, lse in enumerate(partitions(model, met, queries, domain)):
                query = queries[row]
                lse = without(lse, query.less)
                part = z[:, row] - (lse - query.log_weight).masked_fill(query.silent, torch.inf)[:, None]
                total += torch.where(new, part + query.bonus, part).exp_()
        total.clamp_(min=1e-30).log_()
        if model.config.repeats:
            model.lower(total, batch, domain, numbers)
        return columns, np.where(columns < 0, -np.inf, total.numpy()).astype(np.float32)

    def find(self, asked: list[list[Query]], domain: int, depth: int) -> Int64:
        """Returns the best columns of all branches, (B, C), each once, ascending after -1 for none.

        Args:
            asked: by modality what each sequence asks.
            domain: its number.
            depth: how many each branch puts forward.
        """
        # Of this thread, and as many as torch takes, which may have been told of late.
        faiss().omp_set_num_threads(torch.get_num_threads())
        found = []
        for index, queries in zip(self.indexes[domain], asked, strict=True):
            for query in queries:
                labels = np.full((len(query.h), depth), -1, dtype=np.int64)
                says = ~query.silent.numpy()
                if says.any():
                    labels[says] = index.search(query.h.numpy()[says], depth)[1]
                found.append(labels)
        columns = np.sort(np.concatenate(found, axis=1), axis=1)
        again = columns[:, 1:] == columns[:, :-1]
        columns[:, 1:][again] = -1
        most = max(1, int((columns >= 0).sum(1).max(initial=0)))
        return np.sort(columns, axis=1)[:, -most:]


def partitions(model: HafVt, met: Tensor, queries: list[Query], domain: int) -> list[Tensor]:
    """Returns the logarithms of the softmaxes' denominators (4-6) for the queries of one modality, (B,) each.

    All queries pass over the table together: for few histories, reading it is what takes the time.

    Args:
        model: whose they are.
        met: the vectors of all items that training met, which the softmaxes are over.
        queries: by sequence.
        domain: that they ask for.
    """
    # No logit is larger, as no vector is longer than 1.
    tables, safe = [met[part] for part in model.items.learned], 1 / model.config.temperature < SAFE
    own = partition(torch.cat([query.h for query in queries]), tables[domain], safe)
    found = list(own.view(len(queries), -1))
    for row, query in enumerate(queries):
        if query.whole:
            others = [number for number in range(len(model.domains)) if number != domain]
            parts = [found[row], *(partition(query.h, tables[number], safe) for number in others)]
            found[row] = torch.stack(parts).logsumexp(0)
    return found


def partition(h: Tensor, table: Tensor, safe: bool) -> Tensor:
    """Returns `logsumexp_j(h[i] . table[j])`, (N, d) and (V, d) -> (N,).

    `ops.catalog_softmax.log_partition` is made for thousands of queries, in multiples of 64; this is for a
    handful.
    """
    logits = (h @ table[start : start + TILE].T for start in range(0, len(table), TILE))
    if safe:  # no exponential overflows
        return torch.stack([z.exp_().sum(1) for z in logits]).sum(0).log()
    return torch.stack([z.logsumexp(1) for z in logits]).logsumexp(0)


def faiss() -> Any:
    """Returns the library.

    Raises:
        HafvtError: it is not installed.
    """
    try:
        import faiss as library
    except ModuleNotFoundError:
        raise missing_package("index", "faiss-cpu") from None
    return library
