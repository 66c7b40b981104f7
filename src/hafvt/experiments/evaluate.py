"""`hafvt evaluate`: honest figures of a trained model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import Ranks, Results
from hafvt.evaluation.protocols import full
from hafvt.progress import progress
from hafvt.reports.run import report
from hafvt.reports.table import plain_table
from hafvt.training.run import open_run


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        model: name of the model.
        results: per domain and overall, each metric with its 95 % interval.
        ranks: of every target.
        folder: where ranks.parquet and report.html were written.
    """

    model: str
    results: Results
    ranks: Ranks
    folder: Path

    def __str__(self) -> str:
        """The table, in per cent."""
        table = plain_table({self.model: self.results})
        return f"{table}\nwrote ranks.parquet, results.json and report.html to {self.folder}"


def evaluate(
    run: str | Path,
    *,
    protocol: Literal["full"] = "full",
    split: Literal["test", "valid"] = "test",
    exclude_seen: bool = False,
    data: str | Path | Dataset | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Ranks every target of a finished run and writes ranks.parquet and report.html.

    Ranks are counted among all items of the target's domain, ties at half; MRR, NDCG@5, NDCG@10 and HR@1/5/10
    come with 95 % bootstrap intervals over users, per domain and as the mean of the domains.

    Example: hafvt evaluate runs/hafvt --protocol full

    Args:
        run: the folder that train wrote.
        protocol: full ranks among all items of the target's domain.
        split: test or valid. Choose nothing by test.
        exclude_seen: leave items of the history out of the candidates.
        data: the dataset, where it has moved since training.
        device: cpu or cuda.

    Raises:
        HafvtError: no finished run, or the dataset is not the one it was trained on.
    """
    if protocol != "full":
        raise HafvtError(f"no protocol {protocol!r}: choose full")
    opened = open_run(run, data)
    positions = opened.data.test if split == "test" else opened.data.valid
    if len(positions) == 0:
        raise HafvtError(f"{opened.data.folder} has no {split} targets: prepare it with longer histories")
    place = torch.device(device)
    with progress(f"evaluate {opened.name}", len(positions), "targets") as advance:
        ranks = full(
            opened.model.to(place),
            opened.data,
            positions,
            exclude_seen=exclude_seen,
            device=place,
            advance=advance,
        )
    folder, what = opened.folder, f"{split} targets"
    if split != "test" or exclude_seen:
        folder = folder / f"{split}{'-unseen' if exclude_seen else ''}"
        folder.mkdir(exist_ok=True)
        what += " (items of the history left out)" if exclude_seen else ""
    results = report(folder, opened.name, opened.model.cpu(), opened.data, ranks, what)
    return Evaluation(opened.name, results, ranks, folder)
