"""The encoder of HAF-VT: a Transformer over one sequence."""

from __future__ import annotations

from torch import Tensor, nn

from hafvt.models.blocks import Dropout, PreNormBlock
from hafvt.models.request_date import RequestDateOffset


class SequenceEncoder(nn.Module):
    """A Transformer with relative position bias over one sequence.

    Args:
        width: d.
        blocks: number of `PreNormBlock`s, at least 1.
        heads: number of attention heads per block.
        dropout: rate on the input and in the blocks.
        max_length: length of the longest sequence.
        time_knots: for states that depend on the time of the request; see `RequestDateOffset`.
        gated: whether the blocks have gates.
    """

    def __init__(
        self,
        width: int,
        blocks: int,
        heads: int,
        dropout: float,
        max_length: int,
        time_knots: Tensor | None = None,
        *,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.time_offset = None if time_knots is None else RequestDateOffset(time_knots, width)
        self.input_norm, self.output_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = Dropout(dropout)
        *earlier, self.last_block = (
            PreNormBlock(width, heads, dropout, max_length, gated=gated) for _ in range(blocks)
        )
        self.earlier_blocks = nn.Sequential(*earlier)

    def forward(self, x: Tensor, times: Tensor | None = None) -> Tensor:
        """Return the state after each item, (B, T, d) -> (B, T, d).

        `times`, (B, T), has the time at which the item after it is to be predicted.
        """
        x = self.earlier_blocks(self.dropout(self.input_norm(x)))
        states: Tensor = self.output_norm(self.last_block(x))
        return states if self.time_offset is None else states + self.time_offset(times)

    def last_state(self, x: Tensor, lengths: Tensor, times: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the state after the last item, (B, d), and its attention in the last block, (B, T).

        `times`, (B,), has the time at which the next item is to be predicted. The attention is the mean over
        heads; it sums to 1, or to 0 for an empty sequence.
        """
        x = self.earlier_blocks(self.dropout(self.input_norm(x)))
        attention = self.last_block.attention_weights(self.last_block.norm1(x), lengths).mean(1)
        state: Tensor = self.output_norm(self.last_block.last_state(x, lengths))
        return state if self.time_offset is None else state + self.time_offset(times), attention
