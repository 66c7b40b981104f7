"""SR-GNN on the merged history.

Wu and others, Session-based Recommendation with Graph Neural Networks, AAAI 2019; equation numbers are the
paper's, details follow the authors' code where the two differ (scores use the items' own vectors, not those
after the graph; z keeps the old state). Departures from the code:

* every prefix of a session is an example there, each with a graph of its own. Here a step takes `prefixes`
  prefixes of each history, drawn anew each time, so that a step costs about as much as one of SASRec;
* a node is the first slot of its item, and later slots of that item stand idle: so all graphs of a batch are
  built at once, and the equations are the same;
* no decay of the learning rate by epochs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import drawn_prefixes, last, slots
from hafvt.models.configs import SrGnnConfig
from hafvt.ops.catalog_softmax import mean_nll
from hafvt.ops.embedding import embedding_lookup


def graphs(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Builds the graph of each history.

    Returns:
        The node of each slot, the first one with its item, (B, T); A_in and A_out, (B, T, T): row v of A_in
        averages over the predecessors of v, row v of A_out over its successors. Repeated pairs count once.
    """
    real = slots(batch.lengths, batch.items.shape[1])  # (B, T)
    same = (batch.items[:, :, None] == batch.items[:, None, :]) & real[:, None, :]  # (B, T, T)
    node = same.to(torch.uint8).argmax(2)  # (B, T)
    edges = torch.zeros(same.shape, device=same.device)
    row, slot = real[:, 1:].nonzero(as_tuple=True)
    edges[row, node[row, slot], node[row, slot + 1]] = 1.0
    a_in = edges / edges.sum(1, keepdim=True).clamp(min=1)
    a_out = edges / edges.sum(2, keepdim=True).clamp(min=1)
    return node, a_in.transpose(1, 2), a_out


class SrGnn(Model):
    """A gated graph network over each history's graph, then attention that asks with the last item."""

    def __init__(self, item_features: ItemFeatures, config: SrGnnConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        self.items = nn.Embedding(len(item_features), d)
        self.edges_in, self.edges_out = nn.Linear(d, d), nn.Linear(d, d)
        self.bias_in, self.bias_out = nn.Parameter(torch.empty(d)), nn.Parameter(torch.empty(d))
        self.cell = nn.GRUCell(2 * d, d)
        self.ask, self.answer = nn.Linear(d, d), nn.Linear(d, d)  # W_1, W_2
        self.weigh = nn.Linear(d, 1, bias=False)  # q
        self.join = nn.Linear(2 * d, d)  # W_3
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(d**-0.5), d**-0.5)

    def session(self, items: Tensor, batch: Batch) -> Tensor:
        """Returns s_h of (7), from the items' vectors, (B, T, d) -> (B, d)."""
        node, a_in, a_out = graphs(batch)
        h = items
        for _ in range(self.config.steps):  # (1) to (5)
            a = torch.cat(
                [a_in @ self.edges_in(h) + self.bias_in, a_out @ self.edges_out(h) + self.bias_out], dim=2
            )  # (B, T, 2 d)
            h = self.cell(a.flatten(0, 1), h.flatten(0, 1)).view_as(h)
        h = h.gather(1, node[:, :, None].expand_as(h))  # (B, T, d), of each slot its node's
        local = last(h, batch.lengths)  # s_l, (B, d)
        weight = self.weigh(torch.sigmoid(self.ask(local)[:, None] + self.answer(h)))  # (6), (B, T, 1)
        real = slots(batch.lengths, batch.items.shape[1])[:, :, None]
        whole = (weight * h * real).sum(1)  # s_g, (B, d)
        concat_ranks: Tensor = (
            self.join(torch.cat([whole, local], dim=1)) if self.config.hybrid else whole
        )  # (7)
        return concat_ranks

    def loss(self, batch: Batch) -> Tensor:
        """Equation (10) over drawn prefixes of each sequence."""
        row, slot = drawn_prefixes(batch, self.config.num_prefixes)
        return self.prefix_loss(batch, row, slot + 1) if len(row) else self.items.weight.sum() * 0

    def prefix_loss(self, batch: Batch, row: Tensor, length: Tensor) -> Tensor:
        """Mean of -log softmax(s_h E^T) at the item after each prefix, (8) to (10).

        Args:
            batch: whole sequences.
            row: (N,) the sequence of each prefix.
            length: (N,) its number of items.
        """
        prefix = Batch(batch.items[row, : int(length.max())], length)
        table, (items,) = embedding_lookup(self.items.weight, prefix.items)  # (V, d), (N, T, d)
        s = self.session(items, prefix)
        return mean_nll(s.float(), table, batch.items[row, length])

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Equation (8), see `Model.scores`: s_h . v_i."""
        s = self.session(self.items(batch.items), batch).float()  # (B, d)
        if candidates is not None:
            return torch.einsum("bd,bcd->bc", s, self.items(candidates))
        chosen = self.domains[domain]
        return s @ self.items.weight[chosen.start : chosen.stop].T
