"""C2DSR: contrastive cross-domain sequential recommendation.

Cao and others, Contrastive Cross-Domain Sequential Recommendation, CIKM 2022 (arXiv 2304.03891). A graph of
training transitions smooths the items' vectors; one encoder reads the merged history, one each domain's own;
the next item of a domain is predicted from the merged state, and from it and the domain's own together; an
infomax objective ties the summary of a domain's own states to the merged ones of the other items.
Departures from the authors' code:

* it means the graph to hold each transition once, but counts repeated ones; here once (`code_counts` counts);
* it shuffles once, cuts fixed batches, and draws the corrupted histories once: here all is drawn anew;
* it reads a domain's own items with the other's slots as padding between them, which its attention sees; here
  they are left out. Its extra class for padding, which is never a target, is left out, too;
* there an own state is trained with the merged state at its own slot, and tested with that of the last slot;
  here each item is predicted from both latest states, as in the test. All slots are trained, not the last 10;
* it averages over histories without a domain as if their states were zero; they take no part here.

More than two domains: one own encoder each; "the other" items are those of all other domains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.relations import TRANSITION, WITHIN_DOMAIN
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout, known, last, next_items, slots, view
from hafvt.models.configs import C2dsrConfig
from hafvt.models.pinet import chosen_scores, nll
from hafvt.models.sasrec import OriginalBlock


class TransitionGraph(nn.Module):
    """The normalized graph of transitions: each item's neighbors are averaged.

    Args:
        links: (n, 2) item and next item.
        items: how many there are.
        counts: whether repeated links weigh more.
    """

    neighbors: Tensor
    starts: Tensor
    weights: Tensor

    def __init__(self, links: Tensor, items: int, counts: bool) -> None:
        super().__init__()
        keys, times = torch.unique(links[:, 0] * items + links[:, 1], return_counts=True)
        source, weights = keys // items, times.float() if counts else torch.ones(len(keys))
        total = torch.zeros(items).index_add(0, source, weights)
        self.register_buffer("neighbors", keys % items, persistent=False)  # (n,)
        self.register_buffer("starts", torch.searchsorted(source, torch.arange(items)), persistent=False)
        self.register_buffer("weights", weights / total[source], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the mean of each item's neighbors, zeros where there are none, (V, d) -> (V, d)."""
        x, weights = x.float(), self.weights
        return F.embedding_bag(self.neighbors, x, self.starts, mode="sum", per_sample_weights=weights)


class GraphEncoder(nn.Module):
    """Item vectors with their graph, and self-attention over histories of them."""

    def __init__(self, links: Tensor, items: int, config: C2dsrConfig) -> None:
        super().__init__()
        self.layers = config.graph_layers
        self.graph = TransitionGraph(links, items, config.weighted_transitions)
        self.items, self.bias = nn.Embedding(items, config.width), nn.Parameter(torch.zeros(config.width))
        self.positions = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(
            OriginalBlock(config.width, config.heads, config.dropout, project=True)
            for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-8)
        self.dropout = Dropout(config.dropout)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def table(self) -> Tensor:
        """Returns sqrt(d) (G + E); G is the mean of E_0 = E, E_l = A dropout(E_{l-1}) + b, (V, d)."""
        e = g = self.items.weight
        for _ in range(self.layers):
            e = self.graph(self.dropout(e)) + self.bias
            g = g + e
        table: Tensor = (g / (self.layers + 1) + self.items.weight) * e.shape[1] ** 0.5
        return table

    def forward(self, table: Tensor, items: Tensor) -> Tensor:
        """Returns the state after each item, (B, T) -> (B, T, d)."""
        x = self.dropout(F.embedding(items, table) + self.positions.weight[: items.shape[1]])
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed


class C2dsr(Model):
    """An encoder of the merged history and one of each domain's, a softmax and a discriminator each."""

    uses_relations = True

    def __init__(self, item_features: ItemFeatures, config: C2dsrConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        self.merged = GraphEncoder(item_features.relations[TRANSITION], len(item_features), config)
        own = (
            GraphEncoder(item_features.relations[WITHIN_DOMAIN], len(item_features), config)
            for _ in self.domains
        )
        self.own = nn.ModuleList(own)
        self.outputs = nn.ModuleList(nn.Linear(d, len(domain)) for domain in self.domains)
        self.discriminators = nn.ModuleList(nn.Bilinear(d, d, 1) for _ in self.domains)

    def own_states(self, batch: Batch, number: int) -> tuple[Tensor, Tensor]:
        """Returns a domain's own states, (B, T_own, d), and how many there are by each slot, (B, T)."""
        domain, encoder = self.domains[number], self.own[number]
        mine = (batch.items >= domain.start) & (batch.items < domain.stop)
        mine = mine & slots(batch.lengths, batch.items.shape[1])
        return encoder(encoder.table(), view(batch, mine).items), mine.cumsum(1)  # type: ignore[operator]

    def loss(self, batch: Batch) -> Tensor:
        """Returns lambda (cross + single) + (1 - lambda) sum of the domains' infomax.

        cross: mean of -log softmax(W_d h + b_d) at the next item, d its domain, h the merged state.
        single: likewise of h + h_d, with d's own latest state.
        """
        inputs, mask, targets = next_items(batch)
        table = self.merged.table()
        if not mask.any():
            return table.sum() * 0
        h = self.merged(table, inputs.items)  # (B, T, d)
        predicted = infomax = h.new_zeros(())
        for number, (domain, output) in enumerate(zip(self.domains, self.outputs, strict=True)):
            mine = (targets >= domain.start) & (targets < domain.stop)
            states, counts = self.own_states(inputs, number)
            if mine.any():
                cross = h[mask][mine]
                single = cross + known(states, counts)[mask][mine]
                both = torch.cat([cross, single])  # (2 N, d)
                predicted = predicted + nll(both, output, (targets[mine] - domain.start).repeat(2))
            of_domain = (inputs.items >= domain.start) & (inputs.items < domain.stop) & mask
            drawn = torch.randint(domain.start, domain.stop, inputs.items.shape, device=h.device)
            wrong = self.merged(table, torch.where(of_domain, drawn, inputs.items))
            infomax = infomax + self.infomax(number, states, counts[:, -1], (h, wrong), mask & ~of_domain)
        share = self.config.prediction_weight
        total: Tensor = share * predicted / len(targets) + (1 - share) * infomax
        return total

    def infomax(
        self, number: int, states: Tensor, counts: Tensor, merged: tuple[Tensor, Tensor], others: Tensor
    ) -> Tensor:
        """Mean of -log sigmoid(D(s, z)) - log(1 - sigmoid(D(s, z'))) over histories with both.

        Args:
            number: of the domain.
            states: (B, T_own, d) its own states; s is their mean.
            counts: (B,) how many of them are real.
            merged: h and h' (B, T, d), the latter of histories whose items of the domain are replaced.
            others: (B, T) slots of items of other domains; z and z' are the means of h and h' there.
        """
        some = (counts > 0) & others.any(1)
        if not some.any():
            return states.new_zeros(())
        s = mean_of(states, slots(counts, states.shape[1]))[some]
        # Autocast knows nothing of bilinear forms.
        true, false = (
            self.discriminators[number](s.float(), mean_of(h, others)[some].float()) for h in merged
        )
        loss: Tensor = (F.softplus(-true) + F.softplus(false)).mean()
        return loss

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: W_d (h + h_d) + b_d, before the softmax."""
        h = last(self.merged(self.merged.table(), batch.items), batch.lengths)  # (B, d)
        states, counts = self.own_states(batch, domain)
        h = (h + last(states, counts[:, -1])).float()
        return chosen_scores(h, self.outputs[domain], candidates, self.domains[domain].start)


def mean_of(states: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of the masked states of each row, (B, T, d) -> (B, d); zeros where there are none."""
    weight = mask.to(states.dtype) / mask.sum(1, keepdim=True).clamp(min=1)  # (B, T)
    return torch.einsum("bt,btd->bd", weight, states)
