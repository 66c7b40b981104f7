"""`hafvt evaluate RUN --data NEWER`: rank the targets of another dataset than that of the training."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
import torch

from hafvt.data.dataset import Dataset, Int64
from hafvt.data.mapped import MappedDataset, map_dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.list_metrics import LIST_LENGTH
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.ranks import Ranks, concat_ranks
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.features.item_features import ItemFeatures
from hafvt.inference.added_items import with_added_items
from hafvt.models.configs import PopularityConfig
from hafvt.models.popularity import Popularity
from hafvt.progress import progress
from hafvt.training.run import Run


class NewerRanks(NamedTuple):
    """The ranks of the targets of a newer dataset.

    Attributes:
        run: the run with its added items; its `data` is the newer dataset in the items of the run, whose test
            targets are the ranked ones with a known item and history.
        ranks: of all targets in the domains of the run.
        targets: what the targets are, in words for reports.
    """

    run: Run
    ranks: Ranks
    targets: str


def rank_newer_targets(
    run: Run, source: Dataset, split: Literal["test", "valid"], protocol: Protocol, device: torch.device
) -> NewerRanks:
    """Rank the targets of a dataset among the items of a run, as `recommend` lists them.

    Items are matched by their ids. Unknown items of a history are left out. A target whose item the run does
    not know counts as missed; a history without a known item gets the most popular items.

    Raises:
        HafvtError: no target is in a domain of the run.
    """
    run, catalog = with_added_items(run)
    data = map_dataset(source, run.data, catalog.table, catalog.domains, catalog.train_counts)
    positions = data.test if split == "test" else data.valid
    if not len(positions):
        raise HafvtError(
            f"{source.folder} has no {split} targets in a domain of {run.folder}: name another dataset"
        )
    is_known = data.is_known(positions)
    by_model = positions[is_known & data.has_history(positions)]
    by_popularity = positions[is_known & ~data.has_history(positions)]
    counts = torch.from_numpy(catalog.train_counts.astype(np.float32))
    popularity = Popularity(ItemFeatures(catalog.domains, {}, counts), PopularityConfig())
    parts = []
    with progress(f"evaluate {run.name}", int(is_known.sum()), "targets") as advance:
        for models, targets in ((run.models, by_model), ([popularity] * len(run.models), by_popularity)):
            domains = data.domains_of(data.items[targets])
            parts += [
                rank_positions(
                    model.to(device),
                    data,
                    targets[domains == number],
                    protocol,
                    with_lists=True,
                    device=device,
                    advance=advance,
                ).by_protocol
                for number, model in enumerate(models)
            ]
    for model in run.models:
        model.cpu()
    parts.append(missed_ranks(data, positions[~is_known], parts[0].other_ranks is not None))
    newer_run = replace(run, data=replace(data, test=by_model))  # the report shows some of these
    return NewerRanks(newer_run, concat_ranks(parts), describe_targets(data, split))


def missed_ranks(data: MappedDataset, positions: Int64, with_other_rule: bool) -> Ranks:
    """Return infinite ranks for targets whose items the run does not know."""
    domains = data.domains_of(data.items[positions])
    count = len(positions)
    candidates = np.array([len(domain) for domain in data.domains], dtype=np.int64)[domains]
    return Ranks(
        positions,
        data.source.users_at(data.source_positions[positions]),
        domains,
        np.full(count, np.inf),
        candidates,
        np.zeros(count, dtype=np.bool_),
        lists=np.full((count, LIST_LENGTH), -1),
        other_ranks=np.full(count, np.inf) if with_other_rule else None,
        other_candidates=candidates if with_other_rule else None,
    )


def describe_targets(data: MappedDataset, split: str) -> str:
    """Return what the targets of a split are, in words that follow their number."""
    positions = data.test if split == "test" else data.valid
    num_missed = int((~data.is_known(positions)).sum())
    notes = [f"{num_missed:,} with an item that the run does not know, which count as missed"]
    if data.num_left_out:
        notes.append(f"without {data.num_left_out:,} validation and test targets of domains that it lacks")
    return f"{split} targets of {data.source.folder} ({'; '.join(notes)})"
