"""PSJNet-II: the parallel split-and-join network of two domains.

Sun and others, Parallel Split-Join Networks for Shared Account Cross-domain Sequential Recommendations, IEEE
TKDE 2023 (PSJNet-I is pi-Net: pinet.py). Each latent user of an account has a state of its own ("split").
Attention joins the transferred states of all latent users, first over time, then over users ("join").
Departures from the authors' code, beside those that pinet.py names:

* the joins are computed for every prefix at once: the best match of a transferred state with the states of
  the predicted domain so far is a running maximum;
* the overflow guard of the softmax ignores padding.

The model is defined for two domains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.blocks import split_layer
from hafvt.models.configs import PsjNetConfig
from hafvt.models.sequences import (
    DomainSequence,
    masked_softmax,
    next_items,
    states_after,
    target_weights,
    with_min_width,
)
from hafvt.models.shared_account import SharedAccountModel

EPSILON = 1e-10  # of the authors' code


class PsjNetStates(NamedTuple):
    """The encoded parts of merged histories, by domain."""

    sequences: list[DomainSequence]
    states: list[Tensor]
    """(B, T_d, d) state after each item."""
    transferred: list[Tensor]
    """(B, K, T_d, d) state that each latent user transfers to the other domain."""


class SplitUnit(nn.Module):
    """The split unit: a state for each latent user, and a gate g for an item that belongs to no user."""

    def __init__(self, config: PsjNetConfig) -> None:
        super().__init__()
        d, k = config.width, config.latent_users
        self.filter, self.candidate = nn.Linear(3 * d, d), nn.Linear(2 * d, d)  # W_f, b_f; W_s, b_s
        self.no_user = nn.Linear(2 * d, d)  # W_n, b_n
        self.users = nn.Parameter(torch.empty(k, d))  # U
        self.v_f = nn.Linear(d, d, bias=False)
        self.v_s = self.v_f if config.tie_user_projections else nn.Linear(d, d, bias=False)
        self.v_n1, self.v_n2 = nn.Linear(d, d, bias=False), nn.Parameter(torch.empty(k, d))
        for weight in self.parameters():
            nn.init.xavier_normal_(weight) if weight.ndim > 1 else nn.init.ones_(weight)

    def forward(self, h: Tensor, h_other: Tensor) -> Tensor:
        """Return each user's state S_k after each item, (B, K, T, d).

        f_k = sigmoid([h; h_other; S_k] W_f + U_k V_f + b_f)
        g = sigmoid([h; h_other] W_n + sum_k (S_k V_n1) * V_n2[k] + b_n);  both divided by sum_k f_k + g
        S'_k = f_k * tanh([h; S_k] W_s + U_k V_s + b_s) + g * S_k
        `h`, (B, T, d), has the states of the domain, `h_other` the other domain's latest before each item.
        """
        joint = torch.cat([h, h_other], dim=2)
        (f_inputs, w_f), (c_inputs, w_c) = split_layer(self.filter, joint), split_layer(self.candidate, h)
        w = torch.cat([w_f, w_c, self.v_n1.weight.T], dim=1)  # one product for three
        f_users, c_users = self.v_f(self.users), self.v_s(self.users)  # (K, d)
        s, states = h.new_zeros(len(h), *self.users.shape), []
        for f_input, c_input, g_input in zip(f_inputs, c_inputs, self.no_user(joint).unbind(1), strict=True):
            f, c, n = (s @ w).chunk(3, dim=2)  # (B, K, d) each
            f = torch.sigmoid(f_input[:, None] + f + f_users)
            g = torch.sigmoid(g_input + (n * self.v_n2).sum(1))[:, None]  # (B, 1, d)
            c = torch.tanh(c_input[:, None] + c + c_users)
            s = (f * c + g * s) / (f.sum(1, keepdim=True) + g + EPSILON)
            states.append(s)
        return torch.stack(states, dim=2)


class TrilinearMatch(nn.Module):
    """The match of two states, w . [h; t; h * t], without a bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, width))
        nn.init.xavier_normal_(self.weight)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """Return the match of every h with every t, (..., I, d) and (..., J, d) -> (..., I, J)."""
        w_h, w_t, w_product = self.weight
        linear: Tensor = (h @ w_h)[..., :, None] + (t @ w_t)[..., None, :]
        match: Tensor = linear + (h * w_product) @ t.transpose(-1, -2)
        return match


class PsjNet(SharedAccountModel):
    """Two encoders, two splits, two joins, a softmax over each domain."""

    by_domain = ("encoders", "transfers", "outputs", "splits", "over_time", "over_users")

    def __init__(self, item_features: ItemFeatures, config: PsjNetConfig) -> None:
        super().__init__("PSJNet", item_features, config)
        self.splits = nn.ModuleList(SplitUnit(config) for _ in range(2))
        self.over_time = nn.ModuleList(TrilinearMatch(config.width) for _ in range(2))
        self.over_users = nn.ModuleList(TrilinearMatch(config.width) for _ in range(2))

    def encode(self, batch: Batch) -> PsjNetStates:
        """Encode merged histories, for the predictions in both domains."""
        (sequences, h), transferred = self.encode_domains(batch), []
        for n in range(2):
            split = self.splits[n](h[n], states_after(h[1 - n], sequences[n].other_counts))
            transferred.append(self.transfers[n](split.flatten(0, 1)).view_as(split))  # (B, K, T_d, d)
        return PsjNetStates(sequences, h, transferred)

    def join(self, encoded: PsjNetStates, domain: int, position: Tensor) -> Tensor:
        """Return [h; c] after prefixes of merged histories, zeros after an empty one, (B, P, 2 d).

        h is the state of the predicted domain, c the joined state that the other domain transfers; `position`
        is the last of each prefix, (B, P).
        """
        h, t = encoded.states[domain], encoded.transferred[1 - domain]  # (B, I, d), (B, K, J, d)
        counts = encoded.sequences[domain].counts.gather(1, position)  # (B, P)
        other_counts = encoded.sequences[1 - domain].counts.gather(1, position)  # (B, P)
        match = self.over_time[1 - domain](h[:, None], t)  # (B, K, I, J)
        best = prefix_max(match, counts)  # (B, K, P, J)
        mask = torch.arange(t.shape[2], device=h.device) < other_counts[:, None, :, None]  # (B, 1, P, J)
        c = masked_softmax(best, mask) @ t  # (B, K, P, d)
        match = self.over_users[1 - domain](h[:, None], c)  # (B, K, I, P)
        late = torch.arange(h.shape[1], device=h.device)[:, None] >= counts[:, None, None, :]
        best = match.masked_fill(late, -torch.inf).amax(2)  # (B, K, P)
        best = best.masked_fill((counts == 0)[:, None], 0.0)  # without a state to match, users count alike
        c = (torch.softmax(best, dim=1)[..., None] * c).sum(1)  # (B, P, d)
        return torch.cat([states_after(h, counts), c], dim=2)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over all next items of the cross-entropy over the item's domain."""
        batch = with_min_width(batch, 2)  # recurrences need an input
        inputs, mask, targets = next_items(batch)
        encoded = self.encode(inputs)
        # Joining at all positions and then selecting is faster than joining at selected positions.
        positions = torch.arange(mask.shape[1], device=mask.device).expand(len(mask), -1)
        states = [self.join(encoded, n, positions)[mask] for n in range(2)]  # (N, 2 d) each
        return self.outputs.mean_nll(states, targets, self.dropout, target_weights(batch, mask))

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return W [h; c] + b, see `Model.scores`."""
        position = (batch.lengths - 1).clamp(min=0)[:, None]
        state = self.join(self.encode(batch), domain, position)[:, 0]  # (B, 2 d)
        state = (state * (batch.lengths > 0)[:, None]).float()
        return self.outputs.scores(domain, state, candidates)


def prefix_max(match: Tensor, counts: Tensor) -> Tensor:
    """Return the maximum over the first `counts` entries of dimension I, 0 over none, (B, K, P, J).

    `match` is (B, K, I, J), `counts` (B, P), from 0 to I.
    """
    running = match.cummax(2).values
    index = (counts - 1).clamp(min=0)[:, None, :, None]
    best = running.gather(2, index.expand(-1, match.shape[1], -1, match.shape[3]))
    return best.masked_fill((counts == 0)[:, None, :, None], 0.0)
