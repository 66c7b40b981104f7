"""HAF-VT: Hierarchical Attention Fusion of Visual and Textual Representations (arXiv 2504.15085).

A history S is seen as D + 1 sequences: S^X, S^Y, ... (the items of one domain each) and S^{X+Y} (all of
them). In each, an item stands for M modalities: its id (learned) and its picture and title (frozen). So there
are (D + 1) x M branches, nine for the paper's two domains. A branch attends over its sequence (1, 3), takes
the last state h, compares it with its modality's vectors of the candidates by cosine (2), and a softmax makes
a probability (4-6). Modalities are mixed by weights that sum to 1 (7); each sequence has a negative
log-likelihood (8); the loss (9) and the score (10) add the sequences, the target's own domain with weight 1,
the other domains with lambda1, the merged sequence with lambda2.

What the paper leaves open is a field of `HafVtConfig`, or decided here:

* (4-6) have no temperature: `temperature`, 1 in the literal reading.
* (9) and (10) speak of one target domain X. We train one model for all: the loss is the mean of (9) with each
  domain as X in turn.
* (10) needs P^Y(x) for an item x of X, which no equation defines: the last state of S^Y is compared with the
  vectors of X, softmax over X. A sequence without items says nothing and adds nothing.
* P^{X+Y} of (9) is a softmax over all items. In (10) it is renormalized over X, as P^X is: what it leaves X
  says how likely the next item is of X, which is given, and would make it weigh least where X is small.
  Without `renormalized` it is restricted to X as it is, the literal reading.
* All next items of a sequence are targets, under a causal mask.
* An item without a picture (or title) has, as a candidate, the mean similarity of those of its domain that
  have one, so that it is neither favored nor hurt. As similarity is linear in the candidate, that is its
  vector: the mean. In a history it is the same vector.
* An item that training never met (held out, or added later) has an id whose vector was never fitted. The
  softmaxes (4-6) are over the items that training met, and such an item is measured by the same scale; so the
  scores of the others are the same, whoever is added. Its id counts as zero: what content adds (`fused`)
  is all there is, or else its share of (7) is given to the other modalities, in proportion. Its score counts
  `new_items` times.
* `blocks`: the branches of a sequence share one attention, that of an encoder with so many blocks. It reads
  the sum of what is known of each item, the id's vector and projections of the frozen ones; its last state is
  h for the ids, and through a learned matrix for each other modality. With 0 each branch attends by itself.
* `fused`: content is added to the ids' vectors, by learned projections of the frozen vectors. An id itself
  counts n / (n + `shrinkage`) where training met its item n times, and the rest is borrowed: from the ids of
  the items that look or read most alike (`neighbors`), and from vectors that items share which look or read
  alike, in groups from small to large (`groups`). So what people tell of one is told of those like it, until
  they tell enough of each.
* Without `mixed` (preset `unmixed`) that is all that content has to say: ids alone have a branch, and
  (7) falls away. A training takes 60 % of the time.
* `repeats`: an item that the history has already counts a share of what it would, in training and in scores:
  how often people come back to what they had is one number, learned. A softmax that does not know it spends
  its queries on turning away from the last items, near which the next one is sought.
* `residual` adds the item's own vector through a learned matrix. A plain residual would make the last item
  itself the best candidate, as the candidates' vectors are the inputs: HR@1 on movielens-posters fell to a
  fifth of SASRec's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.features.similarity import renumber_items
from hafvt.models.attention import AttentionLayer, SequenceEncoder
from hafvt.models.base import BranchContributions, Model
from hafvt.models.configs import HafVtConfig
from hafvt.models.item_tables import ItemTables, saved_similarity
from hafvt.models.sequences import next_items, select_items, selected_first, valid_mask
from hafvt.ops.catalog_softmax import (
    SoftmaxQuery,
    catalog_nll,
    log_partition,
    log_subtract_exp,
    target_log_probabilities,
)
from hafvt.ops.embedding import embedding_lookup
from hafvt.ops.sampled_softmax import SeenItems, sample_items, sampled_log_probabilities

FAR = -1e4  # a logit that adds nothing to a sum, with a gradient that is a number
SWIFT = 30.0  # Adam moves a weight by the learning rate at most: log-odds from 0 on would take too long


class TrainTargets(NamedTuple):
    """What a sequence's histories are asked for in training, N targets in all."""

    inputs: Batch
    mask: Tensor
    """(B, T) the slots that a target follows."""
    targets: Tensor
    """(N,) items."""
    had: Tensor
    """(N, T) the slots up to there, each item once; what training is not to meet left out."""
    again: Tensor
    """(N,) whether the target is among them."""


class Query(NamedTuple):
    """What a branch asks: `log_weight + log softmax(h . e)` is the log of what it adds to (10)."""

    modality: int
    whole: bool
    """Whether its softmax is over the items of all domains, or over those of the ranked one."""
    h: Tensor
    """(B, d), of unit length divided by the temperature."""
    log_weight: Tensor
    """(), the log of its lambda times its share of (7)."""
    silent: Tensor
    """(B,) whether its sequence has no items."""
    bonus: Tensor
    """(), added to `log_weight` for an item that training never met: -inf for its id."""
    less: Tensor | None
    """(B,), see `SoftmaxQuery.less`."""


class HafVt(Model):
    """See the module's docstring. Sequences are numbered by their domain; the last one is the merged one."""

    can_explain = True
    can_extend_catalog = True

    def __init__(self, catalog: ItemFeatures, config: HafVtConfig) -> None:
        super().__init__()
        self.config, self.domains = config, catalog.domains
        self.max_length = config.max_length
        self.items = ItemTables(
            catalog,
            config.modalities,
            config.id_width,
            config.id_scale,
            config.content_width,
            fused=config.fused,
            mixed=config.mixed,
            shrinkage=config.shrinkage,
            near=config.neighbors,
            sizes=tuple(config.groups),
            entered=config.blocks > 0,
        )
        self.modalities, widths = self.items.modalities, self.items.widths
        merged = len(self.domains)
        self.used = list(range(merged + 1)) if config.hierarchy else [merged]  # sequences, S = len(used)
        names = (*(domain.name for domain in self.domains), "all domains")
        self.sequence_names = tuple(names[number] for number in self.used)
        self.content_modalities = self.items.content
        positions = config.max_length if config.positions else 0
        distances = config.max_length if config.distances else 0
        deep = config.blocks > 0
        # What reads: for each sequence an encoder, with a head per modality, or for each branch a layer.
        self.encoders = nn.ModuleList(
            SequenceEncoder(config.id_width, config.blocks, positions, distances, config.dropout)
            for _ in (self.used if deep else [])
        )
        self.layers = nn.ModuleList(
            AttentionLayer(width, positions, config.residual, config.dropout)
            for _ in ([] if deep else self.used)
            for width in widths
        )
        self.heads = nn.ModuleList(
            nn.Identity() if name == "id" else nn.Linear(config.id_width, width)
            for _ in (self.used if deep else [])
            for name, width in zip(self.modalities, widths, strict=True)
        )
        self.come_back = nn.Parameter(torch.zeros(())) if config.repeats else None
        if config.weights == "learned":
            self.mix = nn.Parameter(torch.zeros(len(self.used), len(widths)))
        else:
            fixed = [1.0] * len(widths) if config.weights == "equal" else list(config.weights)
            if len(fixed) != len(widths):
                raise HafvtError(f"{len(fixed)} weights for the modalities {', '.join(self.modalities)}")
            self.register_buffer(
                # A weight of 0 has a logarithm, too: 1e-35 adds nothing to a probability.
                "mix",
                torch.tensor(fixed).log().clamp(min=-80).expand(len(self.used), -1).clone(),
                persistent=False,
            )

    def log_weights(self) -> Tensor:
        """Returns log alpha, log beta, ... of (7) for each sequence in use, (S, M)."""
        return torch.log_softmax(self.mix, dim=1)

    def log_again(self) -> tuple[Tensor, Tensor]:
        """Returns the logs of the share that what a history has counts, and of the rest, () each."""
        odds = torch.zeros(()) if self.come_back is None else SWIFT * self.come_back
        return F.logsigmoid(odds), F.logsigmoid(-odds)

    def layer(self, row: int, modality: int) -> Any:
        """Returns what is of one branch alone, by the place of its sequence among those in use."""
        return (self.heads or self.layers)[row * len(self.modalities) + modality]

    def sequences(self, batch: Batch) -> list[Batch]:
        """Returns those in use of S^X, S^Y, ... and S^{X+Y}."""
        if len(self.domains) == 1 or len(self.used) == 1:
            return [batch] * len(self.used)
        starts = torch.tensor([d.start for d in self.domains[1:]], device=batch.items.device)
        domain = torch.bucketize(batch.items, starts, right=True)
        return [*(select_items(batch, domain == number) for number in range(len(self.domains))), batch]

    def candidates(self, sequence: int) -> slice:
        """Returns the items that a sequence's next item is sought among: its domain's, or all."""
        if sequence < len(self.domains):
            return slice(self.domains[sequence].start, self.domains[sequence].stop)
        return slice(0, self.domains[-1].stop)

    def loss(self, batch: Batch) -> Tensor:
        """Equation (9), averaged over each domain as its X; each of its terms (8) as a mean over targets."""
        pairs = [self.pairs(sequence) for sequence in self.sequences(batch)]
        scale, log_weights, (log_again, _) = 1 / self.config.temperature, self.log_weights(), self.log_again()
        of_domain = (1 + self.config.lambda1 * (len(self.domains) - 1)) / len(self.domains)
        factors = [self.config.lambda2 if n == len(self.domains) else of_domain for n in self.used]  # (9)
        shares = [
            factor / max(len(p.targets), 1) for factor, p in zip(factors, pairs, strict=True)
        ]  # (8): means
        loss = torch.zeros((), device=self.mix.device)
        if self.config.repeats:
            for share, pair in zip(shares, pairs, strict=True):
                loss = loss - share * log_again * pair.again.sum()
        entering, states = self.read(pairs)
        # The ids last: the gradient of their table is cheapest where the loss is made.
        *others, last = sorted(range(len(self.modalities)), key=lambda m: self.modalities[m] == "id")
        if self.config.num_negatives:
            return loss + self.sampled_loss(pairs, entering, states, shares)
        said: list[list[Tensor]] = [[] for _ in self.used]  # per sequence, (N,) per modality: log w p
        for modality in others:
            table, softmax_queries = self.softmax_queries(modality, pairs, entering, states)
            for row, log_p in enumerate(target_log_probabilities(softmax_queries, table, scale)):
                said[row].append(log_weights[row, modality] + log_p)
        table, softmax_queries = self.softmax_queries(last, pairs, entering, states)
        for row, (ask, share) in enumerate(zip(softmax_queries, shares, strict=True)):
            # (7), log sum_m w_m p_m = log w_last + log(beside + p_last)
            beside = torch.stack(said[row]).logsumexp(0) - log_weights[row, last] if others else None
            softmax_queries[row] = ask._replace(weight=share, log_other_components=beside)
            loss = loss - share * len(ask.targets) * log_weights[row, last]
        return loss + catalog_nll(softmax_queries, table, scale, normalize_rows=self.modalities[last] == "id")

    def sampled_loss(
        self,
        pairs: list[TrainTargets],
        entering: tuple[Tensor, list[Tensor]] | None,
        states: list[Tensor],
        shares: list[float],
    ) -> Tensor:
        """The loss (9) with all softmaxes estimated; one draw per sequence serves all its modalities."""
        samples = [
            sample_items(self.items.popularity, self.items.learned[n], self.config.num_negatives)
            for n in self.used
        ]
        had = [self.had(pair) for pair in pairs] if self.config.repeats else None
        of_modalities = []
        for modality, name in enumerate(self.modalities):
            table, softmax_queries = self.softmax_queries(modality, pairs, entering, states)
            scale, unit = 1 / self.config.temperature, name == "id"
            of_modalities.append(
                sampled_log_probabilities(
                    softmax_queries, samples, table, scale, normalize_rows=unit, seen_items=had
                )
            )
        loss = torch.zeros((), device=self.mix.device)
        for row, (log_weights, share) in enumerate(zip(self.log_weights(), shares, strict=True)):
            log_p = torch.stack([of_modality[row] for of_modality in of_modalities], dim=1)  # (N, M)
            mixed = (log_weights + log_p).logsumexp(1)  # (7), (N,)
            loss = loss - share * mixed.sum()
        return loss

    def had(self, pair: TrainTargets) -> SeenItems:
        """Returns what the histories of a sequence's targets hold."""
        log_again, rest = self.log_again()
        items = pair.inputs.items[:, None, :].expand(-1, pair.inputs.items.shape[1], -1)[pair.mask]  # (N, T)
        return SeenItems(self.items.met_number[items].masked_fill(~pair.had, -1), log_again - rest)

    def pairs(self, sequence: Batch) -> TrainTargets:
        """Returns `next_items` and what comes again; a target that training is not to meet is none."""
        inputs, mask, targets = next_items(sequence)
        first, early = first_times(inputs), no_later(inputs.items.shape[1], inputs.items.device)
        following = sequence.items[:, 1:, None] == inputs.items[:, None, :]  # (B, T, T)
        if not self.items.all_met:
            first &= ~self.items.unmet[inputs.items]
            known = ~self.items.unmet[targets]
            mask, targets = mask.masked_scatter(mask, known), targets[known]
        had = first[:, None, :] & early
        return TrainTargets(inputs, mask, targets, had[mask], (following & had)[mask].any(1))

    def read(self, pairs: list[TrainTargets]) -> tuple[tuple[Tensor, list[Tensor]] | None, list[Tensor]]:
        """Returns what enters the encoders in training, all items and the histories, and what comes out.

        Nothing enters and nothing comes out where there are no encoders.
        """
        if not self.encoders:
            return None, []
        entering = embedding_lookup(self.items.entering(), *(p.inputs.items for p in pairs))
        return entering, [encode(x) for encode, x in zip(self.encoders, entering[1], strict=True)]

    def softmax_queries(
        self,
        modality: int,
        pairs: list[TrainTargets],
        entering: tuple[Tensor, list[Tensor]] | None,
        states: list[Tensor],
    ) -> tuple[Tensor, list[SoftmaxQuery]]:
        """Returns a modality's vectors of what training meets, (V', d), and what each sequence asks of them.

        An item that training never meets would only be pushed away.
        """
        unit = self.modalities[modality] == "id"
        if entering is not None and unit and self.items.fused:  # it is the same table, looked up once
            table, histories = entering
        else:
            table, histories = embedding_lookup(self.items.table(modality), *(p.inputs.items for p in pairs))
        if not self.items.all_met:
            table = table.index_select(0, self.items.met_items)  # [...] takes seven times as long
        softmax_queries = []
        for row, (number, history, pair) in enumerate(zip(self.used, histories, pairs, strict=True)):
            h: Tensor = self.layer(row, modality)(states[row] if states else history)
            h = F.normalize(h.float(), dim=2)  # (B, T, d)
            less = None
            if self.config.repeats:
                vectors = F.normalize(history.float(), dim=2) if unit else history
                z = ((h / self.config.temperature) @ vectors.transpose(1, 2))[pair.mask]  # (N, T)
                less = self.less(z, pair.had)
            targets = self.items.met_number[pair.targets]
            softmax_queries.append(
                SoftmaxQuery(h[pair.mask], targets, self.items.learned[number], log_excluded_mass=less)
            )
        return table, softmax_queries

    def less(self, z: Tensor, had: Tensor) -> Tensor:
        """Returns the log of what the items of a history count less than others would, (N, T) -> (N,)."""
        _, rest = self.items.once("again", self.log_again)
        return z.float().masked_fill(~had, FAR).logsumexp(1) + rest

    def queries(self, batch: Batch, domain: int) -> Iterator[Query]:
        """Yields what each branch asks of a domain's items, sequence by sequence, modality by modality."""
        scale, tables = 1 / self.config.temperature, self.items.candidates()
        log_weights, bonuses = self.items.once(f"weights{domain}", lambda: self.branch_weights(domain))
        had = first_times(batch) & ~self.items.unmet[batch.items]  # (B, T)
        had_here = had & self.within(batch.items, domain)
        vectors = [F.embedding(batch.items, table) for table, _ in tables] if self.config.repeats else []
        for row, (number, sequence) in enumerate(zip(self.used, self.sequences(batch), strict=True)):
            silent = sequence.lengths == 0
            whole = number == len(self.domains) and not self.config.renormalized
            for modality, h in enumerate(self.last_states(row, sequence)):
                h = scale * F.normalize(h.float(), dim=1)  # (B, d)
                less = None
                if self.config.repeats:
                    z = (vectors[modality] @ h[:, :, None])[:, :, 0]  # (B, T)
                    less = self.less(z, had if whole else had_here)
                weight, bonus = log_weights[row][modality], bonuses[row][modality]
                yield Query(modality, whole, h, weight, silent, bonus, less)

    def branch_weights(self, domain: int) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Returns, by sequence and modality, `log_weight` and `bonus` of the queries for a domain's items."""
        log_weights, knowing = self.log_weights(), self.items.knowing
        factors = {domain: 1.0, len(self.domains): self.config.lambda2}
        lambdas = torch.tensor([[factors.get(number, self.config.lambda1)] for number in self.used])
        # Who knows an item that training never met shares what the id leaves: 1 / (1 - alpha).
        lift = math.log(self.config.new_items) - log_weights[:, knowing].logsumexp(1)
        known = [number in knowing for number in range(len(self.modalities))]
        bonuses = [[one if here else torch.full_like(one, -torch.inf) for here in known] for one in lift]
        weighed = log_weights + lambdas.log().to(log_weights.device)
        return [list(of_row) for of_row in weighed], bonuses

    def last_states(self, row: int, sequence: Batch) -> Iterator[Tensor]:
        """Yields the last state h of each modality's branch, (B, d)."""
        if self.encoders:
            encoder: Any = self.encoders[row]
            h = encoder.last_state(F.embedding(sequence.items, self.items.entering()), sequence.lengths)
            yield from (self.layer(row, modality)(h) for modality in range(len(self.modalities)))
        else:
            for modality in range(len(self.modalities)):
                x = self.items.history(modality, sequence.items)
                yield self.layer(row, modality).last_state(x, sequence.lengths)

    def weights(self, row: int, sequence: Batch) -> Iterator[Tensor]:
        """Yields what the last state of each modality's branch attends to, (B, T)."""
        if self.encoders:
            encoder: Any = self.encoders[row]
            x = F.embedding(sequence.items, self.items.entering())
            yield from [encoder.weights(x, sequence.lengths)] * len(self.modalities)
        else:
            for modality in range(len(self.modalities)):
                x = self.items.history(modality, sequence.items)
                yield self.layer(row, modality).weights(x, sequence.lengths)

    def within(self, items: Tensor, domain: int) -> Tensor:
        """Returns which items are of a domain."""
        return (items >= self.domains[domain].start) & (items < self.domains[domain].stop)

    def branches(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Iterator[Tensor]:
        """Yields what each branch adds to score (10), (B, C): sequence by sequence, modality by modality.

        What the history has counts like any other item here: it counts less in all branches alike.
        """
        among, tables = self.candidates(domain), self.items.candidates()
        learned, all_met = self.items.learned, self.items.all_met
        here = self.items.met_items[learned[domain]] - among.start  # columns of what training met
        new = self.items.unmet[among if candidates is None else candidates]  # (C,) or (B, C)
        for modality, whole, h, log_weight, silent, bonus, less in self.queries(batch, domain):
            table, met = tables[modality]
            # (2), (B, C)
            z = h @ table[among].T if candidates is None else torch.einsum("bd,bcd->bc", h, table[candidates])
            top = z.amax(1)
            z.sub_(top[:, None]).exp_()  # the one exponential of each logit
            if candidates is None:
                total = (z if all_met else z.index_select(1, here)).sum(1)
                lse = top + total.clamp(min=torch.finfo(z.dtype).tiny).log()
            else:
                lse = log_partition(h, met[learned[domain]])
            for other in range(len(self.domains)) if whole else ():
                if other != domain:
                    lse = torch.logaddexp(lse, log_partition(h, met[learned[other]]))
            lse = log_subtract_exp(lse, less)
            # (4-6) and their weight in one: an empty sequence says nothing.
            z.mul_((log_weight + top - lse).exp().masked_fill(silent, 0.0)[:, None])
            if not all_met:
                z.mul_(torch.where(new, bonus.exp(), 1.0))
            yield z

    def lower(self, scores: Tensor, batch: Batch, domain: int, candidates: Tensor | None = None) -> None:
        """Lowers, in place, the scores of what the history has, (B, C), to the share that it counts."""
        log_again, _ = self.items.once("again", self.log_again)
        if candidates is None:
            lowered = first_times(batch) & self.within(batch.items, domain)
            columns = (batch.items - self.domains[domain].start).clamp(0, scores.shape[1] - 1)
            scores.scatter_add_(1, columns, torch.where(lowered, log_again, 0.0))
        else:
            real = valid_mask(batch.lengths, batch.items.shape[1])[:, None, :]
            had = ((candidates[:, :, None] == batch.items[:, None, :]) & real).any(2)  # (B, C)
            scores.add_(torch.where(had, log_again, 0.0))

    def attention(self, batch: Batch) -> Tensor:
        """Returns what the last state of each branch attends to, (B, S, M, T), over the merged history.

        Each row over T sums to 1, or to 0 where the branch's sequence has no items. Branches that share an
        encoder share its latest block's attention.
        """
        rows, width = batch.items.shape
        found = torch.zeros(rows, len(self.used), len(self.modalities), width, device=batch.items.device)
        for row, number in enumerate(self.used):
            keep = valid_mask(batch.lengths, batch.items.shape[1])
            if number < len(self.domains):
                keep &= self.within(batch.items, number)
            sequence = select_items(batch, keep)
            places = selected_first(keep)[:, : sequence.items.shape[1]]
            for modality, weights in enumerate(self.weights(row, sequence)):
                found[:, row, modality].scatter_(1, places, weights.float())
        return found

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """The log of equation (10), see `Model.scores`: of a sum of probabilities over all branches.

        Ranks are those of (10) itself. But a rule that takes scores for equal where they differ by less than
        1e-5, such as C2DSR's, would take most of its probabilities for equal.
        """
        branches = self.branches(batch, domain, candidates)
        total = next(branches)
        for part in branches:
            total += part
        total.clamp_(min=1e-30).log_()
        if self.config.repeats:
            self.lower(total, batch, domain, candidates)
        return total

    def explain(self, batch: Batch, domain: int, candidates: Tensor) -> BranchContributions:
        """Return how each branch contributes to the scores of candidates, see `Model.explain`."""
        return BranchContributions(self.shares(batch, domain, candidates), self.attention(batch))

    def shares(self, batch: Batch, domain: int, candidates: Tensor) -> Tensor:
        """Returns the share of each branch in the scores of candidates, (B, C, S, M), summing to 1.

        Where content is added to the ids' vectors, those of items that training never met are content alone:
        their ids' shares are said to be the modalities', by the length of what each adds.
        """
        parts = torch.stack(list(self.branches(batch, domain, candidates)), dim=2)  # (B, C, branches)
        shares = parts / parts.sum(2, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
        shares = shares.view(*shares.shape[:2], len(self.used), -1)
        if self.items.fused and self.config.mixed and not self.items.all_met:
            new, number = self.items.unmet[candidates][..., None], self.modalities.index("id")  # (B, C, 1)
            adds = self.items.added(candidates) * new  # (B, C, M)
            shares = shares + shares[..., number, None] * adds[:, :, None]
            shares[..., number].masked_fill_(new, 0.0)
        return shares

    def extend_catalog(self, catalog: ItemFeatures, numbers: Tensor) -> HafVt:
        """Returns this model over a catalog of more items, in evaluation mode; old scores stay as they are.

        Args:
            catalog: the items of this model and new ones, which have a count of 0.
            numbers: (V,) the number in it of each item of this model.
        """
        kept = saved_similarity(self.items.state_dict())
        similar_items = {name: renumber_items(of_old, numbers, len(catalog)) for name, of_old in kept.items()}
        with_added_items, weights = (
            HafVt(replace(catalog, similar_items=similar_items), self.config),
            self.state_dict(),
        )
        if "id" in self.modalities:
            rows = torch.zeros_like(with_added_items.items.ids.weight)
            rows[numbers] = self.items.ids.weight
            weights["items.ids.weight"] = rows.detach()
        links = {name: buffer for name, buffer in with_added_items.named_buffers() if name in weights}
        with_added_items.load_state_dict(weights | links)
        return with_added_items.eval()


def first_times(batch: Batch) -> Tensor:
    """Returns the slots that hold an item which no earlier slot of their row holds, (B, T)."""
    same = batch.items[:, :, None] == batch.items[:, None, :]  # (B, T, T)
    earlier = ~no_later(batch.items.shape[1], batch.items.device).T
    return valid_mask(batch.lengths, batch.items.shape[1]) & ~(same & earlier).any(2)


def no_later(width: int, device: torch.device) -> Tensor:
    """Returns which slots (columns) come at a slot (rows) or before it, (T, T)."""
    place = torch.arange(width, device=device)
    return place <= place[:, None]
