"""pi-Net, which is also PSJNet-I: a parallel information-sharing network of two domains.

Ma and others, pi-Net: A Parallel Information-sharing Network for Shared-account Cross-domain Sequential
Recommendations, SIGIR 2019. A GRU encodes the history of each domain. For each domain, a filter unit selects
item by item what its history reveals about the other domain, for K latent users who share the account ("split
by join"), and another GRU transfers it to the other domain. Departures from the authors' code:

* there every sequence has one target in each domain, its last item, and all others are inputs, even those
  after the earlier target. Here every item is the target of the items before it: all states of the network
  are causal, so that one pass predicts after every prefix;
* the candidate state has a matrix V_s of its own, as in the paper; the code uses V_f twice
  (`tie_user_projections` does so, too);
* dropout applies to item embeddings and to joined states, not to recurrent states; gradients are not clipped.

The model is defined for two domains.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.blocks import blend, split_layer
from hafvt.models.configs import PiNetConfig
from hafvt.models.sequences import last_states, next_items, states_after, target_weights, with_min_width
from hafvt.models.shared_account import SharedAccountModel


class SharedAccountFilter(nn.Module):
    """The shared-account filter unit, which selects item by item what to transfer to the other domain."""

    def __init__(self, config: PiNetConfig) -> None:
        super().__init__()
        d = config.width
        self.filter, self.candidate = nn.Linear(3 * d, d), nn.Linear(2 * d, d)  # W_f, b_f; W_s, b_s
        self.users = nn.Parameter(torch.empty(config.latent_users, d))  # U
        self.v_f = nn.Linear(d, d, bias=False)
        self.v_s = self.v_f if config.tie_user_projections else nn.Linear(d, d, bias=False)
        weights = (self.filter.weight, self.candidate.weight, self.users, self.v_f.weight, self.v_s.weight)
        for weight in weights:
            nn.init.xavier_normal_(weight)
        nn.init.ones_(self.filter.bias)
        nn.init.ones_(self.candidate.bias)

    def forward(self, h: Tensor, h_other: Tensor) -> Tensor:
        """Return the filtered state s after each item, (B, T, d).

        f_k = sigmoid([h; h_other; s] W_f + U_k V_f + b_f);  c_k = tanh([h; s] W_s + U_k V_s + b_s)
        s' = mean_k f_k * s + (1 - f_k) * c_k
        `h`, (B, T, d), has the states of the domain, `h_other` the other domain's latest before each item.
        """
        f_inputs, w_f = split_layer(self.filter, torch.cat([h, h_other], dim=2))
        c_inputs, w_c = split_layer(self.candidate, h)
        f_users, c_users = self.v_f(self.users), self.v_s(self.users)  # (K, d)
        s, states = torch.zeros_like(h[:, 0]), []
        for f_input, c_input in zip(f_inputs, c_inputs, strict=True):
            f = torch.sigmoid(torch.addmm(f_input, s, w_f)[:, None] + f_users)  # (B, K, d)
            c = torch.tanh(torch.addmm(c_input, s, w_c)[:, None] + c_users)  # (B, K, d)
            s = blend(c, s[:, None], f).mean(1)  # (B, d)
            states.append(s)
        return torch.stack(states, dim=1)


class PiNet(SharedAccountModel):
    """Two encoders, two filter and transfer units, a softmax over each domain."""

    by_domain = ("encoders", "transfers", "outputs", "filters")

    def __init__(self, item_features: ItemFeatures, config: PiNetConfig) -> None:
        super().__init__("pi-Net", item_features, config)
        self.filters = nn.ModuleList(SharedAccountFilter(config) for _ in range(2))

    def states(self, batch: Batch) -> list[Tensor]:
        """Return, for each domain, [t; h] after each merged position, (B, T, 2 d) each.

        h is the state of the domain, t the state transferred from the other domain.
        """
        sequences, h = self.encode_domains(batch)
        t, states = [], []
        for n in range(2):
            h_other = states_after(h[1 - n], sequences[n].other_counts)
            t.append(self.transfers[n](self.filters[n](h[n], h_other)))
        for n in range(2):
            transferred = states_after(t[1 - n], sequences[1 - n].counts)
            states.append(torch.cat([transferred, states_after(h[n], sequences[n].counts)], dim=2))
        return states

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean over all next items of the cross-entropy over the item's domain."""
        batch = with_min_width(batch, 2)  # recurrences need an input
        inputs, mask, targets = next_items(batch)
        states = [self.dropout(x)[mask] for x in self.states(inputs)]  # (N, 2 d) each
        return self.outputs.mean_nll(states, targets, weights=target_weights(batch, mask))

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return W [t; h] + b, see `Model.scores`."""
        state = last_states(self.states(batch)[domain], batch.lengths).float()  # (B, 2 d)
        return self.outputs.scores(domain, state, candidates)
