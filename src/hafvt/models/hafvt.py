"""HAF-VT: Hierarchical Attention Fusion of Visual and Textual Representations (arXiv 2504.15085).

A history is read as several *sequences*: the items of each domain, S^X, S^Y, ..., and the *merged sequence*
of all items, S^{X+Y}. Each item has several *modalities*: its learned id, and frozen vectors of its picture
and title. A *branch* is a pair of a sequence s and a modality m. It compares the last encoder state h of s
with the embeddings e_i of all items by cosine. A softmax over them gives probabilities:

    P_s,m(i) = softmax_i(z_i), z_i = cos(h_s,m, e_m,i) / temperature     (2), (4) to (6), branch
    P_s(i)   = sum over m of w_s,m P_s,m(i), weights that sum to 1       (7), sequence
    L        = sum over domains X of L^X / D + lambda2 L^{X+Y}           (8), (9), training
    score(i) = log(P^X(i) + lambda2 P^{X+Y}(i))                          (10), for items of domain X

Numbers in parentheses are the paper's equations; `hafvt_paper.py` has them literally. Differences here:

* Encoder, in place of (1) and (3): the modalities of a sequence share one Transformer with relative position
  bias and, on larger data, gates (`PreNormBlock`). Its inputs are the sums of an item's id embedding, its
  projected content and the embeddings of its clusters (`item_embeddings.py`). For content, a linear layer
  maps the states to the width of the vectors. With `use_request_date`, the states depend on the date
  (`request_date.py`).
* The branch "id" compares h with the input embeddings of items, not with their ids alone.
* One model serves all domains: (9) is averaged over every domain as X. The terms of the other domains are
  left out (lambda1 = 0): the merged sequence holds the same items, and accuracy is the same without them.
* L^X and L^{X+Y} are means over all next items of a batch, not sums. In (10), the merged sequence's softmax
  runs over the items of X alone. Over all items, its probabilities would be too small in a small domain.
* Repeat discount: for seen items i (those of the history), every softmax has r exp(z_i) in place of exp(z_i),
  with a learned factor r in (0, 1). Without r, a model can lower the scores of seen items only by turning h
  away from them, and so from similar items, which are often next.
* Cold items (without training interactions): softmax denominators sum over trained items only, so that a new
  item changes no other score. A cold item is divided by the same sum, and multiplied by `cold_item_boost`.
* An item without a picture or title has the mean vector of its domain. An empty sequence has no score.

Shapes: B histories of at most T items, N targets, C candidates, S sequences, M modalities, V items, width d.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.clusters import renumber_items, with_clusters
from hafvt.features.item_features import ItemFeatures, content_basis
from hafvt.models.base import BranchContributions, BranchQuery, Model, ScoreFactors, normalize_shares
from hafvt.models.configs import HafVtConfig
from hafvt.models.item_embeddings import (
    CONTENT_WIDTH,
    ItemEmbeddings,
    content_chunk_rows,
    saved_bases,
    saved_clusters,
)
from hafvt.models.sequence_encoder import SequenceEncoder
from hafvt.models.sequences import (
    TrainTargets,
    first_occurrences,
    in_domain,
    scatter_selected,
    select_items,
    train_targets,
    valid_mask,
)
from hafvt.models.step_items import StepItems, make_step_reader
from hafvt.ops import catalog_softmax as softmax
from hafvt.ops.catalog_softmax import SoftmaxQuery
from hafvt.ops.collectives import all_reduce_sum
from hafvt.ops.products import linear
from hafvt.ops.sampled_softmax import SeenItems
from hafvt.ops.softmax_mixture import mixture_nll

NEGATIVE_INFINITY_LOGIT = -1e4
"""Logit of masked items in a logsumexp; unlike -inf, it keeps gradients finite if all items are masked."""
REPEAT_LOGIT_SCALE = 30.0
"""log(r / (1 - r)) is this times `repeat_logit`: Adam's steps are small, so the factor speeds them up."""
MERGED_SEQUENCE = "all domains"
"""Name of the merged sequence among `sequence_names`, the last one."""


class HafVt(Model):
    """HAF-VT; see the module's docstring.

    Args:
        item_features: The items, as `prepare_item_features` returns them.
        config: Hyperparameters.
    """

    can_explain = can_extend_catalog = can_index = can_shard_catalog = uses_times = True
    by_domain = ("encoders", "output_projections", "modality_logits")

    def __init__(self, item_features: ItemFeatures, config: HafVtConfig) -> None:
        super().__init__()
        self.config, self.domains, self.max_length = config, item_features.domains, config.max_length
        self.items = ItemEmbeddings(item_features, config)
        self.trained, self.shard = self.items.trained, self.items.shard
        self.sharded_names = tuple(f"items.{name}" for name in self.items.sharded_names)
        self.modalities, self.content_modalities = self.items.modalities, self.items.content_modalities
        self.sequence_names = (*(d.name for d in self.domains if config.hierarchy), MERGED_SEQUENCE)
        self.uses_times = (knots := item_features.time_knots) is not None
        heads = 2 if config.id_width % 2 == 0 else 1
        sizes = (config.id_width, config.blocks, heads, config.dropout, config.max_length)
        self.encoders: Any = nn.ModuleList(
            SequenceEncoder(*sizes, knots, gated=bool(config.gated)) for _ in self.sequence_names
        )
        self.output_projections: Any = nn.ModuleList(  # S lists of M
            nn.ModuleList(
                nn.Identity() if name == "id" else nn.Linear(config.id_width, width)
                for name, width in zip(self.modalities, self.items.widths, strict=True)
            )
            for _ in self.sequence_names
        )
        self.modality_logits = nn.Parameter(torch.zeros(len(self.sequence_names), len(self.modalities)))
        self.repeat_logit = nn.Parameter(torch.zeros(()))
        self.step_reader = make_step_reader(self.items, item_features, config)

    @classmethod
    def prepare_item_features(cls, item_features: ItemFeatures, config: HafVtConfig) -> ItemFeatures:
        """Return the features with clusters of similar items, by content modality."""
        sizes = config.cluster_sizes if config.id_shrinkage else ()  # at 0, clusters have the weight 0
        return with_clusters(item_features, sizes, CONTENT_WIDTH, content_chunk_rows(config))

    @classmethod
    def restore_features(cls, item_features: ItemFeatures, weights: Mapping[str, Tensor]) -> ItemFeatures:
        """Return the features with the clusters and the knots of time in a model's state dict."""
        tables = {name.removeprefix("items."): tensor for name, tensor in weights.items()}
        knots = weights.get("encoders.0.time_offset.knots")
        clusters, bases = saved_clusters(tables), saved_bases(tables)
        return replace(item_features, clusters=clusters, bases=bases, time_knots=knots)

    def log_modality_weights(self) -> Tensor:
        """Return the logs of the weights of (7), (S, M)."""
        return torch.log_softmax(self.modality_logits, dim=1)

    def log_seen_shares(self) -> tuple[Tensor, Tensor]:
        """Return log r and log(1 - r): of a seen item's exp(z_i), a share r remains, () each."""
        logit = REPEAT_LOGIT_SCALE * self.repeat_logit
        return F.logsigmoid(logit), F.logsigmoid(-logit)

    def log_subtracted_mass(self, logits: Tensor, is_seen: Tensor) -> Tensor:
        """Return the log of what the repeat discount subtracts from the denominator of each softmax, (N,).

        This is (1 - r) sum_i exp(z_i) over seen items i; `logits` has z_i of the T items of the history, and
        `is_seen` the mask of those to count, (N, T) each.
        """
        _, log_subtracted = self.items.cached_in_eval("log_seen_shares", self.log_seen_shares)
        return logits.float().masked_fill(~is_seen, NEGATIVE_INFINITY_LOGIT).logsumexp(1) + log_subtracted

    # Training: equations (8) and (9)

    def loss(self, batch: Batch) -> Tensor:
        """Return the loss (9), averaged over every domain as X."""
        sequences, weights = self.train_sequences(batch)
        targets = [train_targets(sequence, self.trained.is_cold) for sequence in sequences]
        totals = all_reduce_sum([t.total_weight for t in targets])
        items = self.step_reader.read(targets)
        loss, queries = torch.zeros((), device=batch.items.device), []  # S lists of M
        for s, t in enumerate(targets):
            factor = weights[s] / (totals[s] or 1)  # (8) as a mean
            loss = loss - factor * self.log_seen_shares()[0] * t.repeat_weight  # r of repeated targets
            weight = t.scaled_weights(factor)
            queries.append([query._replace(weight=weight) for query in self.train_queries(s, t, items)])
        log_r, log_subtracted = self.log_seen_shares()
        return loss + mixture_nll(  # without r of repeated targets
            queries,
            items.tables,
            self.log_modality_weights(),
            1 / self.config.temperature,
            normalize_rows=[name == "id" for name in self.modalities],
            samples=items.samples,
            seen_items=[SeenItems(rows, log_r - log_subtracted) for rows in items.seen_items],
            shard=items.shard,
        )

    def train_sequences(self, batch: Batch) -> tuple[list[Batch], list[float]]:
        """Return the S sequences of each history, and their weights in (9): 1 / D, and last lambda2."""
        domains = self.domains if self.config.hierarchy else ()
        sequences = [select_items(batch, in_domain(batch.items, domain)) for domain in domains]
        return [*sequences, batch], [1 / len(self.domains)] * len(domains) + [self.config.lambda2]

    def train_queries(self, sequence: int, targets: TrainTargets, items: StepItems) -> list[SoftmaxQuery]:
        """Return the M queries for the targets of one sequence, by its number, with the items of the step."""
        inputs, queries = items.inputs[sequence], []  # (B, T, id_width)
        states = self.encoders[sequence](inputs, targets.times)  # (B, T, id_width)
        for m, name in enumerate(self.modalities):
            h = F.normalize(self.output_projections[sequence][m](states).float(), dim=2)  # (B, T, d)
            if name == "id":
                vectors = F.normalize(inputs.float(), dim=2)  # (B, T, d), of the history
            else:
                vectors = F.embedding(items.content_rows[sequence], items.content_vectors[name])
            logits = ((h / self.config.temperature) @ vectors.transpose(1, 2))[targets.mask]  # (N, T)
            log_subtracted = self.log_subtracted_mass(logits, targets.is_seen)
            query = SoftmaxQuery(h[targets.mask], items.targets[sequence], items.candidates[sequence])
            queries.append(query._replace(log_subtracted_mass=log_subtracted))
        return queries

    # Scores: equation (10)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the log of (10), see `Model.scores`."""
        branches = self.branch_scores(batch, domain, candidates)
        total = next(branches)
        for branch in branches:
            total += branch
        return self.finish_scores(total, batch, domain, candidates)

    def scoring_sequence_indices(self, domain: int) -> list[int]:
        """Return the numbers of the sequences of (10) for a domain: its own and the merged one."""
        return [domain, len(self.domains)] if self.config.hierarchy else [0]

    def branch_vectors(self, domain: int) -> list[tuple[Tensor, Tensor]]:
        """Return, by modality, the scoring vectors of a domain's items, and those of its trained items."""
        items, trained = self.domains[domain], self.trained.ranges[domain]
        tables = zip(self.items.scoring_vectors(), self.items.trained_scoring_vectors(), strict=True)
        return [(table[items.start : items.stop], rows[trained]) for table, rows in tables]

    def scoring_rows(self, items: Tensor) -> list[Tensor]:
        """Return the vectors that score items, (N,) -> (N, d), by modality, see `Model.scoring_rows`."""
        return self.items.rows_of(items, by_row=True)[1]

    def score_factors(self) -> ScoreFactors:
        """Return `cold_item_boost` and log r, see `Model.score_factors`."""
        return ScoreFactors(self.cold_item_boost, self.log_seen_shares()[0].item())

    @property
    def cold_item_boost(self) -> float:
        """The factor on the scores of cold items, 0 for a model without content."""
        return self.config.cold_item_boost if self.content_modalities else 0.0

    def branch_queries(self, batch: Batch, domain: int, *, by_row: bool = False) -> Iterator[BranchQuery]:
        """Yield the branches of (10): all modalities of one sequence, then those of the next."""
        is_in_domain = in_domain(batch.items, self.domains[domain])  # (B, T)
        is_seen = first_occurrences(batch) & is_in_domain & ~self.trained.is_cold[batch.items]
        merged_inputs, vectors = self.items.rows_of(batch.items, by_row=by_row)  # (B, T, id_width), (B, T, d)
        log_weights = self.items.cached_in_eval("log_modality_weights", self.log_modality_weights)
        for s in self.scoring_sequence_indices(domain):
            is_merged = self.sequence_names[s] == MERGED_SEQUENCE
            sequence = batch if is_merged else select_items(batch, is_in_domain)
            weight = torch.tensor(self.config.lambda2 if is_merged else 1.0, device=log_weights.device)
            inputs = merged_inputs if is_merged else self.items.rows_of(sequence.items, by_row=by_row)[0]
            state, _ = self.encoders[s].last_state(inputs, sequence.lengths, batch.times)
            for m, project in enumerate(self.output_projections[s]):
                h = F.normalize(project(state).float(), dim=1) / self.config.temperature  # (B, d)
                subtracted = self.log_subtracted_mass((vectors[m] @ h[:, :, None])[:, :, 0], is_seen)
                log_weight = log_weights[s, m] + weight.log()
                yield BranchQuery(m, h, log_weight, sequence.lengths == 0, subtracted)

    def branch_scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Iterator[Tensor]:
        """Yield each branch's term of (10), (B, C), without `cold_item_boost` and repeat discount."""
        items, trained = self.domains[domain], self.trained.ranges[domain]
        for m, h, log_weight, is_empty, log_subtracted in self.branch_queries(batch, domain):
            table = self.items.scoring_vectors()[m]
            if candidates is None:
                logits = linear(h, table[items.start : items.stop])  # (B, C)
            else:
                logits = torch.einsum("bd,bcd->bc", h, table[candidates])
            max_logit = logits.amax(1)
            exponentials = logits.sub_(max_logit[:, None]).exp_()  # in place
            if candidates is None:
                columns = self.trained.indices[trained] - items.start
                terms = exponentials.index_select(1, columns) if self.trained.has_cold else exponentials
                log_partition = max_logit + terms.sum(1).clamp(min=torch.finfo(logits.dtype).tiny).log()
            else:
                log_partition = softmax.log_partition(h, self.items.trained_scoring_vectors()[m][trained])
            log_factor = log_weight + max_logit - softmax.log_subtract_exp(log_partition, log_subtracted)
            yield exponentials.mul_(log_factor.exp().masked_fill(is_empty, 0.0)[:, None])

    def finish_scores(
        self, total: Tensor, batch: Batch, domain: int, candidates: Tensor | None = None
    ) -> Tensor:
        """Turn sums of branches, (B, C), into (10) in place: `cold_item_boost`, the log, the factor r."""
        items = self.domains[domain]
        if self.trained.has_cold:
            scored = slice(items.start, items.stop) if candidates is None else candidates
            is_cold = self.trained.is_cold[scored]  # (C,) or (B, C)
            total.mul_(torch.where(is_cold, self.cold_item_boost, 1.0))
        total.clamp_(min=1e-30).log_()
        log_r, _ = self.items.cached_in_eval("log_seen_shares", self.log_seen_shares)
        if candidates is None:
            is_seen = first_occurrences(batch) & in_domain(batch.items, items)  # (B, T)
            history_columns = (batch.items - items.start).clamp(0, total.shape[1] - 1)
            return total.scatter_add_(1, history_columns, torch.where(is_seen, log_r, 0.0))
        valid = valid_mask(batch.lengths, batch.items.shape[1])[:, None, :]
        is_seen = ((candidates[:, :, None] == batch.items[:, None, :]) & valid).any(2)  # (B, C)
        return total.add_(torch.where(is_seen, log_r, 0.0))

    # Explanations and added items

    def explain(self, batch: Batch, domain: int, candidates: Tensor) -> BranchContributions:
        """Return how each branch contributes to the scores, see `Model.explain`.

        The id branch of a cold item scores its content and clusters, so content gets the branch's share.
        """
        count = len(self.modalities)
        shares = torch.zeros(*candidates.shape, len(self.sequence_names), count, device=candidates.device)
        branches = [(s, m) for s in self.scoring_sequence_indices(domain) for m in range(count)]
        for (s, m), score in zip(branches, self.branch_scores(batch, domain, candidates), strict=True):
            shares[:, :, s, m] = score
        shares = normalize_shares(shares)
        if "id" in self.modalities and count > 1 and self.trained.has_cold:
            m = self.modalities.index("id")
            is_cold = self.trained.is_cold[candidates][..., None]  # (B, C, 1)
            content_shares = self.items.content_shares(candidates.flatten()).view(*candidates.shape, 1, count)
            shares = shares + (shares[..., m] * is_cold)[..., None] * content_shares
            shares[..., m].masked_fill_(is_cold, 0.0)
        return BranchContributions(shares, self.attention(batch))

    def attention(self, batch: Batch) -> Tensor:
        """Return how much each branch's last state attends to each item of the history, (B, S, M, T)."""
        attention = []
        for s, encoder in enumerate(self.encoders):
            mask = valid_mask(batch.lengths, batch.items.shape[1])
            if self.sequence_names[s] != MERGED_SEQUENCE:
                mask = mask & in_domain(batch.items, self.domains[s])
            sequence = select_items(batch, mask)
            _, weights = encoder.last_state(self.items.input_embeddings_of(sequence.items), sequence.lengths)
            attention.append(scatter_selected(weights, mask))
        return torch.stack(attention, dim=1)[:, :, None].expand(-1, -1, len(self.modalities), -1)

    def inherit_features(
        self, item_features: ItemFeatures, own: ItemFeatures, new: Tensor, old: Tensor
    ) -> ItemFeatures:
        """Return item features with the clusters and bases of this model, see `Model.inherit_features`."""
        arguments, saved = (own, CONTENT_WIDTH, content_chunk_rows(self.config)), self.items.state_dict()
        bases = {name: content_basis(own.vectors[name], *arguments) for name in self.content_modalities}
        clusters = {
            name: renumber_items(c._replace(cluster_rows=c.cluster_rows[old]), new, len(item_features))
            for name, c in saved_clusters(saved).items()
        }
        return replace(item_features, clusters=clusters, bases=saved_bases(saved) or bases)

    def extend_catalog(self, item_features: ItemFeatures, extended_indices: Tensor) -> HafVt:
        """Return a copy of this model with more items, see `Model.extend_catalog`."""
        weights = self.state_dict()
        item_features = self.restore_features(item_features, weights)
        clusters = {
            name: renumber_items(saved, extended_indices, len(item_features))
            for name, saved in item_features.clusters.items()
        }
        item_features = self.prepare_item_features(replace(item_features, clusters=clusters), self.config)
        extended = HafVt(item_features, self.config)
        if "id" in self.modalities:
            ids = torch.zeros_like(extended.items.ids.weight)
            ids[extended_indices] = self.items.ids.weight
            weights["items.ids.weight"] = ids.detach()
        cluster_rows = {name: buffer for name, buffer in extended.named_buffers() if name in weights}
        extended.load_state_dict(weights | cluster_rows)
        return extended.eval()
