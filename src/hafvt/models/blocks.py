"""Layers that several models share: dropout, attention blocks, a GRU, a softmax over a domain."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.dataset import Domain
from hafvt.models.sequences import in_domain, last_states, valid_mask
from hafvt.ops.catalog_softmax import SoftmaxQuery, catalog_nll
from hafvt.ops.products import linear
from hafvt.ops.weights import total_weight


class Dropout(nn.Module):
    """Inverted dropout whose mask is cheap on a CPU.

    `torch.nn.functional.dropout` draws its mask on one core, value by value. On a CPU this layer takes its
    mask from random bytes, whose seed is one draw of torch's generator, so that a seed of torch fixes every
    bit. The rate is rounded to a multiple of 1/256.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """Return x with a share `rate` of its entries zeroed, the rest scaled up; in evaluation, return x."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.rate)
        threshold = max(1, round(self.rate * 256))
        seed = int(torch.randint(2**62, ()))
        values = np.frombuffer(np.random.Generator(np.random.SFC64(seed)).bytes(x.numel()), dtype=np.uint8)
        mask = torch.from_numpy(values >= threshold).to(x.dtype).mul_(256 / (256 - threshold))
        return x * mask.view(x.shape)


def causal_attention(
    q: Tensor, k: Tensor, v: Tensor, dropout: Dropout | None = None, bias: Tensor | None = None
) -> Tensor:
    """Return dropout(softmax(q k^T / sqrt(d) + bias + causal mask)) v, each (B, heads, T, d).

    The bias is (heads, T, T). As padding is on the right, no item attends to it. On a CPU, the explicit
    form's backward pass takes a quarter of the time of PyTorch's own attention (bfloat16, 20 items).
    """
    if q.is_cuda and bias is None and (dropout is None or not dropout.training or dropout.rate == 0):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)
    mask = torch.full((q.shape[2], q.shape[2]), -torch.inf, dtype=q.dtype, device=q.device).triu(1)
    if bias is not None:
        mask = mask + bias.to(q.dtype)
    p = torch.softmax((q * q.shape[3] ** -0.5) @ k.transpose(-1, -2) + mask, dim=-1)  # (B, heads, T, T)
    outputs: Tensor = (p if dropout is None else dropout(p)) @ v
    return outputs


class TrainedPositions(nn.Module):
    """Replaces positions beyond the longest training sequence by its last, as their weights are untrained.

    Test histories are longer than training histories by the targets that are held out.
    """

    last: Tensor
    """() the greatest position in training; -1 before training, when all positions are allowed."""

    def __init__(self, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length
        self.register_buffer("last", torch.tensor(-1))

    def forward(self, position: Tensor, lengths: Tensor) -> Tensor:
        """Return trained positions, of the same shape; in training, record the greatest in the sequences."""
        if self.training:
            self.last.copy_(torch.maximum(self.last, lengths.max() - 1))
        return torch.minimum(position, self.last % self.max_length)  # -1 % max_length: no limit


class PositionEmbedding(nn.Embedding):
    """A learned embedding of each position of a sequence; the latest item has position 0."""

    def __init__(self, max_length: int, width: int) -> None:
        super().__init__(max_length, width)
        self.trained = TrainedPositions(max_length)
        nn.init.normal_(self.weight, std=0.02)

    def from_latest(self, lengths: Tensor, width: int) -> Tensor:
        """Return the embeddings of right-padded sequences, (B,) -> (B, width, d)."""
        position = lengths[:, None] - 1 - torch.arange(width, device=lengths.device)
        embeddings: Tensor = self(self.trained(position.clamp(min=0), lengths))
        return embeddings


class Linear(nn.Linear):
    """`torch.nn.Linear` with the faster matrix product of `ops.products` in inference."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, (..., inputs) -> (..., outputs)."""
        return linear(x, self.weight, self.bias)


class PreNormBlock(nn.Module):
    """Pre-norm self-attention and feed-forward layer, each with a residual.

    x' = x + W_o attention(LN_1(x));  y = x' + W_2 gelu(W_1 LN_2(x'))

    With gates, both sub-layers are multiplied by functions of their input, as in LiGR (Borisyuk et al., 2025)
    and SwiGLU (Shazeer, 2020): x' = x + W_o (silu(W_a LN_1(x)) * attention(LN_1(x))), and the feed-forward
    layer is W_2 (silu(W_1 z) * W_3 z) with z = LN_2(x').

    Args:
        width: d; the feed-forward layer has 4 d hidden units, with gates 8/3 d.
        heads: number of attention heads.
        dropout: rate on the outputs of both sub-layers.
        max_distance: number of distances with a learned relative position bias (Raffel et al., 2020) per
            head; 0 for no bias.
        gated: whether the sub-layers have gates.
    """

    BIAS_SCALE = 10.0  # Adam moves a weight by at most the learning rate per step; the bias must move faster

    def __init__(
        self, width: int, heads: int, dropout: float, max_distance: int = 0, *, gated: bool = False
    ) -> None:
        super().__init__()
        self.heads = heads
        self.distances = nn.Parameter(torch.zeros(heads, max_distance)) if max_distance else None
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.project = Linear(width, 3 * width), Linear(width, width)
        hidden = 8 * width // 3 if gated else 4 * width
        self.inner, self.outer = Linear(width, hidden), Linear(hidden, width)
        self.dropout = Dropout(dropout)
        for layer in (self.qkv, self.project, self.inner, self.outer):
            nn.init.zeros_(layer.bias)
        for layer in (self.project, self.outer):
            nn.init.normal_(layer.weight, std=0.02)
        self.attention_gate = Linear(width, width) if gated else None  # W_a
        self.inner_gate = Linear(width, hidden) if gated else None  # W_3

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, T, d) -> (B, T, d)."""
        normed = self.norm1(x)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d / heads)
            for part in self.qkv(normed).chunk(3, dim=2)
        )
        position = torch.arange(x.shape[1], device=x.device)
        bias = self.position_bias(position[:, None] - position)  # (heads, T, T)
        attended = causal_attention(q, k, v, bias=bias).transpose(1, 2).flatten(2)  # (B, T, d)
        x = x + self.dropout(self.project(self.gate_attention(attended, normed)))
        return torch.add(x, self.dropout(self.feed_forward(x)))

    def gate_attention(self, attended: Tensor, normed: Tensor) -> Tensor:
        """Return what attention found, times its gate, (..., d), (..., d) -> (..., d)."""
        return attended if self.attention_gate is None else F.silu(self.attention_gate(normed)) * attended

    def feed_forward(self, x: Tensor) -> Tensor:
        """Return the output of the feed-forward layer, (..., d) -> (..., d)."""
        z = self.norm2(x)
        if self.inner_gate is None:
            return cast(Tensor, self.outer(F.gelu(self.inner(z))))
        return cast(Tensor, self.outer(F.silu(self.inner(z)) * self.inner_gate(z)))

    def position_bias(self, distance: Tensor) -> Tensor | None:
        """Return the bias on attention to an item at a distance back, (...) -> (heads, ...).

        In evaluation, distances beyond the longest training sequence, whose bias is still 0, have the last
        trained bias.
        """
        if self.distances is None:
            return None
        distance = distance.clamp(min=0)
        if not self.training:
            num_trained = self.distances.detach().ne(0).any(0).sum()
            distance = torch.minimum(distance, (num_trained - 1).clamp(min=0))
        return self.BIAS_SCALE * self.distances[:, distance]

    def last_state(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the output at the last item in evaluation, without the others, (B, T, d) -> (B, d).

        The value projection is applied to the attended inputs of each head, not to every item.
        """
        normed = self.norm1(x)
        mixed = self.attention_weights(normed, lengths) @ normed  # (B, heads, d)
        value, bias = self.qkv.weight.chunk(3)[2], self.qkv.bias.chunk(3)[2]
        value = value.view(self.heads, -1, x.shape[2])  # (heads, d / heads, d)
        attended = torch.einsum("bhd,hed->bhe", mixed, value).flatten(1) + bias  # (B, d)
        attended = self.gate_attention(attended, last_states(normed, lengths))
        x = last_states(x, lengths) + self.project(attended)
        return torch.add(x, self.feed_forward(x))

    def attention_weights(self, normed: Tensor, lengths: Tensor) -> Tensor:
        """Return the attention weights of the last item, (B, heads, T), zeros for an empty sequence.

        `normed`, (B, T, d), are normalized inputs. q . (K x + b) equals (K' q) . x plus a constant that the
        softmax cancels: the product with K is taken once per sequence, not once per item.
        """
        (query, key, _), (bias, _, _) = self.qkv.weight.chunk(3), self.qkv.bias.chunk(3)
        q = F.linear(last_states(normed, lengths), query, bias)  # (B, d)
        q = q.view(-1, self.heads, q.shape[1] // self.heads)  # (B, heads, d / heads)
        key_query = torch.einsum("bhe,hed->bhd", q * q.shape[2] ** -0.5, key.view(*q.shape[1:], -1))
        z = key_query @ normed.transpose(1, 2)  # (B, heads, T)
        position = torch.arange(normed.shape[1], device=lengths.device)
        position_bias = self.position_bias(lengths[:, None] - 1 - position)  # (heads, B, T)
        z = z if position_bias is None else z + position_bias.transpose(0, 1)
        mask = valid_mask(lengths, normed.shape[1])[:, None]
        return torch.softmax(z.masked_fill(~mask, -torch.inf), dim=2).nan_to_num(0.0)


class SasRecBlock(nn.Module):
    """The block of the SASRec paper, which normalizes the query alone and adds it as the residual.

    q = LN_1(x);  y = LN_2(softmax(q W_q (x W_k)^T / sqrt(d / heads)) x W_v + q)  (4), (5)
    x' = relu(y W_1) W_2 + y                                                       (6) to (8)
    Dropout acts on attention weights and both feed-forward layers, whose hidden width is d, too.
    `project` adds the output projection of PyTorch's attention, as C2DSR does.
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
        """Return the block's output, (B, T, d) -> (B, T, d)."""
        normed = self.norm1(x)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)  # (B, heads, T, d / heads)
            for part in (self.query(normed), self.key(x), self.value(x))
        )
        attended = causal_attention(q, k, v, self.dropout).transpose(1, 2).flatten(2)  # (B, T, d)
        y = self.norm2(self.project(attended) + normed)
        return torch.add(y, self.dropout(self.outer(self.dropout(torch.relu(self.inner(y))))))


def blend(start: Tensor, end: Tensor, weight: Tensor) -> Tensor:
    """Return start + weight * (end - start) in the wider of the two dtypes, which differ under autocast."""
    dtype = torch.promote_types(start.dtype, end.dtype)
    return torch.lerp(start.to(dtype), end.to(dtype), weight.to(dtype))


def split_layer(layer: nn.Linear, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """Split layer([x; h]) into W_x x + b of each of T steps, (B, out) each, and the transpose of W_h.

    So a recurrence over x, (B, T, inputs), multiplies only its state h, (B, d), with W_h at each step.
    """
    inputs = x.shape[2]
    return F.linear(x, layer.weight[:, :inputs], layer.bias).unbind(1), layer.weight[:, inputs:].T


class ResetFirstGru(nn.Module):
    """A GRU that resets the state before the product, as its first paper and TensorFlow 1 do.

    [r; u] = sigmoid([x; h] W_g + b_g);  c = tanh([x; r * h] W_c + b_c);  h' = u * h + (1 - u) * c
    PyTorch's own GRU resets after the product. Gate biases start at 1, so that the state persists at first.
    """

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.gates = nn.Linear(inputs + width, 2 * width)
        self.candidate = nn.Linear(inputs + width, width)
        nn.init.xavier_normal_(self.gates.weight)
        nn.init.xavier_normal_(self.candidate.weight)
        nn.init.ones_(self.gates.bias)
        nn.init.zeros_(self.candidate.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return the state after each input, (B, T, inputs) -> (B, T, width)."""
        (gates, w_g), (candidates, w_c) = split_layer(self.gates, x), split_layer(self.candidate, x)
        h, states = w_c.new_zeros(len(x), len(w_c)), []  # float32 under autocast
        for gate, candidate in zip(gates, candidates, strict=True):
            r, u = torch.sigmoid(torch.addmm(gate, h, w_g)).chunk(2, dim=1)
            c = torch.tanh(torch.addmm(candidate, r * h, w_c))
            h = blend(c, h, u)
            states.append(h)
        return torch.stack(states, dim=1)


class DomainSoftmax(nn.Linear):
    """The softmax layer over the items of one domain, softmax(W h + b), for states h of a width."""

    def __init__(self, width: int, domain: Domain) -> None:
        super().__init__(width, len(domain))
        self.domain = domain

    def query(
        self, h: Tensor, targets: Tensor, weights: Tensor | None = None
    ) -> tuple[list[SoftmaxQuery], Tensor]:
        """Return the arguments of a catalog softmax at target items, for states, (N, width), with weights."""
        table = torch.cat([self.weight, self.bias[:, None]], dim=1)  # the bias is one more column of W
        h = F.pad(h.float(), (0, 1), value=1.0)
        weight = 1.0 if weights is None else weights
        return [SoftmaxQuery(h, targets - self.domain.start, slice(0, len(table)), weight)], table

    def scores(self, h: Tensor, candidates: Tensor | None) -> Tensor:
        """Return W h + b of all items of the domain or of candidates, (B, width) -> (B, C)."""
        if candidates is None:
            return linear(h, self.weight, self.bias)
        rows = candidates - self.domain.start
        return torch.einsum("bd,bcd->bc", h, self.weight[rows]) + self.bias[rows]


class DomainSoftmaxes(nn.ModuleList):
    """A `DomainSoftmax` for each domain."""

    def __init__(self, width: int, domains: tuple[Domain, ...]) -> None:
        super().__init__(DomainSoftmax(width, domain) for domain in domains)

    def mean_nll(
        self,
        states: Sequence[Tensor],
        targets: Tensor,
        dropout: Dropout | None = None,
        weights: Tensor | None = None,
    ) -> Tensor:
        """Return the mean of -log softmax at target items, (N,), each over the items of its domain.

        `states` has the states of each domain, (N, width); `dropout` acts on those before its targets. The
        mean is over the targets of all processes, see `ops.collectives`, with `weights`, (N,), if given.
        """
        count = total_weight(len(targets), weights)
        total = states[0].float().sum() * 0  # has a gradient without targets, too
        output: Any
        for output, h in zip(self, states, strict=True):
            is_in_domain = in_domain(targets, output.domain)
            if is_in_domain.any():
                h = h[is_in_domain] if dropout is None else dropout(h[is_in_domain])
                part = None if weights is None else weights[is_in_domain]
                total = total + catalog_nll(*output.query(h, targets[is_in_domain], part))
        return total / count

    def scores(self, domain: int, h: Tensor, candidates: Tensor | None) -> Tensor:
        """See `DomainSoftmax.scores`."""
        output: Any = self[domain]
        scores: Tensor = output.scores(h, candidates)
        return scores


def init_xavier(layer: Any) -> None:
    """Initialize a linear layer: weights by Xavier's normal distribution, the bias by zeros."""
    nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
