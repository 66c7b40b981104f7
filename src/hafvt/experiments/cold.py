"""`hafvt evaluate --cold`: how a model ranks items that it never met, beside a random order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from hafvt.data.cold_items import cold_target_view
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import METRICS, MetricValue, Results
from hafvt.evaluation.protocols import FULL
from hafvt.evaluation.ranks import Float64, Ranks, concat_ranks
from hafvt.evaluation.results import results_to_json, write_results
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.files import read_json, write_json
from hafvt.progress import progress
from hafvt.training.run import Run


def by_chance(ranks: Ranks, domains: list[str]) -> Results:
    """Returns what a random order is expected to have on the same targets, exactly.

    The mean of a metric over all ranks from 1 to n: for the MRR (1 + 1/2 + ... + 1/n) / n.

    Args:
        ranks: of a model, for domains and numbers of candidates.
        domains: names of the domains; those without targets are left out.
    """

    def mean(metric: Callable[[Float64], Float64], candidates: int) -> float:
        return float(metric(np.arange(1.0, candidates + 1)).mean())

    found: Results = {}
    for number, name in enumerate(domains):
        sizes, counts = np.unique(ranks.candidates[ranks.domains == number], return_counts=True)
        if len(sizes):
            found[name] = {
                label: MetricValue(float(np.average([mean(metric, int(n)) for n in sizes], weights=counts)))
                for label, metric in METRICS.items()
            }
    if len(found) > 1:
        rows = list(found.values())
        found["overall"] = {
            label: MetricValue(float(np.mean([row[label].value for row in rows]))) for label in METRICS
        }
    return found


def rank_cold(run: Run, device: torch.device) -> tuple[Ranks, Results, Results]:
    """Ranks targets that were held out of training among all items of their domain, ties at half.

    Writes ranks.parquet and results.json into the folder `cold` of the run.

    Returns:
        The ranks, the figures, and those of a random order.

    Raises:
        HafvtError: no item was held out.
    """
    data = run.data
    if not len(data.cold_targets):
        raise HafvtError(
            f"{data.folder} has no cold targets: prepare it with --hold-out-items 0.1 and train on that"
        )
    view = cold_target_view(data, run.model.max_length)
    starts = [domain.start for domain in data.domains]
    domains = np.searchsorted(starts, data.cold_targets[:, 2], side="right") - 1
    with progress(f"evaluate {run.name}, cold items", len(data.cold_targets), "targets") as advance:
        parts = [
            rank_positions(
                model.to(device), view, view.test[domains == number], device=device, advance=advance
            ).half_ties
            for number, model in enumerate(run.models)
        ]
    ranks = concat_ranks(parts)
    ranks = replace(ranks, users=np.asarray(data.cold_targets[:, 0]))  # the view has a user for each target
    names = [domain.name for domain in data.domains]
    chance = by_chance(ranks, names)
    folder = run.folder / "cold"
    folder.mkdir(exist_ok=True)
    num_cold = len(np.unique(data.cold_targets[:, 2]))
    targets = f"targets among {num_cold:,} items that were held out of training,"
    results = write_results(folder, view, ranks, FULL, targets)
    content = read_json(folder / "results.json") | {"chance": results_to_json(chance)}
    write_json(folder / "results.json", content)
    return ranks, results, chance
