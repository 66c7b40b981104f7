"""MIFN: a mixed information flow network of two domains, behavior and knowledge.

Ma and others, Mixed Information Flow Network for Cross-domain Sequential Recommendations, ACM TKDD 2022
(arXiv 2012.00485). A behavior transfer unit carries a history to the other domain, as in pi-Net without
latent users. A knowledge transfer unit passes messages in a graph of the items around the history. The next
item is generated from all items of a domain or copied from the graph, by a learned gate. Departures from the
authors' code:

* it cannot run: it reshapes the 2 * 5 messages of 5 relations to 12. Here each relation has two messages. Its
  dropout stays on during evaluation (`dropout_at_evaluation` does so, too), and it loses all edges after the
  first edge that leaves the graph. It fills a graph up with random nodes; here a graph may be smaller;
* the relations are those of the item table (also_bought, ...), else the training transitions; without any,
  a graph contains the items of the history alone. Each item has its `links_per_item` most frequent successors
  in a relation. The nodes are the items of the history, newest first, then those within `hops` links,
  strongest links first, up to `max_nodes`; the choice of nodes is not learned;
* the target is never added to a graph. In training, the relation "transition" also lacks the link that only
  this training step contributes. Otherwise nearly every target would be a neighbor of the last item, and the
  model would only learn to copy;
* there every sequence has one target in each domain. Here every item is the target of the items before it, in
  its own domain: the units that read histories are causal and handle all prefixes at once, and a step samples
  the graphs of `num_prefixes` prefixes of each history;
* dropout applies to item embeddings and before the softmax, not to recurrent states; no gradient clipping.

The model is defined for two domains.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.features.item_features import ItemFeatures
from hafvt.features.relations import graph_relations, link_tables
from hafvt.models.base import Model
from hafvt.models.blocks import DomainSoftmax, Dropout, ResetFirstGru, blend, init_xavier, split_layer
from hafvt.models.configs import MifnConfig
from hafvt.models.sequences import (
    in_domain,
    masked_softmax,
    require_two_domains,
    sample_prefixes,
    split_two_domains,
    states_after,
    valid_mask,
)
from hafvt.ops.catalog_softmax import target_log_probabilities
from hafvt.ops.weights import total_weight, weighted_sum

EPSILON = 1e-30


class HistoryGraphs(NamedTuple):
    """The graph of each of P histories."""

    nodes: Tensor
    """(P, N) distinct items, -1 in unused places."""
    adjacency: Tensor
    """(P, R, N, N) 1 where a relation links the node of the row to that of the column, else 0."""


def first_distinct(candidates: Tensor, count: int) -> Tensor:
    """Return the first `count` distinct entries >= 0 of each row, then -1, (P, C) -> (P, N)."""
    values, order = candidates.sort(dim=1, stable=True)
    differs = F.pad(values[:, 1:] != values[:, :-1], (1, 0), value=True) & (values >= 0)
    is_first = torch.zeros_like(differs).scatter(1, order, differs)  # (P, C) first occurrence of an entry
    place = is_first.cumsum(1) - 1
    is_first = is_first & (place < count)
    width = max(int(is_first.sum(1).max()), 1)
    distinct = candidates.new_full((len(candidates), width + 1), -1)
    return distinct.scatter(1, place.masked_fill(~is_first, width), candidates)[:, :width]


class BehaviorTransfer(nn.Module):
    """The behavior transfer unit: selects item by item what to transfer to the other domain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter, self.candidate = nn.Linear(3 * width, width), nn.Linear(2 * width, width)
        self.transfer = ResetFirstGru(width, width)
        for layer in (self.filter, self.candidate):
            nn.init.xavier_normal_(layer.weight)
            nn.init.ones_(layer.bias)

    def forward(self, h: Tensor, h_other: Tensor) -> Tensor:
        """Return the transferred state after each item, (B, T, d) twice -> (B, T, d).

        f = sigmoid([h; h_other; s] W_f + b_f);  c = tanh([h; s] W_s + b_s);  s' = f * c + (1 - f) * s
        """
        f_inputs, w_f = split_layer(self.filter, torch.cat([h, h_other], dim=2))
        c_inputs, w_c = split_layer(self.candidate, h)
        s, states = torch.zeros_like(h[:, 0]), []
        for f_input, c_input in zip(f_inputs, c_inputs, strict=True):
            f = torch.sigmoid(torch.addmm(f_input, s, w_f))
            s = blend(s, torch.tanh(torch.addmm(c_input, s, w_c)), f)
            states.append(s)
        transferred: Tensor = self.transfer(torch.stack(states, dim=1))
        return transferred


class AdditiveAttention(nn.Module):
    """Scores of nodes given a state, v . tanh(h W_h + e W_e)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.key = (nn.Linear(width, width, bias=False) for _ in range(2))  # W_h, W_e
        self.score = nn.Linear(width, 1, bias=False)  # v

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Return a score of each node, (P, d) and (P, N, d) -> (P, N)."""
        scores: Tensor = self.score(torch.tanh(self.query(h)[:, None] + self.key(e)))[:, :, 0]
        return scores


class KnowledgeTransfer(nn.Module):
    """The knowledge transfer unit: one round of messages in a graph, within and between the domains."""

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.relations = relations
        self.own, self.other = AdditiveAttention(width), AdditiveAttention(width)
        self.gate = nn.Linear(3 * width, width)  # W_c, b_c
        self.own_linear, self.other_linear = nn.Linear(width, width), nn.Linear(width, width)  # W_a, W_b
        self.match = nn.Parameter(torch.empty(width))  # w
        self.own_messages, self.other_messages = (nn.Linear(width, relations * width) for _ in range(2))
        self.cell = ResetFirstGru(2 * relations * width, width)
        linear = self.own_linear, self.other_linear
        for layer in (self.gate, *linear, self.own_messages, self.other_messages):
            nn.init.xavier_normal_(layer.weight)
            nn.init.ones_(layer.bias)
        nn.init.normal_(self.match, std=width**-0.5)

    def aggregate(self, layer: nn.Linear, z: Tensor, adjacency: Tensor) -> Tensor:
        """Return relu(concat_r A_r (z W_r + b_r)), (P, N, d) -> (P, N, R d)."""
        messages = layer(z).unflatten(2, (self.relations, -1)).transpose(1, 2)  # (P, R, N, d)
        return torch.relu((adjacency @ messages).transpose(1, 2).flatten(2))

    def forward(
        self, h: Tensor, t: Tensor, e: Tensor, own: Tensor, other: Tensor, adjacency: Tensor
    ) -> Tensor:
        """Return the new node embeddings, (P, N, d).

        P_n = softmax_own(v_O . tanh(h W_1 + e_n W_2)) e_n;  Q_n the same of t, over the other domain's nodes
        g_n = sigmoid([h; t; e_n] W_c + b_c);  D_nm = w . (e_n * e_m), n of the other domain, m of the own
        z^O_n = (g_n * P_n) W_a + b_a;  z^T_n = ((1 - g_n) * Q_n) W_b + b_b + sum_m D_nm e_m
        e'_n = GRU([relu(concat_r A_r (z^O W_r + b_r)); relu(concat_r A_r (z^T W'_r + b'_r))], e_n)
        h, (P, d), is the state of the last item's domain, t the state that it transfers to the other; e are
        node embeddings, (P, N, d); own and other, (P, N), are the nodes of the last item's and the other
        domain; adjacency, A, is (P, R, N, N).
        """
        d = e.shape[2]
        p = masked_softmax(self.own(h, e), own)[:, :, None] * e
        q = masked_softmax(self.other(t, e), other)[:, :, None] * e
        from_states = F.linear(torch.cat([h, t], 1), self.gate.weight[:, : 2 * d], self.gate.bias)
        g = torch.sigmoid(from_states[:, None] + F.linear(e, self.gate.weight[:, 2 * d :]))
        e_own, e_other = e * own[:, :, None], e * other[:, :, None]
        z_own = self.own_linear(g * p)
        z_other = self.other_linear((1 - g) * q) + (e_other * self.match) @ e_own.transpose(1, 2) @ e_own
        own_messages = self.aggregate(self.own_messages, z_own, adjacency)
        messages = torch.cat([own_messages, self.aggregate(self.other_messages, z_other, adjacency)], dim=2)
        gates = torch.sigmoid(self.cell.gates(torch.cat([messages, e], dim=2)))  # messages: (P, N, 2 R d)
        r, u = gates.chunk(2, dim=2)
        return blend(torch.tanh(self.cell.candidate(torch.cat([messages, r * e], dim=2))), e, u)


class NextItemChoice(NamedTuple):
    """The distribution of the next item of a domain after P histories."""

    state: Tensor
    """(P, 2 d) [h; t], the input of the softmax over all items."""
    copy_logit: Tensor
    """(P,) logit of the probability P_G that the item is copied from the graph."""
    copy_p: Tensor
    """(P, N) probability of each node, if copied; 0 for nodes of the other domain."""


class Decoder(nn.Module):
    """The choice of the next item of one domain."""

    def __init__(self, width: int, domain: Domain) -> None:
        super().__init__()
        self.copy_gate, self.pointer = nn.Linear(3 * width, 1), AdditiveAttention(width)
        self.output = DomainSoftmax(2 * width, domain)
        init_xavier(self.copy_gate)
        init_xavier(self.output)

    def forward(self, h: Tensor, t: Tensor, e: Tensor, node_mask: Tensor) -> NextItemChoice:
        """Return the distribution of the next item.

        P_G = sigmoid(w . [h; t; sum_n e'_n] + b);  g = softmax(v . tanh(h W_h + e'_n W_e)), both over the
        nodes of the domain, `node_mask`, (P, N). h, (P, d), is the domain's state, t the state that the other
        domain transfers, and e, (P, N, d), the nodes e' after the knowledge transfer.
        """
        e = e * node_mask[:, :, None]
        copy_logit = self.copy_gate(torch.cat([h, t, e.sum(1)], dim=1))[:, 0].float()
        copy_p = masked_softmax(self.pointer(h, e).float(), node_mask)
        return NextItemChoice(torch.cat([h, t], dim=1), copy_logit, copy_p)


class Mifn(Model):
    """Two encoders, two behavior transfer units, a knowledge transfer unit, a decoder for each domain."""

    by_domain = ("encoders", "behaviors", "decoders")
    uses_relations = True
    links: Tensor
    single: Tensor

    def __init__(self, item_features: ItemFeatures, config: MifnConfig) -> None:
        super().__init__()
        require_two_domains("MIFN", item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        names = graph_relations(item_features.relations)
        self.notes = (f"knowledge graph: {', '.join(names) or 'none'}",)
        relations = {name: item_features.relations[name] for name in names}
        relations = relations or {"none": torch.zeros(0, 2, dtype=torch.int64)}
        links, single = link_tables(relations, item_features.train_counts, config.links_per_item)
        self.register_buffer("links", links, persistent=False)  # (V, R, K)
        self.register_buffer("single", single, persistent=False)  # (V, R, K) links of one training step
        self.items = nn.Embedding(len(item_features), d)
        self.encoders = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.behaviors = nn.ModuleList(BehaviorTransfer(d) for _ in range(2))
        self.knowledge = KnowledgeTransfer(d, len(relations))
        self.decoders: Any = nn.ModuleList(Decoder(d, domain) for domain in self.domains)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_normal_(self.items.weight)

    def train(self, mode: bool = True) -> Mifn:
        """Set training or evaluation mode; dropout stays on with `dropout_at_evaluation`."""
        super().train(mode)
        self.dropout.train(mode or self.config.dropout_at_evaluation)
        return self

    def encode(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Return state h and transferred state t of each domain at each merged position, (B, T, d) each."""
        sequences, h, t = split_two_domains(batch, self.domains), [], []
        for n in range(2):
            h.append(self.encoders[n](self.dropout(self.items(sequences[n].batch.items))))  # (B, T_d, d)
        for n in range(2):
            t.append(self.behaviors[n](h[n], states_after(h[1 - n], sequences[n].other_counts)))
        return (
            [states_after(x, sequence.counts) for x, sequence in zip(h, sequences, strict=True)],
            [states_after(x, sequence.counts) for x, sequence in zip(t, sequences, strict=True)],
        )

    def links_from(self, nodes: Tensor, target: Tensor | None) -> Tensor:
        """Return the links of nodes, -1 for none, without those that only the step to the target contributes.

        `nodes` is (P, N), first the last item of the history; `target` has the next items, (P,), in training;
        links are (P, N, R, K).
        """
        items = nodes.clamp(min=0)
        links = self.links[items].masked_fill((nodes < 0)[:, :, None, None], -1)
        if target is not None:
            leaks = self.single[items[:, 0]] & (links[:, 0] == target[:, None, None])
            links[:, 0] = links[:, 0].masked_fill(leaks, -1)
        return links

    def graphs(self, batch: Batch, target: Tensor | None = None) -> HistoryGraphs:
        """Build the graphs around histories; see `links_from` for the target.

        Each relation has the links between the nodes, the steps of the history, and a loop at each node.
        """
        items = batch.items.masked_fill(~valid_mask(batch.lengths, batch.items.shape[1]), -1)
        nodes = first_distinct(items.flip(1), self.config.max_nodes)
        for _ in range(self.config.hops):
            neighbors = self.links_from(nodes, target).permute(0, 3, 2, 1).flatten(1)  # (P, K R N)
            nodes = first_distinct(torch.cat([nodes, neighbors], dim=1), self.config.max_nodes)
        links, is_node = self.links_from(nodes, target), nodes >= 0
        is_at_node = ((items[:, :, None] == nodes[:, None]) & is_node[:, None]).float()  # (P, T, N)
        steps = is_at_node[:, :-1].transpose(1, 2) @ is_at_node[:, 1:] > 0  # (P, N, N)
        edges = (steps | torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device))[:, None]
        for link in links.transpose(1, 2).unbind(3):  # (P, R, N)
            edges = edges | (link[..., None] == nodes[:, None, None])
        return HistoryGraphs(nodes, (edges & (is_node[:, None] & is_node[:, :, None])[:, None]).float())

    def choices(
        self, h: list[Tensor], t: list[Tensor], graphs: HistoryGraphs, last_item: Tensor
    ) -> list[NextItemChoice]:
        """Return the distributions of the next item of both domains after histories with a last item, (P,).

        h, (P, d), is the state of each domain, and t the state that it transfers.
        """
        in_second = graphs.nodes >= self.domains[1].start
        node_masks = [(graphs.nodes >= 0) & ~in_second, in_second]  # (P, N) each
        last_in_second = (last_item >= self.domains[1].start)[:, None]
        own, other = (torch.where(last_in_second, node_masks[1 - n], node_masks[n]) for n in range(2))
        h_own, t_own = (torch.where(last_in_second, x[1], x[0]) for x in (h, t))
        e = self.items(graphs.nodes.clamp(min=0))
        e = self.knowledge(h_own, t_own, e, own, other, graphs.adjacency)
        return [self.decoders[n](h[n], t[1 - n], e, node_masks[n]) for n in range(2)]

    def loss(self, batch: Batch) -> Tensor:
        """Return `prefix_loss` of sampled prefixes of each sequence."""
        row, position = sample_prefixes(batch, self.config.num_prefixes)
        weights = None if batch.weights is None else batch.weights[row, position + 1]
        count = total_weight(len(row), weights)  # of all processes
        if len(row) == 0:
            return self.items.weight.sum() * 0
        own = len(row) if weights is None else float(weights.sum())
        return self.prefix_loss(batch, row, position + 1) * (own / count)  # of the mean over this process

    def prefix_loss(self, batch: Batch, row: Tensor, length: Tensor) -> Tensor:
        """Return the mean of -log P(next item) - [next item not in the graph] log(P_S + 1e-4).

        P = P_G g + P_S s, with P_S = 1 - P_G and the softmax s over all items of the domain. Each prefix has
        the number of its sequence and its number of items, (P,) each.
        """
        inputs = Batch(batch.items[:, :-1], (batch.lengths - 1).clamp(min=0))
        target = batch.items[row, length]
        weights = None if batch.weights is None else batch.weights[row, length]
        h, t = ([x[row, length - 1] for x in states] for states in self.encode(inputs))
        graphs = self.graphs(Batch(inputs.items[row, : int(length.max())], length), target)
        choices = self.choices(h, t, graphs, batch.items[row, length - 1])
        is_target, total = graphs.nodes == target[:, None], h[0].new_zeros(())  # (P, N)
        for domain, decoder, choice in zip(self.domains, self.decoders, choices, strict=True):
            is_in_domain = in_domain(target, domain)
            query = decoder.output.query(self.dropout(choice.state[is_in_domain]), target[is_in_domain])
            (log_s,) = target_log_probabilities(*query)
            copy_logit = choice.copy_logit[is_in_domain]
            copy_p = (choice.copy_p * is_target)[is_in_domain].sum(1)
            generated = log_s + F.logsigmoid(-copy_logit)
            copied = F.logsigmoid(copy_logit) + copy_p.clamp(min=EPSILON).log()
            in_graph = is_target[is_in_domain].any(1)
            missed = torch.log(torch.sigmoid(-copy_logit) + 1e-4).masked_fill(in_graph, 0.0)
            log_p = torch.where(in_graph, torch.logaddexp(generated, copied), generated)
            part = None if weights is None else weights[is_in_domain]
            total = total - weighted_sum(log_p + missed, part)
        return total / (len(row) if weights is None else weights.sum().clamp(min=EPSILON))

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return log P of the items, see `Model.scores`."""
        row = torch.arange(batch.items.shape[0], device=batch.items.device)
        position, has_items = (batch.lengths - 1).clamp(min=0), (batch.lengths > 0)[:, None]
        h, t = ([x[row, position] * has_items for x in states] for states in self.encode(batch))
        graphs, part = self.graphs(batch), self.domains[domain]
        choice = self.choices(h, t, graphs, batch.items[row, position])[domain]
        log_s = torch.log_softmax(self.decoders[domain].output(choice.state).float(), dim=1)  # (B, items)
        generated = log_s + F.logsigmoid(-choice.copy_logit)[:, None]
        generated = F.pad(generated, (0, 1))  # a column for nodes of the other domain
        column = (graphs.nodes - part.start).masked_fill(~in_domain(graphs.nodes, part), len(part))  # (B, N)
        copied = F.logsigmoid(choice.copy_logit)[:, None] + choice.copy_p.clamp(min=EPSILON).log()
        log_sum = torch.logaddexp(generated.gather(1, column), copied)
        log_p = generated.scatter(1, column, log_sum)[:, :-1]
        return log_p if candidates is None else log_p.gather(1, candidates - part.start)
