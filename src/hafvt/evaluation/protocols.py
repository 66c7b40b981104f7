"""How a target is ranked: among which candidates."""

from __future__ import annotations

import numpy as np
import torch

from hafvt.data.batches import gather, target_batches
from hafvt.data.dataset import Dataset, Domain, Int64
from hafvt.evaluation.metrics import Ranks
from hafvt.models.base import Model
from hafvt.ops.ranking import ranks as count_ranks
from hafvt.progress import Advance

SCORES = 4_000_000  # scores held at a time: histories in a batch x candidates


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
        users=data.user_of(positions),
        domains=domains.astype(np.int64),
        ranks=found,
        candidates=sizes[domains].astype(np.int64),
    )


def seen_columns(data: Dataset, targets: Int64, domain: Domain) -> torch.Tensor:
    """Returns the columns of a domain's items in the histories before targets, (n, longest), -1 elsewhere.

    The target itself is never among them: a repeated item is a fair target.
    """
    starts = np.asarray(data.offsets)[data.user_of(targets)]
    history = gather(data.items, starts, targets)
    columns = history.items - domain.start
    outside = (columns < 0) | (columns >= len(domain))
    outside |= torch.arange(columns.shape[1]) >= history.lengths[:, None]
    outside |= (
        columns == torch.from_numpy(np.asarray(data.items)[targets].astype(np.int64) - domain.start)[:, None]
    )
    return columns.masked_fill(outside, -1)
