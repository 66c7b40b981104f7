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
* P^{X+Y} is a softmax over all items, restricted to X without renormalising.
* All next items of a sequence are targets, under a causal mask.
* An item without a picture (or title) has, as a candidate, the mean similarity of those of its domain that
  have one, so that it is neither favoured nor hurt. As similarity is linear in the candidate, that is its
  vector: the mean. In a history it is the same vector.
* An item that training never met (held out, or added later) has an id whose vector was never fitted. The
  softmaxes (4-6) are over the items that training met, and such an item is measured by the same scale; so the
  scores of the others are the same, whoever is added. Its id counts as zero: what content adds (`fused`)
  is all there is, or else its share of (7) is given to the other modalities, in proportion. Its score counts
  `new_items` times.
* `residual` adds the item's own vector through a learned matrix. A plain residual would make the last item
  itself the best candidate, as the candidates' vectors are the inputs: HR@1 on movielens-posters fell to a
  fifth of SASRec's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.errors import HafvtError
from hafvt.features.catalogue import Catalogue, prepare_vectors
from hafvt.models.attention import AttentionLayer
from hafvt.models.base import Model
from hafvt.models.layers import kept_first, next_items, slots, view
from hafvt.ops.catalogue_softmax import Ask, catalogue_nll, log_partition, target_log_probabilities
from hafvt.ops.lookup import look_up
from hafvt.ops.sampled_softmax import draw, sampled_log_probabilities

Made = TypeVar("Made")


@dataclass(frozen=True)
class HafVtConfig:
    """Hyperparameters of HAF-VT."""

    modalities: tuple[str, ...] | None = None
    """Modalities to use: "id" and names of encoded features; None uses the id and all encoded ones."""
    max_length: int = 50
    """Longest merged history, in items; older ones are cut."""
    id_width: int = 128
    """Width q of the learned item vectors."""
    id_scale: float = 0.02
    """Standard deviation of their entries at the start. As only directions count, short ones turn faster; and
    where content is added to them (`fused`), it speaks first."""
    fused: bool = True
    """Adds learned projections of the frozen vectors to the ids' vectors, in histories and as candidates."""
    content_width: int = 128
    """Frozen vectors are centred and rotated onto at most so many principal directions; 0 keeps them."""
    temperature: float = 0.1
    """Divides the cosine before the softmax (4-6); 1 is the literal reading."""
    weights: tuple[float, ...] | Literal["learned", "equal"] = "learned"
    """alpha, beta, 1-alpha-beta of (7), in the order of the modalities; "learned" fits them, per sequence."""
    lambda1: float = 0.1
    """Weight of the other domains' sequences in (9) and (10)."""
    lambda2: float = 1.0
    """Weight of the merged sequence in (9) and (10)."""
    hierarchy: bool = True
    """Attends to each domain's sequence and to the merged one; else to the merged one alone (Table 4)."""
    residual: bool = True
    """Adds the item's own vector, through a learned matrix, to the attention's output."""
    positions: bool = True
    """Adds a learned vector per position to the attention's input."""
    dropout: float = 0.2
    """Dropout rate on the attention's input and output."""
    new_items: float = 2.0
    """Factor on the score of items that training never met, whose probabilities by content alone are flat: at
    1 hardly any of them comes among the best ten. It changes scores only, not training."""
    sampled: int = 0
    """Items that are drawn at each step for each softmax, with log-q correction; 0 takes all items."""


PAPER = HafVtConfig(
    id_width=256,
    id_scale=256**-0.5,
    fused=False,
    content_width=0,
    temperature=1.0,
    weights="equal",
    residual=False,
    positions=False,
    dropout=0.3,
)
"""The literal reading: plain cosine, attention alone, equal weights; q and dropout of the paper."""


class Query(NamedTuple):
    """What a branch asks: `log_weight + log softmax(h . e)` is the log of what it adds to (10)."""

    sequence: int
    modality: int
    h: Tensor
    """(B, d), of unit length divided by the temperature."""
    log_weight: Tensor
    """(), the log of its lambda times its share of (7)."""
    silent: Tensor
    """(B,) whether its sequence has no items."""
    bonus: Tensor
    """(), added to `log_weight` for an item that training never met: -inf for its id."""


class HafVt(Model):
    """See the module's docstring. Sequences are numbered by their domain; the last one is the merged one."""

    popularity: Tensor
    unmet: Tensor
    """(V,) which items training never met."""
    met_items: Tensor
    """(V',) the others."""
    met_number: Tensor
    """(V,) the place of each item among them."""

    def __init__(self, catalogue: Catalogue, config: HafVtConfig) -> None:
        super().__init__()
        self.config, self.domains = config, catalogue.domains
        self.max_length = config.max_length
        self.register_buffer("popularity", catalogue.counts, persistent=False)
        self.register_buffer("unmet", catalogue.unmet, persistent=False)
        self.all_met = not bool(self.unmet.any())
        met = ~self.unmet
        # Numbers, not a mask: how many there are is a shape then, and no graph is traced without shapes.
        self.register_buffer("met_items", met.nonzero()[:, 0], persistent=False)
        self.register_buffer("met_number", met.cumsum(0) - 1, persistent=False)
        before = F.pad(met.cumsum(0), (1, 0)).tolist()
        ends = [(d.start, d.stop) for d in self.domains] + [(0, len(catalogue))]
        self.learned = [slice(before[start], before[stop]) for start, stop in ends]  # as places in met_items
        self.modalities = config.modalities or ("id", *sorted(catalogue.vectors))
        absent = [m for m in self.modalities if m != "id" and m not in catalogue.vectors]
        if absent:
            raise HafvtError(
                f"no features {', '.join(absent)}: encode them, or leave them out of --params.modalities"
            )
        widths = []
        for modality in self.modalities:
            if modality == "id":
                self.ids = nn.Embedding(len(catalogue), config.id_width)
                nn.init.normal_(self.ids.weight, std=config.id_scale)
                widths.append(config.id_width)
            else:
                rows = prepare_vectors(catalogue.vectors[modality], catalogue, config.content_width)
                self.register_buffer(f"frozen_{modality}", rows, persistent=False)
                widths.append(rows.shape[1])
        content = zip(self.modalities, widths, strict=True)
        self.fuse = nn.ModuleDict(
            {m: nn.Linear(w, config.id_width, bias=False) for m, w in content if m != "id"}
            if config.fused and "id" in self.modalities
            else {}
        )
        self.held: dict[str, Any] = {}  # see `once`
        merged = len(self.domains)
        self.used = list(range(merged + 1)) if config.hierarchy else [merged]  # sequences, S = len(used)
        sequences = len(self.used)
        positions = config.max_length if config.positions else 0
        self.layers = nn.ModuleList(
            AttentionLayer(width, positions, config.residual, config.dropout)
            for _ in range(sequences)
            for width in widths
        )
        if config.weights == "learned":
            self.mix = nn.Parameter(torch.zeros(sequences, len(widths)))
        else:
            fixed = [1.0] * len(widths) if config.weights == "equal" else list(config.weights)
            if len(fixed) != len(widths):
                raise HafvtError(f"{len(fixed)} weights for the modalities {', '.join(self.modalities)}")
            self.register_buffer(
                # A weight of 0 has a logarithm, too: 1e-35 adds nothing to a probability.
                "mix",
                torch.tensor(fixed).log().clamp(min=-80).expand(sequences, -1).clone(),
                persistent=False,
            )

    def branch(self, sequence: int, modality: int, items: Tensor) -> Tensor:
        """Returns H of (1) for one branch, (B, T, d) -> (B, T, d)."""
        h: Tensor = self.layers[self.used.index(sequence) * len(self.modalities) + modality](items)
        return h

    def log_weights(self) -> Tensor:
        """Returns log alpha, log beta, ... of (7) for each sequence in use, (S, M)."""
        return torch.log_softmax(self.mix, dim=1)

    def table(self, modality: int) -> Tensor:
        """Returns the vectors of all items, (V, d)."""
        name = self.modalities[modality]
        if name != "id":
            frozen: Tensor = getattr(self, f"frozen_{name}")
            return frozen
        return self.once("ids", self.fused_ids) if self.fuse else self.ids.weight

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Returns what is made of the weights, which in evaluation no longer change: it is made once then."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return make()
        if self.held.get("on") != self.popularity.device:
            self.held = {"on": self.popularity.device}
        if name not in self.held:
            self.held[name] = make()
        found: Made = self.held[name]
        return found

    def fused_ids(self) -> Tensor:
        """Returns the ids' vectors and what pictures and titles add; of an item never met that alone."""
        table = self.ids.weight
        if not self.all_met:
            table = table.masked_fill(self.unmet[:, None], 0.0)
        for name, project in self.fuse.items():
            table = table + project(getattr(self, f"frozen_{name}"))
        return table

    def train(self, mode: bool = True) -> HafVt:
        """Switches between training and evaluation."""
        self.held = {}
        super().train(mode)
        return self

    def compared(self, modality: int) -> Tensor:
        """Returns the vectors of all items as candidates, (V, d): learned ones count with unit length."""
        table = self.table(modality)
        return F.normalize(table, dim=1) if self.modalities[modality] == "id" else table

    def inputs(self, modality: int, items: Tensor) -> Tensor:
        """Returns the vectors of a history's items, (B, T, d): an id that was never fitted counts as zero."""
        found = F.embedding(items, self.table(modality))
        if self.all_met or self.fuse or self.modalities[modality] != "id":
            return found
        return found.masked_fill(self.unmet[items][..., None], 0.0)

    def candidate_tables(self) -> list[tuple[Tensor, Tensor]]:
        """Returns, per modality, `compared` and its rows of what training met, which softmaxes are over."""
        tables = [self.compared(modality) for modality in range(len(self.modalities))]
        return [(table, table if self.all_met else table[self.met_items]) for table in tables]

    def sequences(self, batch: Batch) -> list[Batch]:
        """Returns those in use of S^X, S^Y, ... and S^{X+Y}."""
        if len(self.domains) == 1 or len(self.used) == 1:
            return [batch] * len(self.used)
        starts = torch.tensor([d.start for d in self.domains[1:]], device=batch.items.device)
        domain = torch.bucketize(batch.items, starts, right=True)
        return [*(view(batch, domain == number) for number in range(len(self.domains))), batch]

    def candidates(self, sequence: int) -> slice:
        """Returns the items that a sequence's next item is sought among: its domain's, or all."""
        if sequence < len(self.domains):
            return slice(self.domains[sequence].start, self.domains[sequence].stop)
        return slice(0, self.domains[-1].stop)

    def loss(self, batch: Batch) -> Tensor:
        """Equation (9), averaged over each domain as its X; each of its terms (8) as a mean over targets."""
        pairs = [self.pairs(sequence) for sequence in self.sequences(batch)]
        scale, log_weights = 1 / self.config.temperature, self.log_weights()
        of_domain = (1 + self.config.lambda1 * (len(self.domains) - 1)) / len(self.domains)
        factors = [self.config.lambda2 if n == len(self.domains) else of_domain for n in self.used]  # (9)
        # The ids last: the gradient of their table is cheapest where the loss is made.
        *others, last = sorted(range(len(self.modalities)), key=lambda m: self.modalities[m] == "id")
        if self.config.sampled:
            return self.sampled_loss(pairs, factors)
        said: list[list[Tensor]] = [[] for _ in self.used]  # per sequence, (N,) per modality: log w p
        for modality in others:
            table, asks = self.asks(modality, pairs)
            for row, log_p in enumerate(target_log_probabilities(asks, table, scale)):
                said[row].append(log_weights[row, modality] + log_p)
        table, asks = self.asks(last, pairs)
        loss = torch.zeros((), device=table.device)
        for row, (ask, factor) in enumerate(zip(asks, factors, strict=True)):
            share = factor / max(len(ask.targets), 1)  # (8) is a mean
            # (7), log sum_m w_m p_m = log w_last + log(beside + p_last)
            beside = torch.stack(said[row]).logsumexp(0) - log_weights[row, last] if others else None
            asks[row] = ask._replace(share=share, beside=beside)
            loss = loss - share * len(ask.targets) * log_weights[row, last]
        return loss + catalogue_nll(asks, table, scale, unit=self.modalities[last] == "id")

    def sampled_loss(self, pairs: list[tuple[Batch, Tensor, Tensor]], factors: list[float]) -> Tensor:
        """The loss (9) with all softmaxes estimated; one draw per sequence serves all its modalities."""
        popularity = self.popularity[self.met_items]
        samples = [draw(popularity, self.learned[n], self.config.sampled) for n in self.used]
        of_modalities = []
        for modality, name in enumerate(self.modalities):
            table, asks = self.asks(modality, pairs)
            scale, unit = 1 / self.config.temperature, name == "id"
            of_modalities.append(sampled_log_probabilities(asks, samples, table, scale, unit=unit))
        loss = torch.zeros((), device=self.mix.device)
        for row, (log_weights, factor) in enumerate(zip(self.log_weights(), factors, strict=True)):
            log_p = torch.stack([of_modality[row] for of_modality in of_modalities], dim=1)  # (N, M)
            mixed = (log_weights + log_p).logsumexp(1)  # (7), (N,)
            loss = loss - factor * mixed.sum() / max(len(mixed), 1)
        return loss

    def pairs(self, sequence: Batch) -> tuple[Batch, Tensor, Tensor]:
        """Returns `next_items`, where a target that training is not to meet is none."""
        inputs, mask, targets = next_items(sequence)
        if self.all_met:
            return inputs, mask, targets
        known = ~self.unmet[targets]
        return inputs, mask.masked_scatter(mask, known), targets[known]

    def asks(self, modality: int, pairs: list[tuple[Batch, Tensor, Tensor]]) -> tuple[Tensor, list[Ask]]:
        """Returns a modality's vectors of what training meets, (V', d), and what each sequence asks of them.

        An item that training never meets would only be pushed away.
        """
        table, histories = look_up(self.table(modality), *(inputs.items for inputs, _, _ in pairs))
        if not self.all_met:
            table = table[self.met_items]
        asks = []
        for number, items, (_, mask, targets) in zip(self.used, histories, pairs, strict=True):
            h = self.branch(number, modality, items)[mask]  # (N, d)
            asks.append(Ask(F.normalize(h.float(), dim=1), self.met_number[targets], self.learned[number]))
        return table, asks

    def queries(self, batch: Batch, domain: int) -> Iterator[Query]:
        """Yields what each branch asks of a domain's items, sequence by sequence, modality by modality."""
        log_weights, scale = self.log_weights(), 1 / self.config.temperature
        # Who knows an item that training never met: all but its id, which content may speak for.
        knowing = [number for number, name in enumerate(self.modalities) if name != "id" or self.fuse]
        for row, (number, sequence) in enumerate(zip(self.used, self.sequences(batch), strict=True)):
            merged = number == len(self.domains)
            factor = self.config.lambda2 if merged else 1.0 if number == domain else self.config.lambda1
            for modality in range(len(self.modalities)):
                layer: Any = self.layers[row * len(self.modalities) + modality]
                items = self.inputs(modality, sequence.items)
                h = scale * F.normalize(layer.last_state(items, sequence.lengths).float(), dim=1)  # (B, d)
                weight = log_weights[row, modality] + torch.tensor(factor).log()
                # They share what the id leaves: 1 / (1 - alpha).
                others = log_weights[row, knowing].logsumexp(0)
                lift = math.log(self.config.new_items) - others
                bonus = lift if modality in knowing else torch.full_like(others, -torch.inf)
                yield Query(number, modality, h, weight, sequence.lengths == 0, bonus)

    def branches(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Iterator[Tensor]:
        """Yields what each branch adds to score (10), (B, C): sequence by sequence, modality by modality."""
        among, whole = self.candidates(domain), range(len(self.domains))
        tables = self.once("candidates", self.candidate_tables)
        here = self.met_items[self.learned[domain]] - among.start  # columns of what training met
        new = self.unmet[among if candidates is None else candidates]  # (C,) or (B, C)
        for number, modality, h, log_weight, silent, bonus in self.queries(batch, domain):
            table, met = tables[modality]
            if candidates is None:
                z = h @ table[among].T  # (2), (B, C)
                lse = (z if self.all_met else z[:, here]).logsumexp(1)
            else:
                z = torch.einsum("bd,bcd->bc", h, table[candidates])
                lse = log_partition(h, met[self.learned[domain]])
            if number == len(self.domains):  # its softmax is over the other domains, too
                for other in whole:
                    if other != domain:
                        lse = torch.logaddexp(lse, log_partition(h, met[self.learned[other]]))
            # (4-6) and their weight in one: an empty sequence says nothing.
            z.sub_((lse - log_weight).masked_fill(silent, torch.inf)[:, None])
            if not self.all_met:
                z.add_(torch.where(new, bonus, 0.0))
            yield z.exp_()

    def attention(self, batch: Batch) -> Tensor:
        """Returns what the last state of each branch attends to, (B, S, M, T), over the merged history.

        Each row over T sums to 1, or to 0 where the branch's sequence has no items.
        """
        rows, width = batch.items.shape
        found = torch.zeros(rows, len(self.used), len(self.modalities), width, device=batch.items.device)
        for row, number in enumerate(self.used):
            keep = slots(batch.lengths, batch.items.shape[1])
            if number < len(self.domains):
                among = self.candidates(number)
                keep &= (batch.items >= among.start) & (batch.items < among.stop)
            sequence = view(batch, keep)
            places = kept_first(keep)[:, : sequence.items.shape[1]]
            for modality in range(len(self.modalities)):
                layer: Any = self.layers[row * len(self.modalities) + modality]
                weights = layer.weights(self.inputs(modality, sequence.items), sequence.lengths)
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
        return total.clamp_(min=1e-30).log_()

    def shares(self, batch: Batch, domain: int, candidates: Tensor) -> Tensor:
        """Returns the share of each branch in the scores of candidates, (B, C, S, M), summing to 1.

        Where content is added to the ids' vectors, those of items that training never met are content alone:
        their ids' shares are said to be the modalities', by the length of what each adds.
        """
        parts = torch.stack(list(self.branches(batch, domain, candidates)), dim=2)  # (B, C, branches)
        shares = parts / parts.sum(2, keepdim=True).clamp(min=torch.finfo(parts.dtype).tiny)
        shares = shares.view(*shares.shape[:2], len(self.used), -1)
        if self.fuse and not self.all_met:
            adds = torch.zeros_like(shares[:, :, 0])  # (B, C, M)
            for name, project in self.fuse.items():
                rows = F.embedding(candidates, getattr(self, f"frozen_{name}"))
                adds[..., self.modalities.index(name)] = project(rows).norm(dim=2)
            new, number = self.unmet[candidates][..., None], self.modalities.index("id")  # (B, C, 1)
            adds = F.normalize(adds, p=1, dim=2) * new
            shares = shares + shares[..., number, None] * adds[:, :, None]
            shares[..., number].masked_fill_(new, 0.0)
        return shares

    def grow(self, catalogue: Catalogue, numbers: Tensor) -> HafVt:
        """Returns this model over a catalogue of more items, in evaluation mode; old scores stay as they are.

        Args:
            catalogue: the items of this model and new ones, which have a count of 0.
            numbers: (V,) the number in it of each item of this model.
        """
        grown, weights = HafVt(catalogue, self.config), self.state_dict()
        if "id" in self.modalities:
            rows = torch.zeros_like(grown.ids.weight)
            rows[numbers] = self.ids.weight
            weights["ids.weight"] = rows.detach()
        grown.load_state_dict(weights)
        return grown.eval()
