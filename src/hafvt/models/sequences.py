"""Functions on right-padded sequences and their states, which several models share.

Shapes: B sequences of at most T items; d is the width of a state. A position is an index into a sequence.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.data.batches import Batch, round_up_width
from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.ops.products import linear


def valid_mask(lengths: Tensor, width: int) -> Tensor:
    """Return which positions of right-padded sequences hold an item, (B,) -> (B, width) bool."""
    return torch.arange(width, device=lengths.device) < lengths[:, None]


def in_domain(items: Tensor, domain: Domain) -> Tensor:
    """Return which items belong to a domain, bool of the same shape."""
    return (items >= domain.start) & (items < domain.stop)


def with_min_width(batch: Batch, width: int) -> Batch:
    """Return a batch with padding up to a width, where it is narrower."""
    padding = max(0, width - batch.items.shape[1])
    weights = None if batch.weights is None else F.pad(batch.weights, (0, padding))
    return Batch(F.pad(batch.items, (0, padding)), batch.lengths, weights=weights)


def next_items(batch: Batch) -> tuple[Batch, Tensor, Tensor]:
    """Split sequences into inputs and the items that follow them.

    Returns the inputs s_1..s_{n-1} as a batch of width T-1, the mask (B, T-1) of valid inputs, and the
    targets s_2..s_n at that mask, (N,).
    """
    times = None if batch.item_times is None else batch.item_times[:, :-1]
    inputs = Batch(batch.items[:, :-1], (batch.lengths - 1).clamp(min=0), item_times=times)
    mask = valid_mask(inputs.lengths, inputs.items.shape[1])
    return inputs, mask, batch.items[:, 1:][mask]


def target_weights(batch: Batch, mask: Tensor) -> Tensor | None:
    """Return the weights of the targets that `next_items` returns with a mask, (N,); None without weights."""
    return None if batch.weights is None else batch.weights[:, 1:][mask]


class TrainTargets(NamedTuple):
    """The N next items to predict in one sequence of each history of a batch, without cold items."""

    inputs: Batch
    """The sequences without their last items, (B, T)."""
    mask: Tensor
    """(B, T) True for the inputs that are directly followed by a target."""
    targets: Tensor
    """(N,) the next items."""
    is_seen: Tensor
    """(N, T) which inputs are the first occurrence of a trained item before the target."""
    is_repeat: Tensor
    """(N,) whether the target is one of the items in `is_seen`."""
    times: Tensor | None
    """(B, T) time at which the item after each input is to be predicted; None if unknown."""
    weights: Tensor | None
    """(N,) weights of the targets; None if all have the same."""

    @property
    def total_weight(self) -> float:
        """The sum of the weights of the targets, each 1 without `weights`."""
        return len(self.targets) if self.weights is None else float(self.weights.sum())

    @property
    def repeat_weight(self) -> Tensor:
        """The sum of the weights of the targets in `is_repeat`, ()."""
        return self.is_repeat.sum() if self.weights is None else (self.weights * self.is_repeat).sum()

    def scaled_weights(self, factor: float) -> float | Tensor:
        """Return a factor times the weight of each target, (N,), or the factor if all have the same."""
        return factor if self.weights is None else factor * self.weights

    def seen_items(self, items: Tensor) -> Tensor:
        """Return the numbers of the items in `is_seen`, -1 elsewhere, (N, T); `items` numbers the inputs."""
        return torch.where(self.is_seen, items[:, None, :].expand(-1, items.shape[1], -1)[self.mask], -1)


def train_targets(sequence: Batch, is_cold: Tensor) -> TrainTargets:
    """Return the targets of sequences; `is_cold`, (V,), states which items are cold."""
    inputs, mask, _ = next_items(sequence)
    next_item = sequence.items[:, 1:]  # (B, T)
    mask = mask & ~is_cold[next_item]
    is_first = first_occurrences(inputs) & ~is_cold[inputs.items]
    causal_mask = torch.ones_like(mask[:1].expand(mask.shape[1], -1)).tril()  # (T, T)
    is_seen = is_first[:, None, :] & causal_mask  # (B, T, T)
    is_repeat = ((next_item[:, :, None] == inputs.items[:, None, :]) & is_seen).any(2)
    times = None if sequence.item_times is None else sequence.item_times[:, 1:]
    weights = target_weights(sequence, mask)
    return TrainTargets(inputs, mask, next_item[mask], is_seen[mask], is_repeat[mask], times, weights)


def sample_prefixes(batch: Batch, count: int) -> tuple[Tensor, Tensor]:
    """Sample prefixes that have a next item: `count` of each sequence, or all of a shorter one, uniformly.

    Returns the row (N,) and the last position (N,) of each prefix, in ascending order.
    """
    mask = valid_mask((batch.lengths - 1).clamp(min=0), batch.items.shape[1] - 1)  # (B, T-1)
    # Of each row, the positions with the lowest random numbers.
    random = torch.rand(mask.shape, device=mask.device).masked_fill(~mask, 2.0)
    row, position = ((random.argsort(1).argsort(1) < count) & mask).nonzero(as_tuple=True)
    return row, position


def select_items(batch: Batch, mask: Tensor) -> Batch:
    """Return the subsequences of the items in a mask, (B, T), in their order, again right-padded."""
    mask = mask & valid_mask(batch.lengths, batch.items.shape[1])
    lengths = mask.sum(1)
    width = mask.shape[1]
    if not torch.compiler.is_exporting():  # the shapes of an exported graph cannot depend on the mask
        width = min(round_up_width(max(int(lengths.max()), 1)), width)
    order = selected_first(mask)[:, :width]  # (B, width)
    items = batch.items.gather(1, order).masked_fill(~valid_mask(lengths, width), 0)
    item_times = None if batch.item_times is None else batch.item_times.gather(1, order)
    weights = None if batch.weights is None else batch.weights.gather(1, order)
    return Batch(items, lengths, batch.times, item_times, weights)


def selected_first(mask: Tensor) -> Tensor:
    """Return the positions of each row, the selected ones before the others, each in order, (B, T)."""
    if torch.compiler.is_exporting():  # ONNX can sort neither bytes nor stably
        width = mask.shape[1]
        return torch.argsort(torch.arange(width, device=mask.device) + width * (~mask).long(), dim=1)
    return torch.argsort((~mask).to(torch.uint8), dim=1, stable=True)


def scatter_selected(values: Tensor, mask: Tensor) -> Tensor:
    """Return the values of the items of `select_items(batch, mask)`, (B, T'), at their positions, (B, T).

    Values of padding must be 0. Positions that were not selected have the value 0.
    """
    positions = selected_first(mask)[:, : values.shape[1]]
    return torch.zeros(mask.shape, device=mask.device).scatter(1, positions, values.float())


def first_occurrences(batch: Batch) -> Tensor:
    """Return the positions whose item is at no earlier position of the history, (B, T)."""
    is_same = batch.items[:, :, None] == batch.items[:, None, :]  # (B, T, T)
    earlier = torch.ones_like(is_same[0]).tril(-1)
    return valid_mask(batch.lengths, batch.items.shape[1]) & ~(is_same & earlier).any(2)


def last_occurrences(batch: Batch) -> Tensor:
    """Return the positions whose item is at no later position of the history, (B, T)."""
    is_same = batch.items[:, :, None] == batch.items[:, None, :]  # (B, T, T)
    valid = valid_mask(batch.lengths, batch.items.shape[1])
    later = torch.ones_like(is_same[0]).triu(1)
    return valid & ~(is_same & later & valid[:, None, :]).any(2)


def last_states(states: Tensor, lengths: Tensor) -> Tensor:
    """Return the state at the last item of each sequence, zeros for an empty one, (B, T, d) -> (B, d)."""
    index = (lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[-1])
    return states.gather(1, index)[:, 0] * (lengths > 0)[:, None]


def states_after(states: Tensor, counts: Tensor) -> Tensor:
    """Return the states after `counts` items, zeros after none, (B, T, d).

    `states` is (B, S, d), the state after each item; `counts` is (B, T), from 0 to S.
    """
    padded = F.pad(states, (0, 0, 1, 0))
    return padded.gather(1, counts[:, :, None].expand(-1, -1, states.shape[2]))


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax over the entries of the last dimension in the mask; zeros elsewhere."""
    return torch.softmax(scores.masked_fill(~mask, torch.finfo(scores.dtype).min), dim=-1) * mask


def dot_scores(h: Tensor, table: Tensor, domain: Domain, candidates: Tensor | None) -> Tensor:
    """Return the dot products, (B, C), of states, (B, d), with the embeddings of items.

    The items are `candidates`, (B, C), or all of the domain; `table` is (V, d), the embeddings of all items.
    """
    if candidates is None:
        return linear(h, table[domain.start : domain.stop])
    return torch.einsum("bd,bcd->bc", h, F.embedding(candidates, table))


class DomainSequence(NamedTuple):
    """The part of merged histories that belongs to one of two domains."""

    batch: Batch
    """The items of the domain, T_d per history at most."""
    counts: Tensor
    """(B, T) number of its items up to each position of the merged history, that item included."""
    other_counts: Tensor
    """(B, T_d) number of items of the other domain before each of its items."""


def split_two_domains(batch: Batch, domains: tuple[Domain, ...]) -> list[DomainSequence]:
    """Split merged histories into the sequences of the two domains."""
    valid = valid_mask(batch.lengths, batch.items.shape[1])
    masks = [in_domain(batch.items, domain) & valid for domain in domains]
    counts = [mask.cumsum(1) for mask in masks]  # (B, T) each
    others = [select_items(Batch(counts[1 - n], batch.lengths), masks[n]).items for n in range(2)]
    return [DomainSequence(select_items(batch, masks[n]), counts[n], others[n]) for n in range(2)]


def require_two_domains(model: str, domains: tuple[Domain, ...]) -> None:
    """Raise HafvtError if a catalog has other than two domains."""
    if len(domains) != 2:
        raise HafvtError(
            f"{model} is defined for two domains, not {len(domains)}: prepare with --domains A B"
        )
