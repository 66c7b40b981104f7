"""The literal equations of HAF-VT (arXiv 2504.15085), for comparison with `hafvt.py`.

A history has D + 1 sequences: its items of each of D domains, S^X, S^Y, ..., and all its items, S^{X+Y}.
Each item has M modalities: its id (a learned embedding), and its picture and title (frozen vectors of CLIP or
other encoders). For each sequence s and modality m, with the embeddings E_m of all items, (V, d):

    H = softmax(Q K^T / sqrt(d)) V, with Q, K, V linear in the rows of E_m for the items of s     (1), (3)
    h = the last row of H;  P_s,m(i) = softmax_i(cos(h, E_m,i))                            (2), (4) to (6)
    P_s(i) = alpha P_s,id(i) + beta P_s,image(i) + (1 - alpha - beta) P_s,title(i)                     (7)
    L_s = -sum_t log P_s(x_{t+1} | x_1 ... x_t)                                                        (8)
    L = L_X + lambda1 L_Y + lambda2 L_{X+Y}                                                            (9)
    score(i) = P_X(i) + lambda1 P_Y(i) + lambda2 P_{X+Y}(i), for items i of domain X                  (10)

The paper leaves the following open, and this file decides it:

* All next items of a sequence are targets, under a causal mask. (8) is a mean over targets, not a sum, so
  that lambda1 and lambda2 do not depend on how many items each domain has.
* lambda1 and lambda2 have no published values: see `HafVtPaperConfig`. alpha, beta and 1 - alpha - beta are
  equal. No L2 penalty: the paper names a range for its weight, but not where it applies; use `weight_decay`.
* One model serves all domains: the loss is the mean of (9) with every domain as X.
* P_Y of an item of X, which (10) needs, compares the last state of S^Y with the embeddings of X's items, by a
  softmax over X. The branches of an empty sequence contribute 0.
* P_{X+Y} is a softmax over all items, in training and in (10), where only the items of X are ranked. So in
  a small domain, P_{X+Y} contributes less to (10).
* An item without a picture or title has the mean vector of its domain, in histories and as a candidate.
* Softmaxes run over trained items. A cold item (without training interactions) has id embedding 0, and its
  id branches contribute 0 to its score. Items cannot be added after training.
* The softmax has no temperature, as printed: cosines lie in [-1, 1], so probabilities stay near uniform.
* Dropout acts on the input and output of attention. No position embeddings, no residual connections.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures, prepare_vectors
from hafvt.models.base import BranchContributions, Model, normalize_shares
from hafvt.models.blocks import Dropout
from hafvt.models.configs import HafVtPaperConfig
from hafvt.models.sequences import (
    in_domain,
    last_states,
    next_items,
    scatter_selected,
    select_items,
    target_weights,
    valid_mask,
)
from hafvt.models.trained_items import TrainedItems
from hafvt.ops.catalog_softmax import SoftmaxQuery, log_partition, target_log_probabilities
from hafvt.ops.products import linear
from hafvt.ops.weights import total_weight, weighted_sum


class AttentionLayer(nn.Module):
    """Attention over one sequence in one modality with embeddings of a width d, equations (1) and (3)."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return H, (B, T, d), and the attention of each item to earlier ones and itself, (B, T, T)."""
        q, k, v = self.qkv(self.dropout(x)).chunk(3, dim=2)  # (B, T, d) each
        causal_mask = torch.full((x.shape[1], x.shape[1]), -torch.inf, dtype=q.dtype, device=x.device).triu(1)
        attention = torch.softmax((q * x.shape[2] ** -0.5) @ k.transpose(1, 2) + causal_mask, dim=2)  # (3)
        return self.dropout(attention @ v), attention  # (1)


class HafVtPaper(Model):
    """HAF-VT as printed; see the module's docstring. Refuses modalities that are not encoded."""

    by_domain = ("layers",)
    can_explain = True

    def __init__(self, item_features: ItemFeatures, config: HafVtPaperConfig) -> None:
        super().__init__()
        self.config, self.domains, self.max_length = config, item_features.domains, config.max_length
        self.modalities = config.choose_modalities(item_features.vectors)
        self.content_modalities = tuple(name for name in self.modalities if name != "id")
        self.sequence_names = (*(domain.name for domain in self.domains), "all domains")
        self.trained = TrainedItems(item_features)
        if "id" in self.modalities:
            self.ids = nn.Embedding(len(item_features), config.width)
            nn.init.normal_(self.ids.weight, std=config.width**-0.5)
        for name in self.content_modalities:
            rows = prepare_vectors(item_features.vectors[name], item_features, width=0)
            self.register_buffer(f"content_{name}", rows, persistent=False)
        self.layers: Any = nn.ModuleList(  # D + 1 lists of M
            nn.ModuleList(AttentionLayer(table.shape[1], config.dropout) for table in self.embeddings())
            for _ in self.sequence_names
        )

    def embeddings(self) -> list[Tensor]:
        """Return E_m, the embeddings of all items, for each modality, (V, d) each."""
        return [
            self.ids.weight.masked_fill(self.trained.is_cold[:, None], 0.0)
            if name == "id"
            else getattr(self, f"content_{name}")
            for name in self.modalities
        ]

    def sequence_masks(self, batch: Batch) -> list[Tensor]:
        """Return which items of each history are in each of the D + 1 sequences, (B, T) each."""
        is_item = valid_mask(batch.lengths, batch.items.shape[1])
        return [*(is_item & in_domain(batch.items, domain) for domain in self.domains), is_item]

    def sequences(self, batch: Batch) -> list[Batch]:
        """Return the D + 1 sequences of each history: S^X, S^Y, ... and S^{X+Y}."""
        return [*(select_items(batch, mask) for mask in self.sequence_masks(batch)[:-1]), batch]

    def loss(self, batch: Batch) -> Tensor:
        """Return (9), averaged over every domain as X."""
        num_domains, embeddings = len(self.domains), self.embeddings()
        # Coefficient of each L_s: a domain is X once, and Y for each of the D - 1 other domains.
        domain_lambda = (1 + self.config.lambda1 * (num_domains - 1)) / num_domains
        lambdas = [domain_lambda] * num_domains + [self.config.lambda2]
        loss = torch.zeros((), device=self.trained.is_cold.device)
        for s, sequence in enumerate(self.sequences(batch)):
            inputs, mask, _ = next_items(sequence)
            mask = mask & ~self.trained.is_cold[sequence.items[:, 1:]]  # (B, T)
            targets = self.trained.positions[sequence.items[:, 1:][mask]]  # (N,)
            log_p = []
            for name, table, layer in zip(self.modalities, embeddings, self.layers[s], strict=True):
                h, _ = layer(F.embedding(inputs.items, table))
                h = F.normalize(h.float(), dim=2)[mask]  # (N, d)
                query = SoftmaxQuery(h, targets, self.trained.ranges[s])
                rows = self.trained.select(table)
                log_p += target_log_probabilities([query], rows, normalize_rows=name == "id")  # (4) to (6)
            mixture = torch.stack(log_p).logsumexp(0) - torch.tensor(len(log_p)).log()  # (7), (N,)
            weights = target_weights(sequence, mask)
            total = weighted_sum(mixture, weights)
            loss = loss - lambdas[s] * total / total_weight(len(targets), weights)  # (8)
        return loss

    def branch_scores(
        self, batch: Batch, domain: int, candidates: Tensor | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each branch's term of (10), (B, C), and its attention over its sequence, (B, T).

        The order is all modalities of one sequence, then those of the next.
        """
        domain_rows = slice(self.domains[domain].start, self.domains[domain].stop)
        is_cold = self.trained.is_cold[domain_rows if candidates is None else candidates]  # (C,) or (B, C)
        merged = len(self.domains)
        for s, sequence in enumerate(self.sequences(batch)):
            weight = {domain: 1.0, merged: self.config.lambda2}.get(s, self.config.lambda1)
            softmax_range = self.trained.ranges[merged if s == merged else domain]
            for m, table in enumerate(self.embeddings()):
                h, attention = self.layers[s][m](F.embedding(sequence.items, table))
                h = F.normalize(last_states(h, sequence.lengths).float(), dim=1)  # (B, d)
                table = F.normalize(table, dim=1) if self.modalities[m] == "id" else table
                if candidates is None:
                    cosine = linear(h, table[domain_rows])  # (2), (B, C)
                else:
                    cosine = torch.einsum("bd,bcd->bc", h, table[candidates])
                rows = self.trained.select(table)[softmax_range]
                p = (cosine - log_partition(h, rows)[:, None]).exp()  # (4) to (6)
                if self.modalities[m] == "id":
                    p = p.masked_fill(is_cold, 0.0)
                p = p.masked_fill((sequence.lengths == 0)[:, None], 0.0)
                yield weight / len(self.modalities) * p, last_states(attention, sequence.lengths)  # (7), (10)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the log of (10), see `Model.scores`."""
        total = sum(score for score, _ in self.branch_scores(batch, domain, candidates))
        return torch.as_tensor(total).clamp(min=1e-30).log()

    def explain(self, batch: Batch, domain: int, candidates: Tensor) -> BranchContributions:
        """Return how each branch contributes to the scores, see `Model.explain`."""
        shape, masks = (len(self.sequence_names), len(self.modalities)), self.sequence_masks(batch)  # S, M
        scores, weights = zip(*self.branch_scores(batch, domain, candidates), strict=True)
        shares = normalize_shares(torch.stack(scores, dim=2).view(*candidates.shape, *shape))
        attention = [scatter_selected(w, masks[branch // shape[1]]) for branch, w in enumerate(weights)]
        return BranchContributions(
            shares, torch.stack(attention, dim=1).view(-1, *shape, batch.items.shape[1])
        )
