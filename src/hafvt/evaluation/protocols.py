"""How a target is ranked: among which candidates, and how ties count.

full: among all items of its domain, ties at half. c2dsr: among 999 negatives that are drawn once, of which
those count that are scored higher by more than 1e-5: a constant scorer is perfect. sampled-unseen: among 999 distinct
negatives that the user never had, ties at half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import torch

from hafvt.data.batches import collate, target_batches
from hafvt.data.dataset import Dataset, Domain, Int32, Int64
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import Ranks, concat_ranks
from hafvt.evaluation.negatives import COUNT, negatives
from hafvt.models.base import Model
from hafvt.ops.ranking import ranks as count_ranks
from hafvt.progress import Advance

Protocol = Literal["full", "c2dsr", "sampled-unseen"]
MARGIN = 1e-5  # C2DSR: a negative counts only where its score is higher by more
SCORES = 4_000_000  # scores held at a time: histories in a batch x candidates


def rank_targets(
    models: Sequence[Model],
    data: Dataset,
    split: Literal["valid", "test"],
    protocol: Protocol = "full",
    *,
    exclude_seen: bool = False,
    device: torch.device | None = None,
    advance: Advance | None = None,
) -> tuple[Ranks, Ranks]:
    """Ranks the targets of a split.

    Args:
        models: one for each domain, that of its targets; often the same for all.
        data: holds the targets.
        split: which targets.
        protocol: see above.
        exclude_seen: under full, leaves the items of the whole history out of the candidates.
        device: where the models are.
        advance: told how many targets are done.

    Returns:
        Ranks with ties at half, and by the protocol's own rule, which differs under c2dsr alone.
    """
    positions = np.asarray(data.valid if split == "valid" else data.test)
    parts = [np.arange(len(positions))]
    if any(model is not models[0] for model in models):
        starts = np.array([d.start for d in data.domains])
        domains = np.searchsorted(starts, np.asarray(data.items)[positions], side="right") - 1
        parts = [np.flatnonzero(domains == number) for number in range(len(models))]
    if protocol == "full":
        whole = [
            full(model, data, positions[rows], exclude_seen=exclude_seen, device=device, advance=advance)
            for model, rows in zip(models, parts, strict=False)
        ]
        return concat_ranks(whole), concat_ranks(whole)
    drawn = negatives(data, split, protocol)
    pairs = [
        sampled(model, data, positions[rows], drawn[rows], device=device, advance=advance)
        for model, rows in zip(models, parts, strict=False)
    ]
    half = concat_ranks([half for half, _ in pairs])
    return half, concat_ranks([own for _, own in pairs]) if protocol == "c2dsr" else half


def check_protocol(protocol: str) -> None:
    """Refuses a protocol that is not known.

    Raises:
        HafvtError: it is not.
    """
    if protocol not in get_args(Protocol):
        raise HafvtError(f"no protocol {protocol!r}: choose {', '.join(get_args(Protocol))}")


def among(data: Dataset, protocol: Protocol) -> str:
    """Says in words among what a target is ranked and how ties count."""
    sizes = ", ".join(f"{len(d):,} {d.name}" for d in data.domains)
    return {
        "full": f"all items of its domain ({sizes}); ties count half",
        "c2dsr": f"{COUNT} negatives of its domain, drawn with replacement; "
        f"only what is scored higher by more than {MARGIN:g} counts",
        "sampled-unseen": f"{COUNT} distinct negatives of its domain that the user never had; ties count half",
    }[protocol]


def full(
    model: Model,
    data: Dataset,
    positions: Int64,
    *,
    exclude_seen: bool = False,
    device: torch.device | None = None,
    advance: Advance | None = None,
) -> Ranks:
    """Ranks each target among all items of its domain.

    Args:
        model: scores the items.
        data: holds the targets.
        positions: (n,) positions of the targets.
        exclude_seen: leaves the items of the whole history out of the candidates, the target excepted.
        device: where the model is.
        advance: told how many targets are done.
    """
    device = device or torch.device("cpu")
    positions = np.asarray(positions)
    items = np.asarray(data.items)
    starts = np.array([d.start for d in data.domains])
    domains = np.searchsorted(starts, items[positions], side="right") - 1
    found = np.zeros(len(positions))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for number, domain in enumerate(data.domains):
            mine = np.flatnonzero(domains == number)
            batch_size = min(max(SCORES // max(len(domain), 1), 16), 1024)
            for rows, batch in target_batches(data, positions[mine], batch_size, model.max_length):
                scores = model.scores(batch.to(device), number)
                targets = positions[mine[rows]]
                target = torch.from_numpy(items[targets].astype(np.int64) - domain.start).to(device)
                ignore = seen_columns(data, targets, domain).to(device) if exclude_seen else None
                found[mine[rows]] = count_ranks(scores, target, ignore).cpu().numpy()
                if advance is not None:
                    advance(len(rows))
    model.train(was_training)
    sizes = np.array([len(d) for d in data.domains])
    return Ranks(
        positions=positions,
        users=data.users_at(positions),
        domains=domains.astype(np.int64),
        ranks=found,
        candidates=sizes[domains].astype(np.int64),
    )


def sampled(
    model: Model,
    data: Dataset,
    positions: Int64,
    drawn: Int32,
    *,
    device: torch.device | None = None,
    advance: Advance | None = None,
) -> tuple[Ranks, Ranks]:
    """Ranks each target among its negatives, by both rules for ties.

    Args:
        model: scores the items.
        data: holds the targets.
        positions: (n,) positions of the targets.
        drawn: (n, 999) item indices of the negatives, -1 where there are fewer.
        device: where the model is.
        advance: told how many targets are done.

    Returns:
        Ranks with ties at half, and by C2DSR's rule: 1 + the negatives scored higher by more than 1e-5.
    """
    device = device or torch.device("cpu")
    positions = np.asarray(positions)
    items = np.asarray(data.items)
    starts = np.array([d.start for d in data.domains])
    domains = np.searchsorted(starts, items[positions], side="right") - 1
    half, lenient = np.zeros(len(positions)), np.zeros(len(positions))
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for number in range(len(data.domains)):
            mine = np.flatnonzero(domains == number)
            for rows, batch in target_batches(data, positions[mine], 128, model.max_length):
                targets = positions[mine[rows]]
                among = np.concatenate([items[targets][:, None], drawn[mine[rows]]], axis=1)
                candidates = torch.from_numpy(among.astype(np.int64)).to(device)  # (B, 1 + 999)
                absent = candidates < 0
                candidates = torch.where(absent, candidates[:, :1], candidates)
                scores = model.scores(batch.to(device), number, candidates)
                target = torch.zeros(len(rows), dtype=torch.int64, device=device)
                columns = torch.arange(candidates.shape[1], device=device).where(absent, -1)
                half[mine[rows]] = count_ranks(scores, target, columns).cpu().numpy()
                above = (scores > scores[:, :1] + MARGIN) & ~absent
                lenient[mine[rows]] = 1 + above.sum(1).cpu().numpy()
                if advance is not None:
                    advance(len(rows))
    model.train(was_training)
    ranks = Ranks(
        positions=positions,
        users=data.users_at(positions),
        domains=domains.astype(np.int64),
        ranks=half,
        candidates=1 + (drawn >= 0).sum(1),
    )
    return ranks, replace(ranks, ranks=lenient)


def seen_columns(data: Dataset, targets: Int64, domain: Domain) -> torch.Tensor:
    """Returns the columns of a domain's items in the histories before targets, (n, longest), -1 elsewhere.

    The target itself is never among them: a repeated item is a fair target.
    """
    starts = np.asarray(data.offsets)[data.users_at(targets)]
    history = collate(data.items, starts, targets)
    columns = history.items - domain.start
    outside = (columns < 0) | (columns >= len(domain))
    outside |= torch.arange(columns.shape[1]) >= history.lengths[:, None]
    outside |= (
        columns == torch.from_numpy(np.asarray(data.items)[targets].astype(np.int64) - domain.start)[:, None]
    )
    return columns.masked_fill(outside, -1)
