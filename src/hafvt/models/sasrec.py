"""SASRec on the merged history, trained with cross-entropy over the whole catalogue.

Kang and McAuley, Self-Attentive Sequential Recommendation, ICDM 2018. Departures from the paper and its code,
each because it makes the yardstick stronger or plainer:

* loss: cross-entropy over all items of all domains instead of binary cross-entropy against one drawn item;
* both inputs of a block's sub-layers are normalised (pre-norm) instead of the query alone;
* attention has an output projection, the feed-forward part is four times as wide and uses GELU;
* histories are right-padded, so a causal mask is all the masking there is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.catalogue import Catalogue
from hafvt.models.base import Model
from hafvt.models.layers import Dropout, causal_attention, last, next_items
from hafvt.ops.catalogue_softmax import target_log_probability
from hafvt.ops.lookup import look_up


@dataclass(frozen=True)
class SasRecConfig:
    """Hyperparameters of SASRec."""

    max_length: int = 50
    """Longest history, in items; older ones are cut."""
    width: int = 128
    """Width d of items and states."""
    blocks: int = 2
    """Number of self-attention blocks."""
    heads: int = 2
    """Attention heads per block."""
    dropout: float = 0.3
    """Dropout rate on the input and on both sub-layers' outputs."""


class Block(nn.Module):
    """Pre-norm self-attention and feed-forward, each with a residual."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.inner, self.outer = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output, (B, T, d) -> (B, T, d)."""
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d / heads)
            for part in self.qkv(self.norm1(x)).chunk(3, dim=2)
        )
        x = x + self.dropout(self.project(causal_attention(q, k, v).transpose(1, 2).flatten(2)))
        return torch.add(x, self.dropout(self.outer(nn.functional.gelu(self.inner(self.norm2(x))))))


class SasRec(Model):
    """Self-attention over the merged history; an item's score is the dot product with the last state."""

    def __init__(self, catalogue: Catalogue, config: SasRecConfig) -> None:
        super().__init__()
        self.config, self.domains = config, catalogue.domains
        self.max_length = config.max_length
        self.items = nn.Embedding(len(catalogue), config.width)
        self.positions = nn.Embedding(config.max_length, config.width)
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(
            Block(config.width, config.heads, config.dropout) for _ in range(config.blocks)
        )
        self.norm = nn.LayerNorm(config.width)
        nn.init.normal_(self.items.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def states(self, items: Tensor) -> Tensor:
        """Returns the state after each item, from the items' vectors, (B, T, d) -> (B, T, d)."""
        x = items + self.positions.weight[: items.shape[1]]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x)
        normed: Tensor = self.norm(x)
        return normed

    def loss(self, batch: Batch) -> Tensor:
        """Mean of -log softmax(h_t E^T) at the next item, over all real positions."""
        inputs, mask, targets = next_items(batch)
        table, (items,) = look_up(self.items.weight, inputs.items)  # (V, d), (B, T, d)
        h = self.states(items)[mask]  # (N, d)
        return -target_log_probability(h, table, targets).mean()

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: h . E[item]."""
        h = last(self.states(self.items(batch.items)), batch.lengths).float()  # (B, d)
        if candidates is not None:
            return torch.einsum("bd,bcd->bc", h, self.items(candidates))
        chosen = self.domains[domain]
        return h @ self.items.weight[chosen.start : chosen.stop].T
