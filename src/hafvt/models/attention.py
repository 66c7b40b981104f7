"""How HAF-VT reads a sequence: an encoder that its branches share, and the attention of each branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.models.layers import Dropout, causal_attention, last, slots
from hafvt.models.sasrec import Block


class Encoder(nn.Module):
    """Blocks of self-attention, as SASRec's: what a sequence's branches attend to.

    Args:
        width: d.
        blocks: how many.
        positions: how many have a learned vector of their own; 0 for none.
        dropout: its rate, on the input and in the blocks.
    """

    HEADS = 2

    def __init__(self, width: int, blocks: int, positions: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, width)) if positions else None
        heads = self.HEADS if width % self.HEADS == 0 else 1
        self.blocks = nn.ModuleList(Block(width, heads, dropout) for _ in range(blocks))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the state after each item, (B, T, d) -> (B, T, d)."""
        x = self.enter(x)
        x = self.dropout(x if self.positions is None else x + self.positions[: x.shape[1]])
        for block in self.blocks:
            x = block(x)
        states: Tensor = self.norm(x)
        return states


class AttentionLayer(nn.Module):
    """The attention layer of one branch of HAF-VT, equations (1) and (3).

    Args:
        inputs: c, the width of what is attended to.
        width: d, that of its modality's vectors.
        positions: how many have a learned vector of their own; 0 for none.
        residual: adds the item's own vector, through a learned matrix.
        dropout: its rate, on what is attended to and on what comes of it.
    """

    def __init__(self, inputs: int, width: int, positions: int, residual: bool, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(inputs, 3 * width)
        self.own = nn.Linear(inputs, width, bias=False) if residual else None
        self.positions = nn.Parameter(torch.zeros(positions, inputs)) if positions else None
        self.dropout = Dropout(dropout)

    def start_small(self, through: bool) -> None:
        """Lets attention add little at first: what comes in goes out, if it shall go `through`."""
        value = slice(2 * self.qkv.out_features // 3, None)
        with torch.no_grad():
            self.qkv.weight[value].normal_(std=0.02)
            self.qkv.bias[value].zero_()
            if self.own is not None and through:
                nn.init.eye_(self.own.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns H of (1), (B, T, c) -> (B, T, d)."""
        q, k, v = self.qkv(self.dropout(self.attended(x)))[:, None].chunk(3, dim=3)  # (B, 1, T, d) each
        h = self.dropout(causal_attention(q, k, v)[:, 0])
        return h if self.own is None else torch.add(self.own(x), h)

    def weights(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns what the last real slot attends to, (B, T, c) -> (B, T); zeros in rows without items.

        q . (K x + b) = (K' q) . x + q . b, of which the last part is the same for all slots and falls out of
        the softmax: one product with K per row in place of one per item.
        """
        attended = self.attended(x)
        (q_of, k_of, _), (q_bias, _, _) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q = F.linear(last(attended, lengths), q_of, q_bias)  # (B, d)
        z = torch.einsum("bc,btc->bt", q * q.shape[1] ** -0.5 @ k_of, attended)
        real = slots(lengths, x.shape[1])
        return torch.softmax(z.masked_fill(~real, -torch.inf), dim=1).nan_to_num(0.0)

    def last_state(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the last state of (1) in evaluation, (B, T, c) -> (B, d), without all the others."""
        mixed = torch.einsum("bt,btc->bc", self.weights(x, lengths), self.attended(x))
        h = F.linear(mixed, self.qkv.weight.chunk(3)[2], self.qkv.bias.chunk(3)[2])
        return h if self.own is None else torch.add(self.own(last(x, lengths)), h)

    def attended(self, x: Tensor) -> Tensor:
        """Returns what is attended to: the items and their positions, (B, T, c) -> (B, T, c)."""
        return x if self.positions is None else x + self.positions[: x.shape[1]]
