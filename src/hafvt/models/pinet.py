"""pi-Net, which is also PSJNet-I: a parallel information-sharing network of two domains.

Ma and others, pi-Net: A Parallel Information-sharing Network for Shared-account Cross-domain Sequential
Recommendations, SIGIR 2019. Two GRUs read the domains; for each domain a unit filters, item by item, what its
history tells of the other domain, as K latent users of an account may have meant it ("split by join"), and a
third GRU carries it over. Departures from the authors' code:

* there every sequence has one target in each domain, the last item of each, and all else is input, even what
  comes after the earlier target. Here every item is the target of those before it: all states of the network
  are causal, so one pass gives the predictions of all prefixes;
* V_s of the candidate is its own matrix, as in the paper; the code takes V_f twice (`code_v_f` does so, too);
* dropout on items, and on what is joined, not on the states that a cell carries on; no clipping of gradients.

It is defined for two domains.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.blocks import Dropout, ResetFirstGru, blend, known, last, next_items, slots, view
from hafvt.models.configs import PiNetConfig
from hafvt.ops.catalog_softmax import SoftmaxQuery, catalog_nll


class Side(NamedTuple):
    """One domain's part of the merged histories.

    Attributes:
        batch: its items.
        others: (B, T_own) how many items of the other domain came before each.
        counts: (B, T) how many of its items there are up to each merged slot, that slot included.
    """

    batch: Batch
    others: Tensor
    counts: Tensor


def two_sides(batch: Batch, domains: tuple[Domain, ...]) -> tuple[Side, Side]:
    """Splits merged histories into the two domains'."""
    real = slots(batch.lengths, batch.items.shape[1])
    first = (batch.items < domains[1].start) & real
    counts = [part.cumsum(1) for part in (first, ~first & real)]  # (B, T) each
    parts = []
    for number, mine in enumerate((first, ~first & real)):
        others = view(Batch(counts[1 - number], batch.lengths), mine).items
        parts.append(Side(view(batch, mine), others, counts[number]))
    return parts[0], parts[1]


def only_two(name: str, domains: tuple[Domain, ...]) -> None:
    """Refuses other than two domains.

    Raises:
        HafvtError: there are others.
    """
    if len(domains) != 2:
        raise HafvtError(f"{name} is defined for two domains, not {len(domains)}: prepare with --domains A B")


class Filter(nn.Module):
    """The filter of pi-Net: what a history tells of the other domain, item by item."""

    def __init__(self, config: PiNetConfig) -> None:
        super().__init__()
        d = config.width
        self.filter, self.candidate = nn.Linear(3 * d, d), nn.Linear(2 * d, d)  # W_f, b_f; W_s, b_s
        self.users = nn.Parameter(torch.empty(config.latent_users, d))  # U
        self.v_f = nn.Linear(d, d, bias=False)
        self.v_s = self.v_f if config.tie_user_projections else nn.Linear(d, d, bias=False)
        for weight in (
            self.filter.weight,
            self.candidate.weight,
            self.users,
            self.v_f.weight,
            self.v_s.weight,
        ):
            nn.init.xavier_normal_(weight)
        nn.init.ones_(self.filter.bias)
        nn.init.ones_(self.candidate.bias)

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """Returns the filtered state after each item, (B, T, d) twice -> (B, T, d).

        f_k = sigmoid([own; other; s] W_f + U_k V_f + b_f);  c_k = tanh([own; s] W_s + U_k V_s + b_s)
        s' = mean_k f_k * s + (1 - f_k) * c_k
        """
        d = own.shape[2]
        f_of_items = F.linear(torch.cat([own, other], 2), self.filter.weight[:, : 2 * d], self.filter.bias)
        c_of_items = F.linear(own, self.candidate.weight[:, :d], self.candidate.bias)
        w_f, w_c = self.filter.weight[:, 2 * d :].T, self.candidate.weight[:, d:].T
        f_of_users, c_of_users = self.v_f(self.users), self.v_s(self.users)  # (K, d)
        s, states = own.new_zeros(len(own), d), []
        for f_item, c_item in zip(f_of_items.unbind(1), c_of_items.unbind(1), strict=True):
            f = torch.sigmoid(torch.addmm(f_item, s, w_f)[:, None] + f_of_users)  # (B, K, d)
            c = torch.tanh(torch.addmm(c_item, s, w_c)[:, None] + c_of_users)
            s = blend(c, s[:, None], f).mean(1)
            states.append(s)
        return torch.stack(states, dim=1)


class PiNet(Model):
    """Two encoders, two sharing units, a softmax over each domain."""

    def __init__(self, item_features: ItemFeatures, config: PiNetConfig) -> None:
        super().__init__()
        only_two("pi-Net", item_features.domains)
        self.config, self.domains = config, item_features.domains
        self.max_length, d = config.max_length, config.width
        self.items = nn.Embedding(len(item_features), d)  # one table a domain: their rows are apart
        self.encoders = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        self.filters = nn.ModuleList(Filter(config) for _ in range(2))
        self.transfers = nn.ModuleList(ResetFirstGru(d, d) for _ in range(2))
        outputs = [nn.Linear(2 * d, len(domain)) for domain in item_features.domains]
        self.outputs = nn.ModuleList(outputs)
        self.dropout = Dropout(config.dropout)
        nn.init.xavier_normal_(self.items.weight)
        for output in outputs:
            nn.init.xavier_normal_(output.weight)
            nn.init.zeros_(output.bias)

    def concat_ranks(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns, for each domain, [t of the other; h] after each merged slot, (B, T, 2 d) each."""
        sides = two_sides(batch, self.domains)
        h = [
            encoder(self.dropout(self.items(side.batch.items)))
            for encoder, side in zip(self.encoders, sides, strict=True)
        ]  # (B, T_own, d)
        t = [
            transfer(unit(own, known(other, side.others)))
            for transfer, unit, own, other, side in zip(
                self.transfers, self.filters, h, reversed(h), sides, strict=True
            )
        ]
        both = [
            torch.cat([known(t[1 - n], sides[1 - n].counts), known(h[n], sides[n].counts)], dim=2)
            for n in range(2)
        ]
        return self.dropout(both[0]), self.dropout(both[1])

    def loss(self, batch: Batch) -> Tensor:
        """The cross-entropies of both domains, over all next items, as a mean."""
        inputs, mask, targets = next_items(batch)
        total = self.items.weight.sum() * 0
        if not mask.any():
            return total
        for domain, output, states in zip(self.domains, self.outputs, self.concat_ranks(inputs), strict=True):
            mine = (targets >= domain.start) & (targets < domain.stop)
            if mine.any():
                total = total + nll(states[mask][mine], output, targets[mine] - domain.start)
        return total / max(len(targets), 1)

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """See `Model.scores`: W [t; h] + b, before the softmax."""
        state = last(self.concat_ranks(batch)[domain], batch.lengths).float()  # (B, 2 d)
        return chosen_scores(state, self.outputs[domain], candidates, self.domains[domain].start)


def nll(states: Tensor, output: nn.Module, targets: Tensor) -> Tensor:
    """Returns the sum of -log softmax(W states + b) at targets, the bias as one more column of W."""
    table = torch.cat([output.weight, output.bias[:, None]], dim=1)  # type: ignore[list-item, index]
    queries = F.pad(states.float(), (0, 1), value=1.0)
    return catalog_nll([SoftmaxQuery(queries, targets, slice(0, len(table)))], table)


def chosen_scores(state: Tensor, output: nn.Module, candidates: Tensor | None, start: int) -> Tensor:
    """Returns W state + b of all items of a domain, or of candidates, (B, C)."""
    if candidates is None:
        scores: Tensor = output(state)
        return scores
    rows = candidates - start
    return torch.einsum("bd,bcd->bc", state, output.weight[rows]) + output.bias[rows]  # type: ignore[index]
