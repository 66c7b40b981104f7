"""GRU4Rec on the merged history.

Hidasi and others, Session-based Recommendations with Recurrent Neural Networks, ICLR 2016; losses: Hidasi and
Karatzoglou, Recurrent Neural Networks with Top-k Gains, CIKM 2018, and the authors' PyTorch code. The item
table is both input and output ("constrained embedding", which all their best settings use). Departures from
their code:

* a batch holds whole histories, right-padded, in place of sessions that run in parallel, step by step;
* the default loss "catalog" is cross-entropy over all items of the target's domain, without sampling.
  "cross-entropy" and "bpr-max" are theirs: the negatives of a target are the targets of the other histories
  at the same step and `num_negatives` items drawn by popularity;
* dropout does not apply to the state that the next step reads, so that the recurrence runs in one call;
* Adam in place of Adagrad with momentum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout
from hafvt.models.configs import Gru4RecConfig
from hafvt.models.sequences import dot_scores, in_domain, last_states, next_items, target_weights
from hafvt.ops.catalog_softmax import SoftmaxQuery, catalog_nll
from hafvt.ops.collectives import all_gather_histories
from hafvt.ops.embedding import distinct_rows
from hafvt.ops.sampled_softmax import cumulative_weights, sample_items
from hafvt.ops.weights import mean_factor, total_weight, weighted_sum

EPSILON = 1e-24  # of the authors' code


class Gru4Rec(Model):
    """A GRU over the merged history; an item's score is its dot product with the last state, plus a bias."""

    popularity: Tensor
    """(V,) training interactions of each item."""

    def __init__(self, item_features: ItemFeatures, config: Gru4RecConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        sparse = config.loss != "catalog"
        self.items = nn.Embedding(len(item_features), d, sparse=sparse)  # W_y
        self.bias = nn.Embedding(len(item_features), 1, sparse=sparse)  # B_y
        self.gru = nn.GRU(d, d, config.layers, batch_first=True)
        self.drop_embed, self.drop_hidden = Dropout(config.dropout_embed), Dropout(config.dropout_hidden)
        counts = item_features.train_counts
        self.register_buffer("popularity", counts.clone())
        self.cumulative_weights = cumulative_weights(counts.double() ** config.sample_alpha * (counts > 0))
        bound = (6 / (len(item_features) + d)) ** 0.5
        nn.init.uniform_(self.items.weight, -bound, bound)
        nn.init.zeros_(self.bias.weight)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(weight, -((6 / (2 * d)) ** 0.5), (6 / (2 * d)) ** 0.5)
            else:
                nn.init.zeros_(weight)

    def states(self, items: Tensor) -> Tensor:
        """Return the state after each item, from the item embeddings of histories, (B, T, d) -> (B, T, d)."""
        h: Tensor = self.drop_hidden(self.gru(self.drop_embed(items))[0])
        return h

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean of the chosen loss over all next items."""
        inputs, mask, targets = next_items(batch)
        if self.config.loss != "catalog":
            return self.sampled_loss(inputs.items, mask, batch.items[:, 1:], batch.weights)
        h = self.states(self.items(inputs.items))  # (B, T, d)
        # The bias is one more column of the table, multiplied by a 1 in the state.
        table = torch.cat([self.items.weight, self.bias.weight], dim=1)  # (V, d + 1)
        h = F.pad(h[mask].float(), (0, 1), value=1.0)  # (N, d + 1)
        softmax_queries, factor = [], mean_factor(len(targets), target_weights(batch, mask))
        for domain in self.domains:
            is_in_domain = in_domain(targets, domain)
            items = slice(domain.start, domain.stop)
            weight = factor[is_in_domain] if isinstance(factor, Tensor) else factor
            softmax_queries.append(SoftmaxQuery(h[is_in_domain], targets[is_in_domain], items, weight))
        return catalog_nll(softmax_queries, table)

    def sampled_loss(
        self, inputs: Tensor, mask: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> Tensor:
        """Return cross-entropy with log-q correction, or BPR-max, against sampled negatives.

        `mask`, (B, T), states which of the items `inputs`, (B, T), have a next item, those in `targets`, (B,
        T). Negatives are the targets of the batches of all processes. `weights`, (B, T + 1), are those of all
        items of the histories.
        """
        config, catalog = self.config, slice(0, len(self.cumulative_weights))
        samples = sample_items(self.cumulative_weights, catalog, config.num_negatives, targets.device).items
        weights = None if weights is None else weights[:, 1:].T[mask.T]  # (N,)
        count = total_weight(int(mask.sum()), weights)
        # B' histories of all processes, (B', T), -1 in the place of missing targets
        all_targets, first = all_gather_histories(targets.masked_fill(~mask, -1))
        mask, targets = mask.T, all_targets.clamp(min=0).T  # (T, B), (T, B')
        rows, (inputs, target_rows, sample_rows) = distinct_rows(inputs, targets, samples)
        items, bias = self.items(rows), self.bias(rows)[:, 0]  # (U, d), (U,)
        h = self.states(F.embedding(inputs, items)).transpose(0, 1)  # (T, B, d)
        in_batch = h @ items[target_rows].transpose(1, 2) + bias[target_rows][:, None]  # (T, B, B')
        sampled = h @ items[sample_rows].T + bias[sample_rows]  # (T, B, S)
        scores = torch.cat([in_batch, sampled], dim=2)  # (T, B, B' + S), the target on a diagonal
        is_target = torch.zeros(h.shape[1], scores.shape[2], dtype=torch.bool, device=h.device)
        is_target.diagonal(first).fill_(True)  # (B, B' + S)
        ended = F.pad(all_targets.T < 0, (0, config.num_negatives))[:, None]  # (T, 1, B' + S) without an item
        if config.loss == "cross-entropy":  # counts for in-batch items, their powers for samples, as theirs
            sample_q = self.popularity[samples].expand(len(h), -1) ** config.sample_alpha  # (T, S)
            q = torch.cat([self.popularity[targets], sample_q], dim=1)  # (T, B' + S)
            scores = scores - config.logq * q.clamp(min=EPSILON).log()[:, None]
            log_p = torch.log_softmax(scores.masked_fill(ended & ~is_target, -torch.inf), dim=2)
            target_log_p: Tensor = log_p.diagonal(first, dim1=1, dim2=2)[mask]
            return -weighted_sum(target_log_p, weights) / count
        scores = F.elu(scores, config.elu) if config.elu > 0 else scores
        weight = torch.softmax(scores.masked_fill(ended | is_target, -torch.inf), dim=2)  # of the negatives
        target_scores = scores.diagonal(first, dim1=1, dim2=2)[..., None]  # (T, B, 1)
        wins = (weight * torch.sigmoid(target_scores - scores)).sum(2)
        penalty = (weight * scores.square()).sum(2)
        losses = (config.bpreg * penalty - (wins + EPSILON).log())[mask]
        return weighted_sum(losses, weights) / count

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return h . W_y[item] + B_y[item], see `Model.scores`."""
        h = last_states(self.states(self.items(batch.items)), batch.lengths).float()  # (B, d)
        start, stop = self.domains[domain].start, self.domains[domain].stop
        bias = self.bias.weight[start:stop] if candidates is None else self.bias(candidates)
        return dot_scores(h, self.items.weight, self.domains[domain], candidates) + bias[..., 0]
