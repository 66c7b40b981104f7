"""Tri-CDR: triple sequence learning for cross-domain recommendation.

Ma and others, Triple Sequence Learning for Cross-domain Recommendation, ACM TOIS 2024 (arXiv 2304.05027).
Three encoders read a user's items of the source domain, of the target domain, and of both as one mixed
sequence, with states S, G and M. A triple cross-domain attention (TCA) weights the states of each sequence by
the latest target state. The three results are fused to a user embedding, whose cosine with an item embedding
is the score. A triple contrastive learning (TCL) pulls the three results together, the source closer to the
mixed one than to the target. Departures from the authors' code:

* it loads encoders trained elsewhere. Here one run trains all: the first `pretrain_steps` training steps use
  the sum of the encoders' own next-item losses, all later ones the full objective. The buffer `steps` counts
  them, so that a resumed run continues exactly. Scores mean little before: choose a patience that is longer;
* there each direction is a run of its own. Here each domain is the target of one direction and the source of
  the other: both share the encoders, while attention, fusion and heads belong to one direction;
* the encoders are those of sasrec.py, so that a comparison with SASRec shows the worth of the triple;
* each item is the target of all items before it, also right after a source item; a step samples
  `num_prefixes` prefixes of each history. A target state before the first target item is zero, and so is the
  result of an empty sequence. TCL uses the latest sampled prefix of each history and direction that contains
  both domains, instead of the whole sequence;
* cross-entropy over all items of the target domain instead of binary cross-entropy against one drawn item;
* two errors are not repeated. Their prediction normalizes each dimension of the item embeddings over the
  candidates, so that the score of an item depends on the others (`normalize_over_candidates` does so, too).
  Their training selects the epoch with the best test result.

The model is defined for two domains.
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
from hafvt.models.configs import AttentionConfig, SasRecConfig, TriCdrConfig
from hafvt.models.sasrec import SasRec
from hafvt.models.sequences import (
    DomainSequence,
    in_domain,
    masked_softmax,
    next_items,
    require_two_domains,
    sample_prefixes,
    split_two_domains,
    states_after,
    valid_mask,
)
from hafvt.ops.catalog_softmax import SoftmaxQuery, catalog_nll
from hafvt.ops.collectives import global_count
from hafvt.ops.embedding import embedding_lookup
from hafvt.ops.weights import mean_factor


class TripleAttention(nn.Module):
    """TCA: attention over the states of a sequence, given the latest target state."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second, self.third = nn.Linear(5 * width, 80), nn.Linear(80, 40), nn.Linear(40, 1)
        self.prelu1, self.prelu2 = nn.PReLU(), nn.PReLU()

    def forward(self, f: Tensor, counts: Tensor, q: Tensor, mean: Tensor) -> Tensor:
        """Return sum_j softmax_j(MLP([f_j; q; f_j * q; q - f_j; mean])) f_j, zeros without states, (N, d).

        f, (N, J, d), are the states of the sequence, `counts` of which precede the target; q is the latest
        state of the target domain, and `mean` the mean of the mixed states so far, (N, d).
        """
        w_f, w_q, w_product, w_difference, w_mean = self.first.weight.chunk(5, dim=1)  # (80, d) each
        shared = F.linear(q, w_q + w_difference, self.first.bias) + F.linear(mean, w_mean)  # (N, 80)
        x = F.linear(f, w_f - w_difference) + F.linear(f * q[:, None], w_product) + shared[:, None]
        scores = self.third(self.prelu2(self.second(self.prelu1(x))))[:, :, 0]  # (N, J)
        weights = masked_softmax(scores, valid_mask(counts, f.shape[1]))
        return torch.einsum("nj,njd->nd", weights, f)


class Direction(nn.Module):
    """The layers of one target domain: attention, fusion, and the heads of the contrastive learning."""

    def __init__(self, config: TriCdrConfig) -> None:
        super().__init__()
        self.config, d = config, config.width
        self.attention = TripleAttention(d)
        self.fuse = nn.Sequential(nn.Linear(3 * d, d), nn.LeakyReLU(), nn.Linear(d, d))
        heads = (nn.Sequential(nn.Linear(d, d), nn.ReLU(), nn.Linear(d, d)) for _ in range(3))
        self.heads = nn.ModuleList(heads)

    def user(self, triple: list[Tensor]) -> Tensor:
        """Return u = W_2 leaky_relu(W_1 [M~; S~; G~] + b_1) + b_2 at unit length, three (N, d) -> (N, d)."""
        return F.normalize(self.fuse(torch.cat(triple, dim=1)).float(), dim=1)

    def contrast(self, triple: list[Tensor]) -> Tensor:
        """Return the TCL loss of M~, S~, G~ of N users, (N, d) each; 0 for no user.

        m, s, g = W_2 relu(W_1 x + b_1) + b_2 of x = M~, S~, G~, with separate weights
        contrast_weight * (r_ms nt_xent(m, s) + r_mg nt_xent(m, g) + r_sg nt_xent(s, g)), the rates divided by
        their sum, + triplet_weight * mean max(0, |s - m| - |s - g| + margin)
        """
        m, s, g = (head(x).float() for head, x in zip(self.heads, triple, strict=True))
        if len(m) == 0:
            return m.sum()  # type: ignore[no-any-return]
        rates, t = self.config.contrast_rates, self.config.contrast_temperature
        pairs = zip(rates, ((m, s), (m, g), (s, g)), strict=True)
        similarity = torch.stack([rate / sum(rates) * nt_xent(a, b, t) for rate, (a, b) in pairs]).sum()
        order = F.triplet_margin_loss(s, m, g, margin=self.config.triplet_margin)
        loss: Tensor = self.config.contrast_weight * similarity + self.config.triplet_weight * order
        return loss


class TriCdrStates(NamedTuple):
    """The states of a batch in the three encoders."""

    sequences: list[DomainSequence]
    mixed: Tensor
    """(B, T, d) states of the mixed sequence."""
    own: list[Tensor]
    """(B, T_d, d) states of each domain's sequence."""
    tables: list[Tensor]
    """(items of the domain, d) item embeddings of each domain's encoder."""


class TriCdr(Model):
    """Three SASRec encoders, attention over all three for each target domain, a cosine with its items."""

    by_domain = ("own", "directions")
    own: Any  # a SasRec for each domain
    directions: Any  # a Direction for each target domain
    steps: Tensor

    def __init__(self, item_features: ItemFeatures, config: TriCdrConfig) -> None:
        super().__init__()
        require_two_domains("Tri-CDR", item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length = config.max_length
        shared = config.model_dump(include={*AttentionConfig.model_fields, "dropout"})
        encoder = SasRecConfig(**shared)
        self.mixed = SasRec(item_features, encoder)
        from_zero = [replace(domain, start=0, stop=len(domain)) for domain in self.domains]
        self.own = nn.ModuleList(SasRec(replace(item_features, domains=(d,)), encoder) for d in from_zero)
        self.directions = nn.ModuleList(Direction(config) for _ in self.domains)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def encode(self, batch: Batch) -> TriCdrStates:
        """Run the three encoders on merged histories."""
        sequences, own, tables = split_two_domains(batch, self.domains), [], []
        for encoder, sequence, domain in zip(self.own, sequences, self.domains, strict=True):
            items = relative_to_domain(sequence.batch, domain).items
            table, (embeddings,) = embedding_lookup(encoder.items.weight, items)
            own.append(encoder.states(embeddings, sequence.batch.lengths))
            tables.append(table)
        mixed = self.mixed.states(self.mixed.items(batch.items), batch.lengths)
        return TriCdrStates(sequences, mixed, own, tables)

    def triple(
        self, encoded: TriCdrStates, domain: int, row: Tensor, position: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the results of TCA for a target domain after prefixes of the merged histories.

        Each prefix has the number of its history and its last position, (N,) each. Returns M~, S~, G~, (N, d)
        each, and whether the prefix has items of both domains, (N,).
        """
        target_counts, source_counts = (encoded.sequences[n].counts for n in (domain, 1 - domain))  # (B, T)
        counts = target_counts + source_counts
        q = states_after(encoded.own[domain], target_counts)[row, position]  # (N, d)
        total = states_after(encoded.mixed.cumsum(1), counts)[row, position]  # (N, d)
        mean = total / counts[row, position, None].clamp(min=1)
        attention = self.directions[domain].attention
        triple = [
            attention(states[row], state_counts[row, position], q, mean)
            for states, state_counts in (
                (encoded.mixed, counts),
                (encoded.own[1 - domain], source_counts),
                (encoded.own[domain], target_counts),
            )
        ]
        return triple, (target_counts * source_counts)[row, position] > 0

    def loss(self, batch: Batch) -> Tensor:
        """Return `encoder_loss` in the first `pretrain_steps` steps, later `prefix_loss` of samples."""
        pretraining = int(self.steps) < self.config.pretrain_steps
        if self.training:
            self.steps += 1
        if pretraining:
            return self.encoder_loss(batch)
        row, position = sample_prefixes(batch, self.config.num_prefixes)
        return self.prefix_loss(batch, row, position)

    def encoder_loss(self, batch: Batch) -> Tensor:
        """Return the sum of the next-item losses of the mixed and of each domain's sequence."""
        total = self.mixed.loss(batch)
        sequences = split_two_domains(batch, self.domains)
        for encoder, sequence, domain in zip(self.own, sequences, self.domains, strict=True):
            total = total + encoder.loss(relative_to_domain(sequence.batch, domain))
        return total

    def prefix_loss(self, batch: Batch, row: Tensor, position: Tensor) -> Tensor:
        """Return the mean of -log softmax(cos(u, E) / temperature) at the next item, plus the mean TCL loss.

        Each prefix has the number of its sequence and its last merged position, (N,) each, both ascending.
        TCL contrasts the users of this process.
        """
        total = self.mixed.items.weight.sum() * 0
        encoded, targets = self.encode(next_items(batch)[0]), batch.items[row, position + 1]
        weights = None if batch.weights is None else batch.weights[row, position + 1]
        factor = mean_factor(len(targets), weights)
        for n, (domain, table) in enumerate(zip(self.domains, encoded.tables, strict=True)):
            mine = in_domain(targets, domain)
            rows = row[mine]
            triple, has_both = self.triple(encoded, n, rows, position[mine])
            u = self.directions[n].user(triple)
            items = targets[mine] - domain.start
            weight = factor[mine] if isinstance(factor, Tensor) else factor
            query = SoftmaxQuery(u, items, slice(0, len(table)), weight)
            nll = catalog_nll([query], table, 1 / self.config.temperature, normalize_rows=True)
            is_latest = rows != F.pad(rows, (0, 1), value=-1)[1:]  # of each sequence
            users = [x[is_latest & has_both] for x in triple]
            share = len(users[0]) / max(global_count(len(users[0])), 1)  # of this process in the mean
            total = total + nll + share * self.directions[n].contrast(users) / len(self.domains)
        return total

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return cos(u, E_target[item]) / temperature, see `Model.scores`."""
        row = torch.arange(batch.items.shape[0], device=batch.items.device)
        encoded = self.encode(batch)
        triple, _ = self.triple(encoded, domain, row, (batch.lengths - 1).clamp(min=0))
        u: Tensor = self.directions[domain].user(triple) / self.config.temperature  # (B, d)
        dim = -2 if self.config.normalize_over_candidates else -1
        if candidates is None:
            return u @ F.normalize(encoded.tables[domain], dim=dim).T
        items = F.normalize(encoded.tables[domain][candidates - self.domains[domain].start], dim=dim)
        return torch.einsum("bd,bcd->bc", u, items)  # (B, C)


def relative_to_domain(batch: Batch, domain: Domain) -> Batch:
    """Return a domain's items with indices that start at 0 in the domain; padding stays 0."""
    return Batch((batch.items - domain.start).clamp(min=0), batch.lengths, weights=batch.weights)


def nt_xent(a: Tensor, b: Tensor, temperature: float) -> Tensor:
    """Return the NT-Xent loss of two views of N users, (N, d) twice.

    The mean of -log softmax(cos / temperature) over all other views, at the other view of the same user.
    """
    views = F.normalize(torch.cat([a, b]), dim=1)  # (2 N, d)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(len(views), dtype=torch.bool, device=views.device), -torch.inf)
    return F.cross_entropy(logits, torch.arange(len(views), device=views.device).roll(len(a)))
