"""How HAF-VT reads a sequence: an encoder whose states its branches share, or an attention of each branch.

All states for training, the last one alone for scores.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.models.blocks import Dropout, PreNormBlock, causal_attention
from hafvt.models.sequences import last_states, valid_mask


class SequenceEncoder(nn.Module):
    """Blocks of self-attention, as SASRec's.

    Args:
        width: d.
        blocks: how many, one at least.
        positions: how many have a learned vector of their own; 0 for none.
        distances: see `PreNormBlock`.
        dropout: its rate, on the input and in the blocks.
    """

    HEADS = 2

    def __init__(self, width: int, blocks: int, positions: int, distances: int, dropout: float) -> None:
        super().__init__()
        self.enter, self.norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.positions = nn.Parameter(0.02 * torch.randn(positions, width)) if positions else None
        heads = self.HEADS if width % self.HEADS == 0 else 1
        self.earlier = nn.ModuleList(
            PreNormBlock(width, heads, dropout, distances) for _ in range(blocks - 1)
        )
        self.latest = PreNormBlock(width, heads, dropout, distances)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the state after each item, (B, T, d) -> (B, T, d)."""
        states: Tensor = self.norm(self.latest(self.attended(x)))
        return states

    def last_state(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the state at each row's last real slot, (B, T, d) -> (B, d), without all the others."""
        state: Tensor = self.norm(self.latest.last_state(self.attended(x), lengths))
        return state

    def weights(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns what the last real slot attends to, (B, T, d) -> (B, T); zeros in rows without items.

        In the latest block, the mean of its heads.
        """
        return self.latest.attention_weights(self.latest.norm1(self.attended(x)), lengths).mean(1)

    def attended(self, x: Tensor) -> Tensor:
        """Returns what enters the latest block, (B, T, d) -> (B, T, d)."""
        x = self.enter(x)
        x = self.dropout(x if self.positions is None else x + self.positions[: x.shape[1]])
        for block in self.earlier:
            x = block(x)
        return x


class AttentionLayer(nn.Module):
    """The attention layer of one branch of HAF-VT, equations (1) and (3).

    Args:
        width: d.
        positions: how many have a learned vector of their own; 0 for none.
        residual: adds the item's own vector, through a learned matrix.
        dropout: its rate, on what is attended to and on what comes of it.
    """

    def __init__(self, width: int, positions: int, residual: bool, dropout: float) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.own = nn.Linear(width, width, bias=False) if residual else None
        self.positions = nn.Parameter(torch.zeros(positions, width)) if positions else None
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Returns H of (1), (B, T, d) -> (B, T, d)."""
        q, k, v = self.qkv(self.dropout(self.attended(x)))[:, None].chunk(3, dim=3)  # (B, 1, T, d) each
        h = self.dropout(causal_attention(q, k, v)[:, 0])
        return h if self.own is None else torch.add(self.own(x), h)

    def weights(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns what the last real slot attends to, (B, T, d) -> (B, T); zeros in rows without items.

        q . (K x + b) = (K' q) . x + q . b, of which the last part is the same for all slots and falls out of
        the softmax: one product with K per row in place of one per item.
        """
        attended = self.attended(x)
        (q_of, k_of, _), (q_bias, _, _) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q = F.linear(last_states(attended, lengths), q_of, q_bias) * x.shape[2] ** -0.5  # (B, d)
        z = torch.einsum("bd,btd->bt", q @ k_of, attended)
        real = valid_mask(lengths, x.shape[1])
        return torch.softmax(z.masked_fill(~real, -torch.inf), dim=1).nan_to_num(0.0)

    def last_state(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Returns the last state of (1) in evaluation, (B, T, d) -> (B, d), without all the others."""
        mixed = torch.einsum("bt,btd->bd", self.weights(x, lengths), self.attended(x))
        h = F.linear(mixed, self.qkv.weight.chunk(3)[2], self.qkv.bias.chunk(3)[2])
        return h if self.own is None else torch.add(self.own(last_states(x, lengths)), h)

    def attended(self, x: Tensor) -> Tensor:
        """Returns what is attended to: the items and their positions, (B, T, d) -> (B, T, d)."""
        return x if self.positions is None else x + self.positions[: x.shape[1]]
