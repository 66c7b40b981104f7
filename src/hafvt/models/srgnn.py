"""SR-GNN on the merged history.

Wu and others, Session-based Recommendation with Graph Neural Networks, AAAI 2019. Equation numbers are the
paper's. Where paper and authors' code differ, the code counts: scores use the items' own embeddings, not
those after the graph, and the update gate z keeps the old state. Departures from the code:

* each prefix of a session is an example there. Here a step samples `num_prefixes` prefixes of each history,
  so that a step costs about as much as one of SASRec;
* a node of the graph is the first position of its item, and later positions of that item are isolated nodes:
  all graphs of a batch are built at once, with the same equations;
* the learning rate does not decay by epochs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.configs import SrGnnConfig
from hafvt.models.sequences import dot_scores, last_states, sample_prefixes, valid_mask
from hafvt.ops.catalog_softmax import mean_nll
from hafvt.ops.embedding import embedding_lookup


def session_graphs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Build the graph of each history.

    Returns the node of each position, the first position of the same item, (B, T), and A_in and A_out,
    (B, T, T). Row v of A_in averages over the predecessors of v, row v of A_out over its successors. Repeated
    pairs count once.
    """
    valid = valid_mask(batch.lengths, batch.items.shape[1])  # (B, T)
    is_same = (batch.items[:, :, None] == batch.items[:, None, :]) & valid[:, None, :]  # (B, T, T)
    node = is_same.to(torch.uint8).argmax(2)  # (B, T)
    edges = torch.zeros(is_same.shape, device=is_same.device)
    row, position = valid[:, 1:].nonzero(as_tuple=True)
    edges[row, node[row, position], node[row, position + 1]] = 1.0
    a_in = edges / edges.sum(1, keepdim=True).clamp(min=1)
    a_out = edges / edges.sum(2, keepdim=True).clamp(min=1)
    return node, a_in.transpose(1, 2), a_out


class SrGnn(Model):
    """A gated graph network over each history's graph, then attention with the last item as the query."""

    def __init__(self, item_features: ItemFeatures, config: SrGnnConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        self.items = nn.Embedding(len(item_features), d)
        self.edges_in, self.edges_out = nn.Linear(d, d), nn.Linear(d, d)
        self.bias_in, self.bias_out = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.cell = nn.GRUCell(2 * d, d)
        self.attention_query, self.attention_key = nn.Linear(d, d), nn.Linear(d, d)  # W_1, W_2
        self.attention_score = nn.Linear(d, 1, bias=False)  # q
        self.combine = nn.Linear(2 * d, d)  # W_3
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(d**-0.5), d**-0.5)

    def session(self, items: Tensor, batch: Batch) -> Tensor:
        """Return s_h of (7), (B, d), of histories with the item embeddings `items`, (B, T, d)."""
        node, a_in, a_out = session_graphs(batch)
        h = items
        for _ in range(self.config.steps):  # (1) to (5)
            m_in = a_in @ self.edges_in(h) + self.bias_in
            m_out = a_out @ self.edges_out(h) + self.bias_out
            messages = torch.cat([m_in, m_out], dim=2)  # (B, T, 2 d)
            h = self.cell(messages.flatten(0, 1), h.flatten(0, 1)).view_as(h)
        h = h.gather(1, node[:, :, None].expand_as(h))  # (B, T, d), each position has its node's state
        s_local = last_states(h, batch.lengths)  # s_l, (B, d)
        hidden = torch.sigmoid(self.attention_query(s_local)[:, None] + self.attention_key(h))
        weight = self.attention_score(hidden)  # (6), (B, T, 1)
        valid = valid_mask(batch.lengths, batch.items.shape[1])[:, :, None]
        session: Tensor = (weight * h * valid).sum(1)  # s_g, (B, d)
        if self.config.hybrid:
            session = self.combine(torch.cat([session, s_local], dim=1))  # (7), (B, d)
        return session

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss (10) of sampled prefixes of each sequence."""
        row, position = sample_prefixes(batch, self.config.num_prefixes)
        return self.prefix_loss(batch, row, position + 1)

    def prefix_loss(self, batch: Batch, row: Tensor, length: Tensor) -> Tensor:
        """Return the mean of -log softmax(s_h E^T) at the item after each prefix, (8) to (10).

        Each prefix has the number of its sequence and its number of items, (N,) each.
        """
        prefix = Batch(batch.items[row, : max(length.tolist(), default=1)], length)
        table, (items,) = embedding_lookup(self.items.weight, prefix.items)  # (V, d), (N, T, d)
        s = self.session(items, prefix)
        weights = None if batch.weights is None else batch.weights[row, length]
        return mean_nll(s.float(), table, batch.items[row, length], weights=weights)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return s_h . v_i, equation (8), see `Model.scores`."""
        s = self.session(self.items(batch.items), batch).float()  # (B, d)
        return dot_scores(s, self.items.weight, self.domains[domain], candidates)
