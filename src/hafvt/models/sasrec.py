"""SASRec on the merged history.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018. The default departs from the paper and
its code wherever that makes the yardstick stronger or plainer:

* loss: cross-entropy over all items of all domains instead of binary cross-entropy against one drawn item;
* both inputs of a block's sub-layers are normalized (pre-norm) instead of the query alone;
* attention has an output projection, the feed-forward part is four times as wide and uses GELU;
* positions count from the oldest item, and item vectors enter normalized: as small as they start, what
  untrained blocks add would drown which item it is;
* for the same reason what a block adds starts small.

`paper_blocks=True` and `loss="binary"`, together the preset "paper", take all of that back: then states
and loss are those of the authors' code, but for two things that change no figure of theirs: histories are
right-padded, so that a causal mask is all there is, and the drawn item is one of the target's domain.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout, causal_attention, last, next_items, slots
from hafvt.models.configs import SasRecConfig
from hafvt.ops.catalog_softmax import SoftmaxQuery, mean_nll
from hafvt.ops.embedding import embedding_lookup
from hafvt.ops.sampled_softmax import sample_items, sampled_log_probabilities


class OriginalBlock(nn.Module):
    """The paper's block: the query alone is normalized, and the residual adds it so.

    q = LN_1(x);  y = LN_2(softmax(q W_q (x W_k)^T / sqrt(d / heads)) x W_v + q)  (4), (5)
    x' = relu(y W_1) W_2 + y                                                       (6) to (8)

    Args:
        width: d, also of the feed-forward part.
        heads: of the attention.
        dropout: its rate, on attention weights, inner and outer.
        project: adds the output projection of PyTorch's attention, as C2DSR and others do.
    """

    def __init__(self, width: int, heads: int, dropout: float, project: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width) if project else nn.Identity()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, (B, T, d) -> (B, T, d)."""
        normed = self.norm1(x)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d / heads)
            for part in (self.query(normed), self.key(x), self.value(x))
        )
        found = causal_attention(q, k, v, self.dropout).transpose(1, 2).flatten(2)
        y = self.norm2(self.project(found) + normed)
        return torch.add(y, self.dropout(self.outer(self.dropout(torch.relu(self.inner(y))))))


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a residual.

    Args:
        width: d.
        heads: of the attention.
        dropout: its rate, on both sub-layers' outputs.
        distances: for so many distances, from 0 on, each head learns what attention adds to an item that lies
            so far back (a relative position bias, Raffel et al., 2020); 0 for none. SASRec has none.
    """

    SWIFT = 10.0  # Adam moves a weight by the learning rate at most; what attention adds has to move faster

    def __init__(self, width: int, heads: int, dropout: float, distances: int = 0) -> None:
        super().__init__()
        self.heads = heads
        self.distances = nn.Parameter(torch.zeros(heads, distances)) if distances else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)
        for layer in (self.qkv, self.project, self.inner, self.outer):
            nn.init.zeros_(layer.bias)
        for layer in (self.project, self.outer):
            nn.init.normal_(layer.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, (B, T, d) -> (B, T, d)."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d / heads)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        place = torch.arange(x.shape[1], device=x.device)
        found = causal_attention(q, k, v, bias=self.bias(place[:, None] - place)).transpose(1, 2).flatten(2)
        x = x + self.dropout(self.project(found))
        return torch.add(x, self.dropout(self.outer(nn.functional.gelu(self.inner(self.norm2(x))))))

    def bias(self, back: Tensor) -> Tensor | None:
        """Returns what attention adds to items so far back, (...) -> (heads, ...); later ones are masked."""
        return None if self.distances is None else self.SWIFT * self.distances[:, back.clamp(min=0)]

    def last_state(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the output at the last real slot in evaluation, (B, T, d) -> (B, d).

        Without all the others: values are made of what each head attends to, not of every item.
        """
        normed = self.norm1(x)
        mixed = self.weights(normed, lengths) @ normed  # (B, heads, d)
        value, bias = self.qkv.weight.chunk(3)[2], self.qkv.bias.chunk(3)[2]
        found = torch.einsum("bhd,hed->bhe", mixed, value.view(self.heads, -1, x.shape[2])).flatten(1) + bias
        x = last(x, lengths) + self.project(found)
        return torch.add(x, self.outer(nn.functional.gelu(self.inner(self.norm2(x)))))

    def weights(self, normed: Tensor, lengths: Tensor) -> Tensor:
        """Returns what the last real slot attends to, of normed inputs, (B, T, d) -> (B, heads, T).

        Zeros in rows without items. As in `AttentionLayer.weights`, keys are not made.
        """
        (query, key, _), (bias, _, _) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q = F.linear(last(normed, lengths), query, bias)  # (B, d)
        q = q.view(-1, self.heads, q.shape[1] // self.heads)  # (B, heads, d / heads)
        asked = torch.einsum("bhe,hed->bhd", q * q.shape[2] ** -0.5, key.view(*q.shape[1:], -1))
        z = asked @ normed.transpose(1, 2)  # (B, heads, T)
        place = torch.arange(normed.shape[1], device=lengths.device)
        nearness = self.bias(lengths[:, None] - 1 - place)  # (heads, B, T)
        z = z if nearness is None else z + nearness.transpose(0, 1)
        real = slots(lengths, normed.shape[1])[:, None]
        return torch.softmax(z.masked_fill(~real, -torch.inf), dim=2).nan_to_num(0.0)


class SasRec(Model):
    """Self-attention over the merged history; an item's score is the dot product with the last state."""

    popularity: Tensor

    def __init__(self, item_features: ItemFeatures, config: SasRecConfig) -> None:
        super().__init__()
        self.config, self.domains = config, item_features.domains
        self.max_length = config.max_length
        self.register_buffer("popularity", item_features.train_counts, persistent=False)
        self.items = nn.Embedding(len(item_features), config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.enter = nn.Identity() if config.paper_blocks else nn.LayerNorm(config.width)
        self.dropout = Dropout(config.dropout)
        block = OriginalBlock if config.paper_blocks else Block
        self.blocks = nn.ModuleList(
            block(config.width, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-8 if config.paper_blocks else 1e-5)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def states(self, items: Tensor, lengths: Tensor) -> Tensor:
        """Returns the state after each item, from the items' vectors, (B, T, d) -> (B, T, d)."""
        if self.config.paper_blocks:  # the latest item stands at the last position
            place = torch.arange(items.shape[1], device=items.device) - lengths[:, None]  # (B, T)
            x = items * self.config.width**0.5 + self.positions(place % self.max_length)
        else:
            x = self.enter(items) + self.positions.weight[: items.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed

    def loss(self, batch: Batch) -> Tensor:
        """The mean of the chosen loss over all real positions.

        catalog: -log softmax(h_t E^T) at the next item.
        binary: -log sigmoid(h_t . e) - log(1 - sigmoid(h_t . e')), e' drawn from the rest of its domain.
        """
        inputs, mask, targets = next_items(batch)
        table, (items,) = embedding_lookup(self.items.weight, inputs.items)  # (V, d), (B, T, d)
        h = self.states(items, inputs.lengths)[mask]  # (N, d)
        if self.config.loss == "catalog" and self.config.num_negatives:
            whole = slice(0, len(table))
            sample = sample_items(self.popularity, whole, self.config.num_negatives)
            (log_p,) = sampled_log_probabilities([SoftmaxQuery(h, targets, whole)], [sample], table)
            return -log_p.sum() / max(len(log_p), 1)
        if self.config.loss == "catalog":
            return mean_nll(h, table, targets)
        drawn = unseen(batch, batch.items[:, 1:], self.domains)[mask]
        wins, loses = ((h * table[item]).sum(1) for item in (targets, drawn))  # (N,)
        return (F.softplus(-wins) + F.softplus(loses)).mean()

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: h . E[item]."""
        h = last(self.states(self.items(batch.items), batch.lengths), batch.lengths).float()  # (B, d)
        if candidates is not None:
            return torch.einsum("bd,bcd->bc", h, self.items(candidates))
        chosen = self.domains[domain]
        return h @ self.items.weight[chosen.start : chosen.stop].T


def unseen(batch: Batch, targets: Tensor, domains: tuple[Domain, ...]) -> Tensor:
    """Draws, for each target, an item of its domain that its sequence does not hold, each as likely.

    Args:
        batch: whole sequences.
        targets: (B, T) items.
        domains: of the item_features. One that a sequence holds whole gives its last item.

    Returns:
        (B, T)
    """
    drawn = torch.zeros_like(targets)
    real = slots(batch.lengths, batch.items.shape[1])
    for domain in domains:
        seen = batch.items.masked_fill(~real | (batch.items < domain.start), domain.stop).sort(1).values
        again = F.pad(seen[:, 1:] == seen[:, :-1], (1, 0)) | (seen >= domain.stop)
        seen = seen.masked_fill(again, domain.stop).sort(1).values  # (B, T') distinct, then the domain's end
        rest = (len(domain) - (seen < domain.stop).sum(1)).clamp(min=1)[:, None]  # (B, 1)
        number = (torch.rand(targets.shape, device=targets.device) * rest).long().clamp(max=rest - 1)
        # The n-th unseen item lies behind as many seen ones as have at most n unseen ones before them.
        before = seen - domain.start - torch.arange(seen.shape[1], device=seen.device)
        before = before.masked_fill(seen >= domain.stop, len(domain))
        item = domain.start + number + torch.searchsorted(before, number, right=True)
        here = (targets >= domain.start) & (targets < domain.stop)
        drawn = torch.where(here, item.clamp(max=domain.stop - 1), drawn)
    return drawn
