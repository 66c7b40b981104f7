"""`hafvt evaluate --cold`: rank cold items, and compare with a random order."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from hafvt.data.cold_items import cold_target_view
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import METRICS, MetricValue, Results
from hafvt.evaluation.protocols import FULL
from hafvt.evaluation.ranks import Ranks, concat_ranks
from hafvt.evaluation.results import results_to_json, write_results
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.files import explained_write_errors, read_json, write_json
from hafvt.processes import process_index
from hafvt.progress import progress
from hafvt.training.run import Run


def random_order_results(ranks: Ranks, domains: list[str]) -> Results:
    """Return the exact expected metrics of a random order on the targets of a model's ranks.

    The expected value is the mean of a metric over all ranks from 1 to the number n of candidates. For the
    MRR it is (1 + 1/2 + ... + 1/n) / n. The results omit domains without targets.
    """
    results: Results = {}
    for number, name in enumerate(domains):
        sizes, counts = np.unique(ranks.candidates[ranks.domains == number], return_counts=True)
        if len(sizes):
            results[name] = {
                label: MetricValue(
                    float(np.average([metric(np.arange(1.0, n + 1)).mean() for n in sizes], weights=counts))
                )
                for label, metric in METRICS.items()
            }
    if len(results) > 1:
        results["overall"] = {
            label: MetricValue(float(np.mean([row[label].value for row in results.values()])))
            for label in METRICS
        }
    return results


def rank_cold_targets(run: Run, device: torch.device) -> tuple[Ranks, Results, Results]:
    """Rank the cold targets of a dataset among all items of their domain; a tie counts half.

    Writes ranks.parquet and results.json into the folder `cold` of the run.

    Returns:
        The ranks, the metrics, and the expected metrics of a random order.

    Raises:
        HafvtError: the dataset has no cold targets.
    """
    data = run.data
    targets = data.cold_targets
    if not len(targets):
        raise HafvtError(
            f"{data.folder} has no cold targets: prepare it with --hold-out-items 0.1 and train on that"
        )
    view = cold_target_view(data, run.model.max_length)
    domains = np.searchsorted([domain.start for domain in data.domains], targets[:, 2], side="right") - 1
    with progress(f"evaluate {run.name}, cold items", len(targets), "targets") as advance:
        parts = [
            rank_positions(
                model.to(device), view, view.test[domains == number], device=device, advance=advance
            ).half_ties
            for number, model in enumerate(run.models)
        ]
    ranks = replace(concat_ranks(parts), users=np.asarray(targets[:, 0]))  # the view has a user per target
    random_order = random_order_results(ranks, [domain.name for domain in data.domains])
    folder = run.folder / "cold"
    with explained_write_errors(folder):
        folder.mkdir(exist_ok=True)
    description = f"targets among {len(np.unique(targets[:, 2])):,} items that were held out of training,"
    results = write_results(folder, view, ranks, FULL, description)
    if process_index() == 0:
        content = read_json(folder / "results.json")
        content["chance"] = results_to_json(random_order)
        write_json(folder / "results.json", content, checksum=True)
    return ranks, results, random_order
