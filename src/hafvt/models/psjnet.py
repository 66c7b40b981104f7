"""PSJNet-II: the parallel split-and-join network of two domains.

Sun and others, Parallel Split-Join Networks for Shared Account Cross-domain Sequential Recommendations, IEEE
TKDE 2023 (PSJNet-I is pi-Net: pinet.py). Each latent user of an account keeps a state of its own ("split");
what all of them carry over is joined by attention, first over time, then over users. Departures from the
authors' code, beside those that pinet.py names:

* the joins are taken for every prefix at once: the best match of a carried state with the predicted domain's
  states so far is a running maximum;
* the overflow guard looks at real slots alone.

It is defined for two domains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout, ResetFirstGru, known, next_items
from hafvt.models.configs import PsjNetConfig
from hafvt.models.pinet import Side, chosen_scores, nll, only_two, two_sides

TINY = 1e-10  # theirs


class SharedStates(NamedTuple):
    """What is read of merged histories, by domain.

    Attributes:
        sides: their parts.
        states: (B, T_own, d) after each item.
        carried: (B, K, T_own, d) what each user carries over to the other domain.
    """

    sides: tuple[Side, Side]
    states: list[Tensor]
    carried: list[Tensor]


class UserFilter(nn.Module):
    """The filter of PSJNet-II: a state for each latent user, and a gate for nobody."""

    def __init__(self, config: PsjNetConfig) -> None:
        super().__init__()
        d, k = config.width, config.latent_users
        self.filter, self.candidate = nn.Linear(3 * d, d), nn.Linear(2 * d, d)  # W_f, b_f; W_s, b_s
        self.nobody = nn.Linear(2 * d, d)  # W_n, b_n
        self.users = nn.Parameter(torch.empty(k, d))  # U
        self.v_f = nn.Linear(d, d, bias=False)
        self.v_s = self.v_f if config.tie_user_projections else nn.Linear(d, d, bias=False)
        self.v_n1, self.v_n2 = nn.Linear(d, d, bias=False), nn.Parameter(torch.empty(k, d))
        for weight in self.parameters():
            nn.init.xavier_normal_(weight) if weight.ndim > 1 else nn.init.ones_(weight)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Returns each user's state after each item, (B, T, d) twice -> (B, K, T, d).

        f_k = sigmoid([own; other; S_k] W_f + U_k V_f + b_f)
        g = sigmoid([own; other] W_n + sum_k (S_k V_n1) * V_n2[k] + b_n);  both over sum_k f_k + g
        S'_k = f_k * tanh([own; S_k] W_s + U_k V_s + b_s) + g * S_k
        """
        d = own.shape[2]
        both = torch.cat([own, other], dim=2)
        f_of_items = F.linear(both, self.filter.weight[:, : 2 * d], self.filter.bias)
        c_of_items = F.linear(own, self.candidate.weight[:, :d], self.candidate.bias)
        w_f, w_c = self.filter.weight[:, 2 * d :].T, self.candidate.weight[:, d:].T
        w = torch.cat([w_f, w_c, self.v_n1.weight.T], dim=1)  # one product for three
        f_of_users, c_of_users = self.v_f(self.users), self.v_s(self.users)  # (K, d)
        s, states = own.new_zeros(len(own), len(self.users), d), []
        for f_item, c_item, n_item in zip(
            f_of_items.unbind(1), c_of_items.unbind(1), self.nobody(both).unbind(1), strict=True
        ):
            f, c, n = (s @ w).chunk(3, dim=2)  # (B, K, d) each
            f = torch.sigmoid(f_item[:, None] + f + f_of_users)
            g = torch.sigmoid(n_item + (n * self.v_n2).sum(1))[:, None]  # (B, 1, d)
            c = torch.tanh(c_item[:, None] + c + c_of_users)
            s = (f * c + g * s) / (f.sum(1, keepdim=True) + g + TINY)
            states.append(s)
        return torch.stack(states, dim=2)


class Match(nn.Module):
    """D = w . [h; t; h * t], no bias."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(3, width))
        nn.init.xavier_normal_(self.weight)

    def forward(self, h: Tensor, t: Tensor) -> Tensor:
        """Matches every h with every t, (..., I, d) and (..., J, d) -> (..., I, J)."""
        of_h, of_t, of_both = self.weight
        alone: Tensor = (h @ of_h)[..., :, None] + (t @ of_t)[..., None, :]
        matched: Tensor = alone + (h * of_both) @ t.transpose(-1, -2)
        return matched


class PsjNet(Model):
    """Two encoders, two splits, two joins, a softmax over each domain."""

    def __init__(self, item_features: ItemFeatures, config: PsjNetConfig) -> None:
        super().__init__()
        only_two("PSJNet", item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        self.items = nn.Embedding(len(item_features), d)  # one table a domain: their rows are apart
        self.encoders = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.splits = nn.ModuleList(UserFilter(config) for _ in range(2))
        self.transfers = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.over_time = nn.ModuleList(Match(d) for _ in range(2))
        self.over_users = nn.ModuleList(Match(d) for _ in range(2))
        outputs = [nn.Linear(2 * d, len(domain)) for domain in item_features.domains]
        self.outputs = nn.ModuleList(outputs)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_normal_(self.items.weight)
        for output in outputs:
            nn.init.xavier_normal_(output.weight)
            nn.init.zeros_(output.bias)

    def read(self, batch: Batch) -> SharedStates:
        """Reads merged histories once, for the predictions in both domains."""
        sides = two_sides(batch, self.domains)
        h = [
            encoder(self.dropout(self.items(side.batch.items)))
            for encoder, side in zip(self.encoders, sides, strict=True)
        ]
        carried = []
        for n, side in enumerate(sides):
            split = self.splits[n](h[n], known(h[1 - n], side.others))  # (B, K, T_own, d)
            carried.append(self.transfers[n](split.flatten(0, 1)).view_as(split))
        return SharedStates(sides, h, carried)

    def concat_ranks(self, read: SharedStates, domain: int, slot: Tensor) -> Tensor:
        """Returns [h; c] of a domain after some merged slots, (B, P, 2 d); rows without items give zeros.

        Args:
            read: of merged histories.
            domain: the predicted one.
            slot: (B, P) the last merged slot that each prediction knows.
        """
        own, other = read.sides[domain], read.sides[1 - domain]
        h, t = read.states[domain], read.carried[1 - domain]  # (B, I, d), (B, K, J, d)
        items, others = own.counts.gather(1, slot), other.counts.gather(1, slot)  # (B, P)
        match = self.over_time[1 - domain](h[:, None], t)  # (B, K, I, J)
        best = known_max(match, items)  # (B, K, P, J), over the items so far
        c = softmax_of_first(best, others[:, None, :, None]) @ t  # (B, K, P, d)
        match = self.over_users[1 - domain](h[:, None], c)  # (B, K, I, P)
        late = torch.arange(h.shape[1], device=h.device)[:, None] >= items[:, None, None, :]
        best = match.masked_fill(late, -torch.inf).amax(2)  # (B, K, P)
        best = best.masked_fill((items == 0)[:, None], 0.0)  # nothing to match with: all users alike
        c = (torch.softmax(best, dim=1)[..., None] * c).sum(1)  # (B, P, d)
        return torch.cat([known(h, items), c], dim=2)

    def loss(self, batch: Batch) -> Tensor:
        """The cross-entropies of both domains, over all next items, as a mean."""
        inputs, mask, targets = next_items(batch)
        rows, slot = mask.nonzero(as_tuple=True)
        total = self.items.weight.sum() * 0
        if not mask.any():
            return total
        read = self.read(inputs)
        every = torch.arange(mask.shape[1], device=mask.device).expand(len(mask), -1)
        for number, (domain, output) in enumerate(zip(self.domains, self.outputs, strict=True)):
            mine = (targets >= domain.start) & (targets < domain.stop)
            if mine.any():
                # Of all slots: products of whole histories take less than of chosen slots, one by one.
                states = self.dropout(
                    self.concat_ranks(read, number, every)[rows[mine], slot[mine]]
                )  # (N, 2 d)
                total = total + nll(states, output, targets[mine] - domain.start)
        return total / max(len(targets), 1)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: W [h; c] + b, before the softmax."""
        last = (batch.lengths - 1).clamp(min=0)[:, None]
        state = self.concat_ranks(self.read(batch), domain, last)[:, 0]
        state = (state * (batch.lengths > 0)[:, None]).float()
        return chosen_scores(state, self.outputs[domain], candidates, self.domains[domain].start)


def known_max(match: Tensor, counts: Tensor) -> Tensor:
    """Returns the maximum over the first `counts` of I, 0 where there are none.

    Args:
        match: (B, K, I, J).
        counts: (B, P) from 0 to I.

    Returns:
        (B, K, P, J)
    """
    running = match.cummax(2).values
    index = (counts - 1).clamp(min=0)[:, None, :, None]
    best = running.gather(2, index.expand(-1, match.shape[1], -1, match.shape[3]))
    return best.masked_fill((counts == 0)[:, None, :, None], 0.0)


def softmax_of_first(scores: Tensor, counts: Tensor) -> Tensor:
    """Returns the softmax over the first `counts` entries of the last dimension; zeros where there are none.

    Args:
        scores: (..., J).
        counts: (..., 1) from 0 to J.
    """
    late = torch.arange(scores.shape[-1], device=scores.device) >= counts
    weight = torch.softmax(scores.masked_fill(late, torch.finfo(scores.dtype).min), dim=-1)
    return weight.masked_fill(late, 0.0)
