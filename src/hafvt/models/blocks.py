"""What several models share: pairs of history and next item, views of one domain, last states, a GRU."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch, round_up_width


def slots(lengths: Tensor, width: int) -> Tensor:
    """Returns which slots of right-padded rows are real, (B, width) bool."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def next_items(batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    """Splits sequences into inputs and the items that follow.

    Returns:
        The inputs s_1..s_{n-1} as a batch of width T-1; the mask (B, T-1) of real inputs; the targets
        s_2..s_n under that mask, (N,).
    """
    inputs = Batch(batch.items[:, :-1], (batch.lengths - 1).clamp(min=0))
    mask = slots(inputs.lengths, inputs.items.shape[1])
    return inputs, mask, batch.items[:, 1:][mask]


def drawn_prefixes(batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Draws prefixes of sequences that have a next item: `count` of each row or all it has, each as likely.

    Returns:
        The row (N,) and the last slot (N,) of each, both ascending.
    """
    places = slots((batch.lengths - 1).clamp(min=0), batch.items.shape[1] - 1)  # (B, T-1)
    # Of each row those with the lowest random numbers.
    chance = torch.rand(places.shape, device=places.device).masked_fill(~places, 2.0)
    row, slot = ((chance.argsort(1).argsort(1) < count) & places).nonzero(as_tuple=True)
    return row, slot


def view(batch: Batch, keep: Tensor) -> Batch:
    """Returns the sub-sequences of the kept items, in their order, again right-padded.

    Args:
        batch: sequences.
        keep: (B, T) bool; slots beyond a row's length count as not kept.
    """
    keep = keep & slots(batch.lengths, batch.items.shape[1])
    lengths = keep.sum(1)
    width = keep.shape[1]
    if not torch.compiler.is_exporting():  # a graph's shapes cannot depend on what is kept
        width = min(round_up_width(max(int(lengths.max()), 1)), width)
    order = kept_first(keep)[:, :width]  # (B, width)
    return Batch(batch.items.gather(1, order).masked_fill(~slots(lengths, width), 0), lengths)


def kept_first(keep: Tensor) -> Tensor:
    """Returns the slots of each row in their order, the kept ones before the others, (B, T)."""
    if torch.compiler.is_exporting():  # ONNX sorts neither bytes nor stably
        width = keep.shape[1]
        return torch.argsort(torch.arange(width, device=keep.device) + width * (~keep).long(), dim=1)
    return torch.argsort((~keep).to(torch.uint8), dim=1, stable=True)


def last(states: Tensor, lengths: Tensor) -> Tensor:
    """Returns the state at each row's last real slot, (B, T, d) -> (B, d).

    A row of length 0 has no state: it gives zeros, so that every item scores alike.
    """
    index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, index)[:, 0] * (lengths > 0)[:, None]


def known(states: Tensor, counts: Tensor) -> Tensor:
    """Returns, for each slot, the state after so many items, zeros after none.

    Args:
        states: (B, S, d).
        counts: (B, T) from 0 to S.

    Returns:
        (B, T, d)
    """
    padded = F.pad(states, (0, 0, 1, 0))
    return padded.gather(1, counts[:, :, None].expand(-1, -1, states.shape[2]))


def blend(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Returns start + weight * (end - start) in the wider of the two dtypes, which differ under autocast."""
    dtype = torch.promote_types(start.dtype, end.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype))


class ResetFirstGru(nn.Module):
    """A GRU that resets the state before the product, as its first paper and TensorFlow 1 do.

    [r; u] = sigmoid([x; h] W_g + b_g);  c = tanh([x; r * h] W_c + b_c);  h' = u * h + (1 - u) * c
    (torch's own resets after the product.) Gate biases start at 1, so that a state is kept at first.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.gates = nn.Linear(inputs + width, 2 * width)
        self.candidate = nn.Linear(inputs + width, width)
        nn.init.xavier_normal_(self.gates.weight)
        nn.init.xavier_normal_(self.candidate.weight)
        nn.init.ones_(self.gates.bias)
        nn.init.zeros_(self.candidate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the state after each input, (B, T, inputs) -> (B, T, width)."""
        w_g, w_c = self.gates.weight, self.candidate.weight
        gates = F.linear(x, w_g[:, : self.inputs], self.gates.bias).unbind(1)  # T times (B, 2 width)
        candidates = F.linear(x, w_c[:, : self.inputs], self.candidate.bias).unbind(1)
        w_g, w_c = w_g[:, self.inputs :].T, w_c[:, self.inputs :].T
        h, states = w_c.new_zeros(len(x), w_c.shape[1]), []  # kept in float32 under autocast
        for gate, candidate in zip(gates, candidates, strict=True):
            r, u = torch.sigmoid(torch.addmm(gate, h, w_g)).chunk(2, dim=1)
            c = torch.tanh(torch.addmm(candidate, r * h, w_c))
            h = blend(c, h, u)
            states.append(h)
        return torch.stack(states, dim=1)


class Dropout(nn.Module):
    """Inverted dropout whose mask is cheap on a CPU.

    `torch.nn.functional.dropout` draws its mask on one core, value by value, which took 29 % of a training
    step; here the mask comes from random bytes, whose seed is one draw of torch's generator, so seeding
    torch still fixes every bit. The rate is rounded to a multiple of 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Returns x with a share `rate` of its entries zeroed, the rest scaled up; in evaluation x itself."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        threshold = max(1, round(self.rate * 256))
        seed = int(torch.randint(2**62, ()))
        draws = np.frombuffer(np.random.Generator(np.random.SFC64(seed)).bytes(x.numel()), dtype=np.uint8)
        kept = torch.from_numpy(draws >= threshold).to(x.dtype).mul_(256 / (256 - threshold))
        return x * kept.view(x.shape)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: Dropout | None = None, bias: Tensor | None = None
) -> Tensor:
    """Returns dropout(softmax(q k^T / sqrt(d) + bias + causal mask)) v, each (B, heads, T, d).

    The bias is (heads, T, T). With right padding no further mask is needed: a real slot never looks ahead, so
    it never meets padding.
    Written out, as on a CPU the backward pass of PyTorch's own attention takes four times as long in bfloat16
    for histories of 20 items, and as long in float32.
    """
    if q.is_cuda and bias is None and (dropout is None or not dropout.training or dropout.rate == 0):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    late = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    if bias is not None:
        late = late + bias.to(q.dtype)
    p = torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(-1, -2) + late, dim=-1)  # (B, heads, T, T)
    found: Tensor = (p if dropout is None else dropout(p)) @ v
    return found
