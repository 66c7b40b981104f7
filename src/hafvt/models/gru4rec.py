"""GRU4Rec on the merged history.

Hidasi and others, Session-based Recommendations with Recurrent Neural Networks, ICLR 2016; losses: Hidasi and
Karatzoglou, Recurrent Neural Networks with Top-k Gains, CIKM 2018, and the authors' PyTorch code. The item
table is both input and output ("constrained embedding", which all their best settings use). Departures from
their code:

* a batch holds whole histories, right-padded, in place of sessions that run in parallel, step by step;
* loss "catalog", the default: cross-entropy over all items of the target's domain, without sampling.
  "cross-entropy" and "bpr-max" are theirs: the negatives of a target are the targets of the other histories
  at the same step and `samples` items drawn by popularity;
* the dropped state is not carried on to the next step, so that the recurrence runs in one call;
* Adam in place of Adagrad with momentum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout, last, next_items
from hafvt.models.configs import Gru4RecConfig
from hafvt.ops.catalog_softmax import SoftmaxQuery, catalog_nll

TINY = 1e-24  # theirs


class Gru4Rec(Model):
    """A GRU over the merged history; an item's score is its dot product with the last state, and a bias."""

    popularity: Tensor

    def __init__(self, item_features: ItemFeatures, config: Gru4RecConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length = config.max_length
        self.items = nn.Embedding(len(item_features), config.width)  # W_y
        self.bias = nn.Embedding(len(item_features), 1)  # B_y
        self.gru = nn.GRU(config.width, config.width, config.layers, batch_first=True)
        self.drop_embed, self.drop_hidden = Dropout(config.dropout_embed), Dropout(config.dropout_hidden)
        self.register_buffer(
            "popularity", item_features.train_counts / item_features.train_counts.sum().clamp(min=1)
        )
        bound = (6 / (len(item_features) + config.width)) ** 0.5
        nn.init.uniform_(self.items.weight, -bound, bound)
        nn.init.zeros_(self.bias.weight)
        for name, weight in self.gru.named_parameters():
            if name.startswith("weight"):
                nn.init.uniform_(weight, -((6 / (2 * config.width)) ** 0.5), (6 / (2 * config.width)) ** 0.5)
            else:
                nn.init.zeros_(weight)

    def states(self, items: Tensor) -> Tensor:
        """Returns the state after each item, (B, T) -> (B, T, d)."""
        h: Tensor = self.drop_hidden(self.gru(self.drop_embed(self.items(items)))[0])
        return h

    def loss(self, batch: Batch) -> Tensor:
        """The mean over all next items of the chosen loss."""
        inputs, mask, targets = next_items(batch)
        h = self.states(inputs.items)  # (B, T, d)
        if self.config.loss != "catalog":
            return self.sampled_loss(h, mask, batch.items[:, 1:])
        # The bias is one more column of the table, against a 1 in the state.
        table = torch.cat([self.items.weight, self.bias.weight], dim=1)  # (V, d + 1)
        h = F.pad(h[mask].float(), (0, 1), value=1.0)  # (N, d + 1)
        softmax_queries = []
        for domain in self.domains:
            here = (targets >= domain.start) & (targets < domain.stop)
            among = slice(domain.start, domain.stop)
            softmax_queries.append(
                SoftmaxQuery(h[here], targets[here], among, weight=1 / max(len(targets), 1))
            )
        return catalog_nll(softmax_queries, table)

    def sampled_loss(self, h: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy with log-Q correction, or BPR-max, against sampled negatives.

        Args:
            h: (B, T, d) states.
            mask: (B, T) which of them have a next item.
            targets: (B, T) the next items; anything where there is none.
        """
        config = self.config
        weights = self.popularity**config.sample_alpha * (self.popularity > 0)
        drawn = torch.multinomial(weights, config.num_negatives, replacement=True)  # (S,)
        h, mask, targets = h.transpose(0, 1), mask.T, targets.T  # (T, B, d), (T, B), (T, B)
        beside = h @ self.items(targets).transpose(1, 2) + self.bias(targets).transpose(1, 2)  # (T, B, B)
        extra = h @ self.items(drawn).T + self.bias(drawn)[:, 0]  # (T, B, S)
        scores = torch.cat([beside, extra], dim=2)  # (T, B, B + S), the target on the diagonal
        own = torch.eye(h.shape[1], scores.shape[2], dtype=torch.bool, device=h.device)  # (B, B + S)
        absent = F.pad(~mask, (0, config.num_negatives))[:, None]  # (T, 1, B + S): histories that have ended
        if config.loss == "cross-entropy":
            q = self.popularity[targets], self.popularity[drawn].expand(len(h), -1) ** config.sample_alpha
            scores = scores - config.logq * torch.cat(q, dim=1).clamp(min=TINY).log()[:, None]
            log_p = torch.log_softmax(scores.masked_fill(absent & ~own, -torch.inf), dim=2)
            found: Tensor = log_p.diagonal(dim1=1, dim2=2)[mask]
            return -found.mean()
        scores = F.elu(scores, config.elu) if config.elu > 0 else scores
        weight = torch.softmax(scores.masked_fill(absent | own, -torch.inf), dim=2)  # of the negatives alone
        target = scores.diagonal(dim1=1, dim2=2)[..., None]  # (T, B, 1)
        wins = (weight * torch.sigmoid(target - scores)).sum(2)
        held = (weight * scores.square()).sum(2)
        loss: Tensor = (config.bpreg * held - (wins + TINY).log())[mask].mean()
        return loss

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: h . W_y[item] + B_y[item]."""
        h = last(self.states(batch.items), batch.lengths).float()  # (B, d)
        if candidates is not None:
            products = torch.einsum("bd,bcd->bc", h, self.items(candidates))
            scores: Tensor = products + self.bias(candidates)[..., 0]
            return scores
        chosen = self.domains[domain]
        rows = slice(chosen.start, chosen.stop)
        return h @ self.items.weight[rows].T + self.bias.weight[rows, 0]
