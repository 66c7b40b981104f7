"""Tri-CDR: triple sequence learning for cross-domain recommendation.

Ma and others, Triple Sequence Learning for Cross-domain Recommendation, ACM TOIS 2024 (arXiv 2304.05027).
Three encoders read a user's items of the source domain, of the target domain, and of both as one mixed
sequence; S, G, M are their states. A triple cross-domain attention (TCA) lets the latest target state weigh
the states of each; what it finds is fused to the user's vector, which meets an item's in a cosine. A triple
contrastive learning (TCL) draws the three summaries together, the source nearer to the mixed one than to the
target's. `Attention` and `Direction` state the equations. Departures from the authors' code:

* it loads encoders trained elsewhere. Here one run does it all: the first `pretrain_steps` training steps
  take the sum of the encoders' own next-item losses, all later ones the full objective. A buffer, `steps`,
  counts them, so that a resumed run goes on exactly. Until then scores mean little: let patience outlast it;
* there each direction is a run of its own. Here each domain is the target of one and the source of the other,
  at once: they share the encoders, while attention, fusion and heads are each direction's own;
* the encoders are the SASRec of sasrec.py, so that a comparison with it shows what the triple adds;
* each item is the target of all items before it, source items right before it included; a step takes
  `prefixes` prefixes of each history, drawn anew each time. An unknown target state is zero, and so is the
  summary of a sequence without items. TCL takes the latest drawn prefix of each history and direction, if
  both domains are in it (theirs: the whole sequence);
* cross-entropy over all items of the target domain instead of binary cross-entropy against one drawn;
* two slips are not repeated: its prediction normalizes each dimension of the items' vectors over the
  candidates, so that an item's score depends on the others (`code_normalize` does so, too); its training
  stops where the test result is best.

It is defined for two domains.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import drawn_prefixes, known, next_items
from hafvt.models.configs import SasRecConfig, TriCdrConfig
from hafvt.models.pinet import Side, only_two, two_sides
from hafvt.models.psjnet import softmax_of_first
from hafvt.models.sasrec import SasRec
from hafvt.ops.catalog_softmax import SoftmaxQuery, catalog_nll
from hafvt.ops.embedding import embedding_lookup


class TripleAttention(nn.Module):
    """TCA: how much each state of a sequence matters to a target state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5 * width, 80), nn.Linear(80, 40), nn.Linear(40, 1)
        self.bend1, self.bend2 = nn.PReLU(), nn.PReLU()

    def forward(self, f: Tensor, counts: Tensor, q: Tensor, mean: Tensor) -> Tensor:
        """Returns sum_j softmax_j(MLP([f_j; q; f_j * q; q - f_j; mean])) f_j, zeros for an empty sequence.

        Args:
            f: (N, J, d) the sequence's states.
            counts: (N,) how many of them are known.
            q: (N, d) the latest state of the target domain.
            mean: (N, d) mean of the known mixed states.

        Returns:
            (N, d)
        """
        of_f, of_q, of_both, of_difference, of_mean = self.first.weight.chunk(5, dim=1)  # (80, d) each
        alone = F.linear(q, of_q + of_difference, self.first.bias) + F.linear(mean, of_mean)  # (N, 80)
        x = F.linear(f, of_f - of_difference) + F.linear(f * q[:, None], of_both) + alone[:, None]
        scores = self.third(self.bend2(self.second(self.bend1(x))))[:, :, 0]  # (N, J)
        return torch.einsum("nj,njd->nd", softmax_of_first(scores, counts[:, None]), f)


class Direction(nn.Module):
    """What each target domain has to itself: attention, fusion, and the heads of the contrast."""

    def __init__(self, config: TriCdrConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.attention = TripleAttention(d)
        self.fuse = nn.Sequential(nn.Linear(3 * d, d), nn.LeakyReLU(), nn.Linear(d, d))
        heads = (nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(3))
        self.heads = nn.ModuleList(heads)

    def user(self, triple: list[Tensor]) -> Tensor:
        """Returns u = W_2 leaky_relu(W_1 [M~; S~; G~] + b_1) + b_2, unit length, three (N, d) -> (N, d)."""
        return F.normalize(self.fuse(torch.cat(triple, dim=1)).float(), dim=1)

    def contrast(self, triple: list[Tensor]) -> Tensor:
        """TCL of the summaries M~, S~, G~ of N users, (N, d) each; 0 for no user.

        m, s, g = W_2 relu(W_1 x + b_1) + b_2 of M~, S~, G~, weights of their own
        contrast_weight * (r_ms nt_xent(m, s) + r_mg nt_xent(m, g) + r_sg nt_xent(s, g)), the rates over their
        sum, + triplet_weight * mean max(0, |s - m| - |s - g| + margin)
        """
        m, s, g = (head(x).float() for head, x in zip(self.heads, triple, strict=True))
        nothing: Tensor = m.sum()
        if len(m) == 0:
            return nothing
        rates, t = self.config.contrast_rates, self.config.contrast_temperature
        pairs = zip(rates, ((m, s), (m, g), (s, g)), strict=True)
        similar_items = torch.stack([rate / sum(rates) * nt_xent(a, b, t) for rate, (a, b) in pairs]).sum()
        apart = F.triplet_margin_loss(s, m, g, margin=self.config.triplet_margin)
        total: Tensor = self.config.contrast_weight * similar_items + self.config.triplet_weight * apart
        return total


class States(NamedTuple):
    """What the encoders say of a batch.

    Attributes:
        sides: the two domains' parts of the histories.
        mixed: (B, T, d) states of the mixed sequence.
        own: (B, T_own, d) states of each domain's sequence.
        tables: (items of the domain, d) the item vectors of each domain's encoder.
    """

    sides: tuple[Side, Side]
    mixed: Tensor
    own: list[Tensor]
    tables: list[Tensor]


class TriCdr(Model):
    """Three SASRecs, an attention over all three for each target domain, a cosine with the target's items."""

    own: Any  # a SasRec for each domain
    directions: Any  # a Direction for each target
    steps: Tensor

    def __init__(self, item_features: ItemFeatures, config: TriCdrConfig) -> None:
        super().__init__()
        only_two("Tri-CDR", item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length = config.max_length
        encoder = SasRecConfig(
            max_length=config.max_length,
            width=config.width,
            blocks=config.blocks,
            heads=config.heads,
            dropout=config.dropout,
        )
        self.mixed = SasRec(item_features, encoder)
        alone = [replace(domain, start=0, stop=len(domain)) for domain in item_features.domains]
        self.own = nn.ModuleList(SasRec(replace(item_features, domains=(d,)), encoder) for d in alone)
        self.directions = nn.ModuleList(Direction(config) for _ in item_features.domains)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def read(self, batch: Batch) -> States:
        """Runs the encoders."""
        sides, own, tables = two_sides(batch, self.domains), [], []
        for encoder, side, domain in zip(self.own, sides, self.domains, strict=True):
            table, (items,) = embedding_lookup(encoder.items.weight, numbered(side.batch, domain).items)
            own.append(encoder.states(items, side.batch.lengths))
            tables.append(table)
        mixed = self.mixed.states(self.mixed.items(batch.items), batch.lengths)
        return States(sides, mixed, own, tables)

    def triple(self, states: States, domain: int, row: Tensor, slot: Tensor) -> tuple[list[Tensor], Tensor]:
        """Returns what the attention finds in each sequence up to chosen merged slots.

        Args:
            states: of the merged histories.
            domain: the target.
            row: (N,) the history of each prefix.
            slot: (N,) its last merged slot.

        Returns:
            M~, S~, G~, (N, d) each; (N,) bool, whether both domains are known by then.
        """
        of_target, of_source = (states.sides[n].counts for n in (domain, 1 - domain))  # (B, T)
        of_both = of_target + of_source
        q = known(states.own[domain], of_target)[row, slot]  # (N, d)
        mean = known(states.mixed.cumsum(1), of_both)[row, slot] / of_both[row, slot, None].clamp(min=1)
        facts = (states.mixed, of_both), (states.own[1 - domain], of_source), (states.own[domain], of_target)
        attention = self.directions[domain].attention
        found = [attention(f[row], counts[row, slot], q, mean) for f, counts in facts]
        return found, (of_target * of_source)[row, slot] > 0

    def loss(self, batch: Batch) -> Tensor:
        """`encoder_loss` for `pretrain_steps` training steps, then `prefix_loss` of drawn prefixes."""
        pretraining = int(self.steps) < self.config.pretrain_steps
        if self.training:
            self.steps += 1
        if pretraining:
            return self.encoder_loss(batch)
        row, slot = drawn_prefixes(batch, self.config.num_prefixes)
        return self.prefix_loss(batch, row, slot)

    def encoder_loss(self, batch: Batch) -> Tensor:
        """The sum of the next-item losses of the mixed and of each domain's sequence."""
        total, parts = self.mixed.items.weight.sum() * 0, [(self.mixed, batch)]
        for encoder, side, domain in zip(self.own, two_sides(batch, self.domains), self.domains, strict=True):
            parts.append((encoder, numbered(side.batch, domain)))
        for encoder, part in parts:
            if (part.lengths > 1).any():
                total = total + encoder.loss(part)
        return total

    def prefix_loss(self, batch: Batch, row: Tensor, slot: Tensor) -> Tensor:
        """Mean of -log softmax(cos(u, E) / temperature) at the next item, plus both directions' mean TCL.

        Args:
            batch: whole sequences.
            row: (N,) the sequence of each prefix, ascending.
            slot: (N,) its last merged slot, ascending within a sequence.
        """
        total = self.mixed.items.weight.sum() * 0
        if len(row) == 0:
            return total
        states, targets = self.read(next_items(batch)[0]), batch.items[row, slot + 1]
        for n, (domain, table) in enumerate(zip(self.domains, states.tables, strict=True)):
            mine = (targets >= domain.start) & (targets < domain.stop)
            if not mine.any():
                continue
            triple, both = self.triple(states, n, row[mine], slot[mine])
            u = self.directions[n].user(triple)
            ask = SoftmaxQuery(u, targets[mine] - domain.start, slice(0, len(table)), weight=1 / len(targets))
            nll = catalog_nll([ask], table, 1 / self.config.temperature, normalize_rows=True)
            latest = F.pad(row[mine][1:] != row[mine][:-1], (0, 1), value=True)  # of each sequence
            tcl = self.directions[n].contrast([x[latest & both] for x in triple])
            total = total + nll + tcl / len(self.domains)
        return total

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: cos(u, E_target[item]) / temperature."""
        row = torch.arange(batch.items.shape[0], device=batch.items.device)
        states = self.read(batch)
        triple, _ = self.triple(states, domain, row, (batch.lengths - 1).clamp(min=0))
        u: Tensor = self.directions[domain].user(triple) / self.config.temperature  # (B, d)
        dim = -2 if self.config.normalize_over_candidates else -1
        if candidates is None:
            return u @ F.normalize(states.tables[domain], dim=dim).T
        found = F.normalize(states.tables[domain][candidates - self.domains[domain].start], dim=dim)
        return torch.einsum("bd,bcd->bc", u, found)  # (B, C)


def numbered(batch: Batch, domain: Domain) -> Batch:
    """Returns a domain's items numbered from 0 within it; padding stays 0."""
    return Batch((batch.items - domain.start).clamp(min=0), batch.lengths)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Mean of -log softmax over all other views of cos / temperature at the same user's, (N, d) twice."""
    views = F.normalize(torch.cat([a, b]), dim=1)  # (2 N, d)
    similar_items = views @ views.T / temperature
    similar_items = similar_items.masked_fill(
        torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf
    )
    return F.cross_entropy(similar_items, torch.arange(len(views), device=views.device).roll(len(a)))
