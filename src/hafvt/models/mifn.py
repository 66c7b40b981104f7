"""MIFN: a mixed information flow network of two domains, behavior and knowledge.

Ma and others, Mixed Information Flow Network for Cross-domain Sequential Recommendations, ACM TKDD 2022
(arXiv 2012.00485). A behavior transfer unit carries a history to the other domain, as in pi-Net without
roles; a knowledge transfer unit lets the items around the history in a graph pass messages; the next item is
generated from all items of a domain or copied from the graph, as a gate says. Departures from their code:

* it cannot run, as it reshapes the 2 * 5 messages of 5 relations to 12: here there are two for each relation
  there is. Its dropout stays on at evaluation (`code_dropout` does so, too, so that scores change from call
  to call), and edges are lost after the first one that leaves the graph, which is not repeated. No random
  nodes fill a graph up;
* the relations are those of the items' table (also_bought, ...), else the training's own "transition";
  without any, a graph is the history's items alone. Each item keeps its `links` most frequent successors in a
  relation; nodes are the history's items, newest first, then those within `hops` steps, strongest links
  first, up to `nodes`: no learned choice among them;
* the target is never put into a graph. More than that: in training, the relation "transition", made of the
  training sequences themselves, lacks the link that this very step made and no other. With it, nearly every
  training target would be a neighbor of the last item, and the model would learn to copy only;
* there every sequence has one target in each domain. Here every item is the target of those before it, in
  its own domain; the units that read histories are causal and do all prefixes at once; a step takes the
  graphs of `prefixes` prefixes of each history, drawn anew each time;
* dropout on items, and before the softmax, not on the states that a cell carries on; no clipping.

It is defined for two domains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.features.relations import graph_relations, link_tables
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout, ResetFirstGru, blend, drawn_prefixes, known, slots
from hafvt.models.configs import MifnConfig
from hafvt.models.pinet import only_two, two_sides
from hafvt.ops.catalog_softmax import SoftmaxQuery, target_log_probabilities

TINY = 1e-30


class HistoryGraph(NamedTuple):
    """The graph of each history.

    Attributes:
        nodes: (P, N) distinct items, -1 in slots that are not used.
        adjacency: (P, R, N, N) 1 where a relation links the node of the row to that of the column, else 0.
    """

    nodes: Tensor
    adjacency: Tensor


def first_distinct(candidates: Tensor, count: int) -> Tensor:
    """Returns the first `count` distinct entries >= 0 of each row, then -1, (P, C) -> (P, N)."""
    values, order = candidates.sort(dim=1, stable=True)
    new = F.pad(values[:, 1:] != values[:, :-1], (1, 0), value=True) & (values >= 0)
    fresh = torch.zeros_like(new).scatter(1, order, new)  # (P, C) the first slot of each entry
    place = fresh.cumsum(1) - 1
    fresh = fresh & (place < count)
    width = max(int(fresh.sum(1).max()), 1)
    found = candidates.new_full((len(candidates), width + 1), -1)
    return found.scatter(1, place.masked_fill(~fresh, width), candidates)[:, :width]


def softmax_over(scores: Tensor, mask: Tensor) -> Tensor:
    """Returns the softmax over the masked entries of each row; zeros elsewhere, and where there are none."""
    return torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1) * mask


class Behavior(nn.Module):
    """The behavior transfer unit: what a history tells of the other domain, item by item."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.filter, self.candidate = nn.Linear(3 * width, width), nn.Linear(2 * width, width)
        self.transfer = ResetFirstGru(width, width)
        for unit in (self.filter, self.candidate):
            nn.init.xavier_normal_(unit.weight)
            nn.init.ones_(unit.bias)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Returns the transferred state after each item, (B, T, d) twice -> (B, T, d).

        f = sigmoid([own; other; s] W_f + b_f);  c = tanh([own; s] W_s + b_s);  s' = f * c + (1 - f) * s
        """
        d = own.shape[2]
        f_of_items = F.linear(torch.cat([own, other], 2), self.filter.weight[:, : 2 * d], self.filter.bias)
        c_of_items = F.linear(own, self.candidate.weight[:, :d], self.candidate.bias)
        w_f, w_c = self.filter.weight[:, 2 * d :].T, self.candidate.weight[:, d:].T
        s, states = own.new_zeros(len(own), d), []
        for f_item, c_item in zip(f_of_items.unbind(1), c_of_items.unbind(1), strict=True):
            f = torch.sigmoid(torch.addmm(f_item, s, w_f))
            s = blend(s, torch.tanh(torch.addmm(c_item, s, w_c)), f)
            states.append(s)
        transferred: Tensor = self.transfer(torch.stack(states, dim=1))
        return transferred


class Pointer(nn.Module):
    """Scores nodes for a state: v . tanh(h W_h + e W_e)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ask, self.answer = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.weigh = nn.Linear(width, 1, bias=False)

    def forward(self, h: Tensor, e: Tensor) -> Tensor:
        """Returns a score for each node, (P, d) and (P, N, d) -> (P, N)."""
        scores: Tensor = self.weigh(torch.tanh(self.ask(h)[:, None] + self.answer(e)))[:, :, 0]
        return scores


class Knowledge(nn.Module):
    """The knowledge transfer unit: one round of messages along a graph, in and between the domains."""

    def __init__(self, width: int, relations: int) -> None:
        super().__init__()
        self.relations = relations
        self.own, self.other = Pointer(width), Pointer(width)
        self.gate = nn.Linear(3 * width, width)  # W_c, b_c
        self.keep, self.give = nn.Linear(width, width), nn.Linear(width, width)  # W_a, b_a; W_b, b_b
        self.match = nn.Parameter(torch.empty(width))  # w
        self.spread_own, self.spread_other = (nn.Linear(width, relations * width) for _ in range(2))
        self.cell = ResetFirstGru(2 * relations * width, width)
        for unit in (self.gate, self.keep, self.give, self.spread_own, self.spread_other):
            nn.init.xavier_normal_(unit.weight)
            nn.init.ones_(unit.bias)
        nn.init.normal_(self.match, std=width**-0.5)

    def spread(self, unit: nn.Module, z: Tensor, adjacency: Tensor) -> Tensor:
        """Returns relu(concat_r A_r (z W_r + b_r)), (P, N, d) -> (P, N, R d)."""
        sent = unit(z).unflatten(2, (self.relations, -1)).transpose(1, 2)  # (P, R, N, d)
        return torch.relu((adjacency @ sent).transpose(1, 2).flatten(2))

    def forward(
        self, h_own: Tensor, h_other: Tensor, e: Tensor, own: Tensor, other: Tensor, adjacency: Tensor
    ) -> Tensor:
        """Returns the nodes' new vectors, (P, N, d).

        P_n = softmax_own(v_O . tanh(h_O W_1 + e_n W_2)) e_n;  Q_n likewise of h_T, over the other's nodes
        g_n = sigmoid([h_O; h_T; e_n] W_c + b_c);  D_nm = w . (e_n * e_m), n of the other domain, m of the own
        z^O_n = (g_n * P_n) W_a + b_a;  z^T_n = ((1 - g_n) * Q_n) W_b + b_b + sum_m D_nm e_m
        e'_n = GRU([relu(concat_r A_r (z^O W_r + b_r)); relu(concat_r A_r (z^T W'_r + b'_r))], e_n)

        Args:
            h_own: (P, d) the encoder's state h_O after the last item.
            h_other: (P, d) what its domain transfers to the other, h_T, after that item.
            e: (P, N, d) the nodes' vectors.
            own: (P, N) which nodes are of the last item's domain.
            other: (P, N) which are of the other.
            adjacency: (P, R, N, N).
        """
        d = e.shape[2]
        p = softmax_over(self.own(h_own, e), own)[:, :, None] * e
        q = softmax_over(self.other(h_other, e), other)[:, :, None] * e
        of_states = F.linear(torch.cat([h_own, h_other], 1), self.gate.weight[:, : 2 * d], self.gate.bias)
        g = torch.sigmoid(of_states[:, None] + F.linear(e, self.gate.weight[:, 2 * d :]))
        e_own, e_other = e * own[:, :, None], e * other[:, :, None]
        z_own = self.keep(g * p)
        z_other = self.give((1 - g) * q) + (e_other * self.match) @ e_own.transpose(1, 2) @ e_own
        n = torch.cat(
            [
                self.spread(self.spread_own, z_own, adjacency),
                self.spread(self.spread_other, z_other, adjacency),
            ],
            dim=2,
        )  # (P, N, 2 R d)
        r, u = torch.sigmoid(self.cell.gates(torch.cat([n, e], dim=2))).chunk(2, dim=2)
        return blend(torch.tanh(self.cell.candidate(torch.cat([n, r * e], dim=2))), e, u)


class Choice(NamedTuple):
    """How a decoder chooses the next item.

    Attributes:
        state: (P, 2 d) [h; t], of which the softmax over all items is made.
        copy: (P,) logit of the probability P_G that the item is copied from the graph.
        nodes: (P, N) the probability of each node, if copied; 0 if of another domain.
    """

    state: Tensor
    copy: Tensor
    nodes: Tensor


class Decoder(nn.Module):
    """The choice of the next item of a domain."""

    def __init__(self, width: int, items: int) -> None:
        super().__init__()
        self.mode, self.pointer = nn.Linear(3 * width, 1), Pointer(width)
        self.output = nn.Linear(2 * width, items)
        for unit in (self.mode, self.output):
            nn.init.xavier_normal_(unit.weight)
            nn.init.zeros_(unit.bias)

    def table(self) -> Tensor:
        """Returns weights and biases of all items as vectors to be met by a state and a 1, (V, 2 d + 1)."""
        return torch.cat([self.output.weight, self.output.bias[:, None]], dim=1)

    def plain(self, state: Tensor) -> Tensor:
        """Returns log P_S of all items, (B, 2 d) -> (B, V)."""
        return torch.log_softmax(self.output(state).float(), dim=1)

    def forward(self, h: Tensor, t: Tensor, e: Tensor, mine: Tensor) -> Choice:
        """Returns the choice after histories.

        P_G = sigmoid(w . [h; t; sum_n e'_n] + b);  g = softmax(v . tanh(h W_h + e'_n W_e)), own nodes

        Args:
            h: (P, d) the domain's own state.
            t: (P, d) what the other domain transfers to it.
            e: (P, N, d) the nodes after the knowledge transfer.
            mine: (P, N) which of them are of the domain.
        """
        e = e * mine[:, :, None]
        copy = self.mode(torch.cat([h, t, e.sum(1)], dim=1))[:, 0]
        return Choice(torch.cat([h, t], dim=1), copy.float(), softmax_over(self.pointer(h, e).float(), mine))


class Mifn(Model):
    """Two encoders, two behavior transfer units, a knowledge transfer unit, a decoder for each domain."""

    uses_relations = True
    links: Tensor
    single: Tensor

    def __init__(self, item_features: ItemFeatures, config: MifnConfig) -> None:
        super().__init__()
        only_two("MIFN", item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        known_links = {
            name: item_features.relations[name] for name in graph_relations(item_features.relations)
        }
        self.notes = (f"knowledge graph: {', '.join(known_links) or 'none'}",)
        relations = known_links or {"none": torch.zeros(0, 2, dtype=torch.int64)}
        links, single = link_tables(relations, item_features.train_counts, config.links_per_item)
        self.register_buffer("links", links, persistent=False)  # (V, R, K)
        self.register_buffer("single", single, persistent=False)
        self.items = nn.Embedding(len(item_features), d)
        self.encoders = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.behaviors = nn.ModuleList(Behavior(d) for _ in range(2))
        self.knowledge = Knowledge(d, len(relations))
        self.decoders = nn.ModuleList(Decoder(d, len(domain)) for domain in item_features.domains)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_normal_(self.items.weight)

    def train(self, mode: bool = True) -> Mifn:
        """Sets training or evaluation mode; dropout stays on where the configuration says so."""
        super().train(mode)
        self.dropout.train(mode or self.config.dropout_at_evaluation)
        return self

    def read(self, batch: Batch) -> tuple[list[Tensor], list[Tensor]]:
        """Returns each domain's state and what it transfers after each merged slot, (B, T, d) each."""
        sides = two_sides(batch, self.domains)
        h = [
            encoder(self.dropout(self.items(side.batch.items)))
            for encoder, side in zip(self.encoders, sides, strict=True)
        ]  # (B, T_own, d)
        t = [self.behaviors[n](h[n], known(h[1 - n], sides[n].others)) for n in range(2)]
        h = [known(states, side.counts) for states, side in zip(h, sides, strict=True)]
        return h, [known(states, side.counts) for states, side in zip(t, sides, strict=True)]

    def linked(self, nodes: Tensor, target: Tensor | None) -> Tensor:
        """Returns the links of nodes, (P, N) -> (P, N, R, K), save one that only the step to target made."""
        at = nodes.clamp(min=0)
        links = self.links[at].masked_fill((nodes < 0)[:, :, None, None], -1)
        if target is not None:
            made = self.single[at[:, 0]] & (links[:, 0] == target[:, None, None])  # node 0 is the last item
            links[:, 0] = links[:, 0].masked_fill(made, -1)
        return links

    def graphs(self, batch: Batch, target: Tensor | None = None) -> HistoryGraph:
        """Draws the graphs around histories.

        Every relation holds the links among the nodes, the history's steps, and a loop at each node.

        Args:
            batch: histories.
            target: (P,) in training the next items, whose own steps are taken out of "transition".
        """
        items = batch.items.masked_fill(~slots(batch.lengths, batch.items.shape[1]), -1)
        nodes = first_distinct(items.flip(1), self.config.max_nodes)
        for _ in range(self.config.hops):
            around = self.linked(nodes, target).permute(0, 3, 2, 1).flatten(1)  # (P, K R N)
            nodes = first_distinct(torch.cat([nodes, around], dim=1), self.config.max_nodes)
        links, real = self.linked(nodes, target), nodes >= 0
        slot = ((items[:, :, None] == nodes[:, None]) & real[:, None]).float()  # (P, T, N)
        steps = slot[:, :-1].transpose(1, 2) @ slot[:, 1:] > 0  # (P, N, N)
        edges = (steps | torch.eye(nodes.shape[1], dtype=torch.bool, device=nodes.device))[:, None]
        for link in links.transpose(1, 2).unbind(3):  # (P, R, N)
            edges = edges | (link[..., None] == nodes[:, None, None])
        return HistoryGraph(nodes, (edges & (real[:, None] & real[:, :, None])[:, None]).float())

    def choices(
        self, states: tuple[list[Tensor], list[Tensor]], graph: HistoryGraph, last: Tensor
    ) -> list[Choice]:
        """Returns the choices of both domains after histories.

        Args:
            states: of each domain, its own and what it transfers, after the last item, (P, d) each.
            graph: around the histories.
            last: (P,) the last items.
        """
        h, t = states
        in_second = graph.nodes >= self.domains[1].start
        inside = [(graph.nodes >= 0) & ~in_second, in_second]  # (P, N) each
        late = (last >= self.domains[1].start)[:, None]
        own, other = torch.where(late, inside[1], inside[0]), torch.where(late, inside[0], inside[1])
        e = self.items(graph.nodes.clamp(min=0))
        h_own, h_other = torch.where(late, h[1], h[0]), torch.where(late, t[1], t[0])
        e = self.knowledge(h_own, h_other, e, own, other, graph.adjacency)
        return [self.decoders[n](h[n], t[1 - n], e, inside[n]) for n in range(2)]

    def loss(self, batch: Batch) -> Tensor:
        """See `prefix_loss`, over drawn prefixes of each sequence."""
        row, slot = drawn_prefixes(batch, self.config.num_prefixes)
        return self.prefix_loss(batch, row, slot + 1) if len(row) else self.items.weight.sum() * 0

    def prefix_loss(self, batch: Batch, row: Tensor, length: Tensor) -> Tensor:
        """Mean of -log P(next item) - [next item not in the graph] log(P_S + 1e-4); P = P_G g + P_S s.

        Args:
            batch: whole sequences.
            row: (P,) the sequence of each prefix.
            length: (P,) its number of items.
        """
        inputs, target = (
            Batch(batch.items[:, :-1], (batch.lengths - 1).clamp(min=0)),
            batch.items[row, length],
        )
        h, t = ([x[row, length - 1] for x in states] for states in self.read(inputs))
        prefix = Batch(inputs.items[row, : int(length.max())], length)
        graph = self.graphs(prefix, target)
        choices = self.choices((h, t), graph, batch.items[row, length - 1])
        hit, total = graph.nodes == target[:, None], h[0].new_zeros(())  # (P, N)
        for domain, decoder, (state, copy, g) in zip(self.domains, self.decoders, choices, strict=True):
            mine = (target >= domain.start) & (target < domain.stop)
            if not mine.any():
                continue
            table = decoder.table()  # type: ignore[operator]
            queries = F.pad(self.dropout(state[mine]).float(), (0, 1), value=1.0)
            ask = SoftmaxQuery(queries, target[mine] - domain.start, slice(0, len(table)))
            (plain,) = target_log_probabilities([ask], table)
            plain, found = plain + F.logsigmoid(-copy[mine]), (g * hit)[mine].sum(1)
            copied = F.logsigmoid(copy[mine]) + found.clamp(min=TINY).log()
            inside = hit[mine].any(1)
            missed = torch.log(torch.sigmoid(-copy[mine]) + 1e-4).masked_fill(inside, 0.0)
            total = total - (torch.where(inside, torch.logaddexp(plain, copied), plain) + missed).sum()
        return total / len(row)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: log P, of all items of a domain."""
        row, some = torch.arange(batch.items.shape[0], device=batch.items.device), batch.lengths > 0
        slot, chosen = (batch.lengths - 1).clamp(min=0), self.domains[domain]
        decoder: Decoder = self.decoders[domain]  # type: ignore[assignment]
        h, t = ([x[row, slot] * some[:, None] for x in states] for states in self.read(batch))
        graph = self.graphs(batch)
        state, copy, g = self.choices((h, t), graph, batch.items[row, slot])[domain]
        plain = decoder.plain(state)
        plain = F.pad(plain + F.logsigmoid(-copy)[:, None], (0, 1))  # a column for nodes of the other domain
        inside = (graph.nodes >= chosen.start) & (graph.nodes < chosen.stop)
        at = (graph.nodes - chosen.start).masked_fill(~inside, len(chosen))  # (B, N)
        copied = F.logsigmoid(copy)[:, None] + g.clamp(min=TINY).log()
        both = plain.scatter(1, at, torch.logaddexp(plain.gather(1, at), copied))[:, :-1]
        return both if candidates is None else both.gather(1, candidates - chosen.start)
