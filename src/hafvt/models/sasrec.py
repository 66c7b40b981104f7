"""SASRec on the merged history.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018. The default departs from the paper and
the authors' code to make a stronger baseline:

* loss: cross-entropy over all items of all domains instead of binary cross-entropy against one drawn item;
* blocks: the inputs of both sub-layers are normalized (pre-norm) instead of the query alone; attention has an
  output projection; the feed-forward layer is four times as wide and uses GELU;
* input: item embeddings are normalized. They start small, so the outputs of untrained blocks would otherwise
  hide them; for the same reason the outputs start small.

The preset "paper" (`paper_blocks` and the loss "binary") reverts all of these. Differences from the authors'
code that remain: histories are right-padded, so a causal mask suffices, and positions count from the latest
item, so theirs in reverse order; positions beyond the longest training history share its last embedding; the
drawn item belongs to the target's domain.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import BranchQuery, Model
from hafvt.models.blocks import Dropout, PositionEmbedding, PreNormBlock, SasRecBlock
from hafvt.models.configs import SasRecConfig
from hafvt.models.sequences import dot_scores, in_domain, last_states, next_items, target_weights, valid_mask
from hafvt.ops.catalog_softmax import SoftmaxQuery
from hafvt.ops.embedding import distinct_rows, embedding_lookup
from hafvt.ops.sampled_softmax import (
    cumulative_weights,
    popularity_weights,
    sample_items,
    sampled_log_probabilities,
)
from hafvt.ops.sharded_softmax import sharded_catalog_nll
from hafvt.ops.shards import fetch_rows, init_normal, make_embedding, mapped_table, sharded_lookup
from hafvt.ops.weights import mean_factor, weighted_mean


class SasRec(Model):
    """Self-attention over the merged history; an item's score is its dot product with the last state."""

    can_index = can_shard_catalog = has_history_vectors = True
    whole_table: Tensor | None

    def __init__(self, item_features: ItemFeatures, config: SasRecConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length = config.max_length
        self.cumulative_weights = cumulative_weights(popularity_weights(item_features.train_counts))
        self.shard, self.whole_table = item_features.shard, None
        self.sharded_names = ("items.weight",) if self.shard else ()
        self.items = make_embedding(
            len(item_features), config.width, self.shard, sparse=config.num_negatives > 0
        )
        self.positions = PositionEmbedding(config.max_length, config.width)
        self.enter = nn.Identity() if config.paper_blocks else nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        block = SasRecBlock if config.paper_blocks else PreNormBlock
        self.blocks = nn.ModuleList(
            block(config.width, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-8 if config.paper_blocks else 1e-5)
        init_normal(self.items.weight, self.shard, std=0.02)

    def states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the state after each item, from the item embeddings of histories, (B, T, d) -> (B, T, d)."""
        x = self.block_inputs(items, lengths)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states

    def block_inputs(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the inputs of the first block, from the item embeddings of histories, (B, T, d)."""
        x = items * self.config.width**0.5 if self.config.paper_blocks else self.enter(items)
        inputs: Tensor = self.dropout(x + self.positions.from_latest(lengths, items.shape[1]))
        return inputs

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of the chosen loss over all next items.

        catalog: -log softmax(h_t E^T) at the next item, exact or estimated from `num_negatives` items.
        binary: -log sigmoid(h_t . e) - log(1 - sigmoid(h_t . e')), e' drawn from the rest of its domain.
        """
        inputs, mask, targets = next_items(batch)
        weights = target_weights(batch, mask)
        if self.config.num_negatives:
            return self.sampled_loss(inputs, mask, targets, weights)
        table, (items,) = sharded_lookup(self.items.weight, self.shard, inputs.items)  # (V, d), (B, T, d)
        h = self.states(items, inputs.lengths)[mask]  # (N, d)
        if self.config.loss == "catalog":
            query = SoftmaxQuery(h, targets, slice(0, len(table)), mean_factor(len(h), weights))
            return sharded_catalog_nll([query], table, self.shard)
        negatives = sample_unseen_items(batch, batch.items[:, 1:], self.domains)[mask]
        rows = [fetch_rows(table.__getitem__, self.shard, items) for items in (targets, negatives)]  # (N, d)
        positive, negative = ((h * item_rows).sum(1) for item_rows in rows)  # (N,)
        return weighted_mean(F.softplus(-positive) + F.softplus(negative), weights)

    def sampled_loss(
        self, inputs: Batch, mask: Tensor, targets: Tensor, loss_weights: Tensor | None = None
    ) -> Tensor:
        """Return the loss "catalog" estimated from a sample; it reads the rows of the items at hand only."""
        weights, count = self.cumulative_weights, self.config.num_negatives
        sample = sample_items(weights, slice(0, len(weights)), count, targets.device)
        rows, (items, targets, sampled) = distinct_rows(inputs.items, targets, sample.items)
        table, (history,) = embedding_lookup(fetch_rows(self.items, self.shard, rows), items)  # (U, d)
        query = SoftmaxQuery(self.states(history, inputs.lengths)[mask], targets, slice(0, len(rows)))
        (log_p,) = sampled_log_probabilities([query], [sample._replace(items=sampled)], table)
        return -weighted_mean(log_p, loss_weights)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return h . E[item], see `Model.scores`."""
        return dot_scores(self.history_vectors(batch), self.scoring_table, self.domains[domain], candidates)

    def history_vectors(self, batch: Batch) -> Tensor:
        """Return the last states, (B, d), see `Model.history_vectors`."""
        items = F.embedding(batch.items, self.scoring_table)  # (B, T, d)
        if self.config.paper_blocks:
            return last_states(self.states(items, batch.lengths), batch.lengths).float()
        x = self.block_inputs(items, batch.lengths)
        *earlier_blocks, last_block = self.blocks
        for block in earlier_blocks:
            x = block(x)
        state: Tensor = self.norm(cast(PreNormBlock, last_block).last_state(x, batch.lengths))
        return state.float() * (batch.lengths > 0)[:, None]

    def scoring_rows(self, items: Tensor) -> list[Tensor]:
        """Return the embeddings of items, see `Model.scoring_rows`."""
        return [F.embedding(items, self.scoring_table)]

    def branch_queries(self, batch: Batch, domain: int, *, by_row: bool = False) -> Iterator[BranchQuery]:
        """Yield the last states, see `Model.branch_queries`; `by_row` changes nothing."""
        h, log_weight = self.history_vectors(batch), torch.zeros((), device=batch.items.device)
        yield BranchQuery(0, h, log_weight, batch.lengths == 0, torch.full_like(h[:, 0], -torch.inf))

    def score_factors(self) -> None:
        """Return None: scores are dot products."""

    @property
    def scoring_table(self) -> Tensor:
        """The embeddings of all items, (V, d)."""
        return self.items.weight if self.whole_table is None else self.whole_table

    def train(self, mode: bool = True) -> SasRec:
        """Set training or evaluation mode; a sharded model reads the whole table for evaluation."""
        super().train(mode)
        self.whole_table = None
        if self.shard is not None and not mode:
            self.whole_table = mapped_table(self.items.weight, self.shard)
        return self


def sample_unseen_items(batch: Batch, targets: Tensor, domains: tuple[Domain, ...]) -> Tensor:
    """Sample, for each target, (B, T), an item of its domain that its sequence does not contain, uniformly.

    If a sequence contains a whole domain, the domain's last item is returned.
    """
    sampled = torch.zeros_like(targets)
    valid = valid_mask(batch.lengths, batch.items.shape[1])
    for domain in domains:
        seen = batch.items.masked_fill(~valid | (batch.items < domain.start), domain.stop).sort(1).values
        repeated = F.pad(seen[:, 1:] == seen[:, :-1], (1, 0)) | (seen >= domain.stop)
        seen = seen.masked_fill(repeated, domain.stop).sort(1).values  # (B, T') distinct, then domain.stop
        unseen = (len(domain) - (seen < domain.stop).sum(1)).clamp(min=1)[:, None]  # (B, 1) number of them
        number = (torch.rand(targets.shape, device=targets.device) * unseen).long().clamp(max=unseen - 1)
        # The n-th unseen item comes after each seen item that has at most n unseen items before it.
        unseen_before = seen - domain.start - torch.arange(seen.shape[1], device=seen.device)
        unseen_before = unseen_before.masked_fill(seen >= domain.stop, len(domain))
        item = domain.start + number + torch.searchsorted(unseen_before, number, right=True)
        sampled = torch.where(in_domain(targets, domain), item.clamp(max=domain.stop - 1), sampled)
    return sampled
