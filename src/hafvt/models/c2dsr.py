"""C2DSR: contrastive cross-domain sequential recommendation.

Cao and others, Contrastive Cross-Domain Sequential Recommendation, CIKM 2022 (arXiv 2304.03891). A graph
convolution over training transitions smooths the item embeddings. One encoder reads the merged history, and
one encoder per domain reads the history of that domain. The next item is predicted from the merged state, and
from the sum of the merged and the domain's state. An infomax loss ties the mean state of a domain to the
merged states at the items of other domains. Departures from the authors' code:

* the graph contains each transition once, as intended there; their code counts repeated transitions
  (`weighted_transitions` does so, too);
* batches and corrupted histories are drawn anew in each epoch; there they are drawn once;
* the history of a domain contains its items alone, without padding between them and on the left, which their
  attention sees. An extra class for padding, which is never a target, is left out;
* positions count from the latest item; those beyond the longest training history share its last embedding;
* an item is predicted from the latest merged and the latest domain state, in training as in the test; there
  training uses the merged state at the domain's latest position. All positions are targets, not the last 10;
* the state of a domain without items is zero; there it is that of padding, the bias of the normalization;
* histories with one domain train the prediction and do not count in infomax; their loader skips histories
  without a target in each domain;
* the means in infomax are over all items of a domain; there over those that a target of the domain follows;
* all layers of the graph convolution share one bias; there each layer has its own.

With more than two domains, each has an encoder, and "the other items" are those of all other domains.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.relations import TRANSITION, WITHIN_DOMAIN
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import DomainSoftmaxes, Dropout, PositionEmbedding, SasRecBlock
from hafvt.models.configs import C2dsrConfig
from hafvt.models.sequences import (
    in_domain,
    last_states,
    next_items,
    select_items,
    states_after,
    target_weights,
    valid_mask,
    with_min_width,
)
from hafvt.ops.catalog_softmax import catalog_nll
from hafvt.ops.collectives import global_count
from hafvt.ops.weights import total_weight


class TransitionGraph(nn.Module):
    """The normalized adjacency matrix A of transitions, (n, 2) item and next item.

    If `weighted`, repeated transitions weigh more.
    """

    neighbors: Tensor
    starts: Tensor
    weights: Tensor

    def __init__(self, links: Tensor, num_items: int, weighted: bool) -> None:
        super().__init__()
        keys, counts = torch.unique(links[:, 0] * num_items + links[:, 1], return_counts=True)
        source, weights = keys // num_items, counts.float() if weighted else torch.ones(len(keys))
        total = torch.zeros(num_items).index_add(0, source, weights)
        self.register_buffer("neighbors", keys % num_items, persistent=False)  # (n,)
        self.register_buffer("starts", torch.searchsorted(source, torch.arange(num_items)), persistent=False)
        self.register_buffer("weights", weights / total[source], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return A x, the mean over each item's neighbors, zeros without neighbors, (V, d) -> (V, d)."""
        x, weights = x.float(), self.weights
        return F.embedding_bag(self.neighbors, x, self.starts, mode="sum", per_sample_weights=weights)


class GraphEncoder(nn.Module):
    """Graph convolution over item embeddings, and self-attention over histories of them."""

    def __init__(self, links: Tensor, num_items: int, config: C2dsrConfig) -> None:
        super().__init__()
        self.layers, d = config.graph_layers, config.width
        self.graph = TransitionGraph(links, num_items, config.weighted_transitions)
        self.items, self.bias = nn.Embedding(num_items, d), nn.Parameter(torch.zeros(d))
        self.positions = PositionEmbedding(config.max_length, d)
        self.blocks = nn.ModuleList(
            SasRecBlock(d, config.heads, config.dropout, project=True) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(d, eps=1e-8)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.items.weight, std=0.02)

    def table(self) -> Tensor:
        """Return sqrt(d) (G + E); G is the mean of E_0 = E, E_l = A dropout(E_{l-1}) + b, (V, d)."""
        e = g = self.items.weight
        for _ in range(self.layers):
            e = self.graph(self.dropout(e)) + self.bias
            g = g + e
        table: Tensor = (g / (self.layers + 1) + self.items.weight) * e.shape[1] ** 0.5
        return table

    def forward(self, table: Tensor, batch: Batch) -> Tensor:
        """Return the state after each item, (B, T, d), from the result of `table`."""
        positions = self.positions.from_latest(batch.lengths, batch.items.shape[1])
        x = self.dropout(F.embedding(batch.items, table) + positions)
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states


class C2dsr(Model):
    """An encoder of the merged history; an encoder, a softmax and a discriminator of each domain."""

    by_domain = ("own", "outputs", "discriminators")
    uses_relations = True

    def __init__(self, item_features: ItemFeatures, config: C2dsrConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length, d, num_items = config.max_length, config.width, len(item_features)
        relations = item_features.relations
        self.merged = GraphEncoder(relations[TRANSITION], num_items, config)
        self.own = nn.ModuleList(
            GraphEncoder(relations[WITHIN_DOMAIN], num_items, config) for _ in self.domains
        )
        self.outputs = DomainSoftmaxes(d, self.domains)
        self.discriminators = nn.ModuleList(nn.Bilinear(d, d, 1) for _ in self.domains)

    def domain_states(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """Return the states of a domain's history, (B, T_d, d), and their number so far, (B, T)."""
        encoder: GraphEncoder = self.own[number]  # type: ignore[assignment]
        is_in_domain = in_domain(batch.items, self.domains[number])
        is_in_domain = is_in_domain & valid_mask(batch.lengths, batch.items.shape[1])
        return encoder(encoder.table(), select_items(batch, is_in_domain)), is_in_domain.cumsum(1)

    def loss(self, batch: Batch) -> Tensor:
        """Return lambda (cross + single) + (1 - lambda) sum of the domains' infomax.

        cross: mean of -log softmax(W_d h + b_d) at the next item, d its domain, h the merged state.
        single: the same of h + h_d, with the latest state h_d of the domain.
        """
        batch = with_min_width(batch, 2)  # at least one input
        inputs, mask, targets = next_items(batch)
        weights = target_weights(batch, mask)
        table = self.merged.table()
        h = self.merged(table, inputs)  # (B, T, d)
        prediction = infomax = h.new_zeros(())
        output: Any
        for number, (domain, output) in enumerate(zip(self.domains, self.outputs, strict=True)):
            is_in_domain = in_domain(targets, domain)
            states, counts = self.domain_states(inputs, number)
            if is_in_domain.any():
                cross = h[mask][is_in_domain]
                single = cross + states_after(states, counts)[mask][is_in_domain]
                queries = torch.cat([cross, single])  # (2 N, d)
                parts = None if weights is None else weights[is_in_domain].repeat(2)
                items = targets[is_in_domain].repeat(2)
                prediction = prediction + catalog_nll(*output.query(queries, items, parts))
            in_history = in_domain(inputs.items, domain) & mask
            random = torch.randint(domain.start, domain.stop, inputs.items.shape, device=h.device)
            corrupted = Batch(torch.where(in_history, random, inputs.items), inputs.lengths)
            merged, others = (h, self.merged(table, corrupted)), mask & ~in_history
            infomax = infomax + self.infomax(number, states, counts[:, -1], merged, others)
        weight, count = self.config.prediction_weight, total_weight(len(targets), weights)
        total: Tensor = weight * prediction / count + (1 - weight) * infomax
        return total

    def infomax(
        self, number: int, states: Tensor, counts: Tensor, merged: tuple[Tensor, Tensor], others: Tensor
    ) -> Tensor:
        """Return the mean of -log sigmoid(D(s, z)) - log(1 - sigmoid(D(s, z'))) over cross-domain histories.

        s is the mean of `states`, (B, T_d, d), `counts` of each history, (B,); z and z' are the means
        of the merged states and of those after replacing the domain's items, (B, T, d), at the items of
        `others`, (B, T).
        """
        cross_domain = (counts > 0) & others.any(1)
        count = max(global_count(int(cross_domain.sum())), 1)
        s = masked_mean(states, valid_mask(counts, states.shape[1]))[cross_domain].float()
        true, false = (  # in float32, as autocast does not cover bilinear forms
            self.discriminators[number](s, masked_mean(h, others)[cross_domain].float()) for h in merged
        )
        loss: Tensor = (F.softplus(-true) + F.softplus(false)).sum() / count
        return loss

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return W_d (h + h_d) + b_d, see `Model.scores`."""
        h = last_states(self.merged(self.merged.table(), batch), batch.lengths)  # (B, d)
        states, counts = self.domain_states(batch, domain)
        return self.outputs.scores(domain, (h + last_states(states, counts[:, -1])).float(), candidates)


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of the masked states of each row, zeros of none, (B, T, d) -> (B, d)."""
    weight = mask.to(states.dtype) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, T)
    return torch.einsum("bt,btd->bd", weight, states)
