"""`hafvt evaluate`: honest figures of a trained model."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import Results, summarize
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.evaluation.tables import plain_table
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.cold import rank_cold
from hafvt.progress import progress
from hafvt.reports.report import report
from hafvt.training.run import open_run

NOTICEABLE = 0.001  # of 1: by how much the rule for ties may change a figure without a warning


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        model: name of the model.
        results: per domain and overall, each metric with its 95 % interval.
        ranks: of every target.
        half: under c2dsr, the same with ties at half: what the rule for ties would hide; else empty.
        folder: where ranks.parquet and report.html were written.
        chance: under --cold, what a random order is expected to have; else empty.
    """

    model: str
    results: Results
    ranks: Ranks
    half: Results
    folder: Path
    chance: Results = field(default_factory=dict)

    @property
    def flattered(self) -> float:
        """By how much, of 1, c2dsr's rule lifts a figure at most; 0 where it is no more than 0.1 points."""
        gaps = [
            self.results[domain][metric].value - figure.value
            for domain, row in self.half.items()
            for metric, figure in row.items()
        ]
        return max((gap for gap in gaps if abs(gap) > NOTICEABLE), default=0.0, key=abs)

    def __str__(self) -> str:
        """The table, in per cent."""
        if self.chance:
            table = plain_table({self.model: self.results, "a random order": self.chance}, mark_best=False)
            times = ", ".join(
                f"{row['MRR'].value / self.chance[name]['MRR'].value:.1f} times {name}"
                for name, row in self.results.items()
            )
            return (
                f"{table}\nMRR over items that training never met, beside a random order's: {times}\n"
                f"wrote ranks.parquet and results.json to {self.folder}"
            )
        if self.half:
            rows = {f"{self.model}, c2dsr's rule": self.results, "ties at half": self.half}
            table = plain_table(rows, mark_best=False)
        else:
            table = plain_table({self.model: self.results})
        if self.flattered:
            table += (
                f"\nWARNING: c2dsr's rule for ties flatters {self.model} by up to {100 * self.flattered:.2f} "
                "points: report the figures with ties at half"
            )
        return f"{table}\nwrote ranks.parquet, results.json and report.html to {self.folder}"


def evaluate(
    run: str | Path,
    *,
    protocol: str = "full",
    split: Literal["test", "valid"] = "test",
    exclude_seen: bool = False,
    cold: bool = False,
    data: str | Path | Dataset | None = None,
    device: str = "cpu",
) -> Evaluation:
    """Ranks every target of a finished run and writes ranks.parquet and report.html.

    By default ranks are counted among all items of the target's domain, ties at half; MRR, NDCG@5, NDCG@10
    and HR@1/5/10 come with 95 % bootstrap intervals over users, per domain and as the mean of the domains.

    Example: hafvt evaluate runs/hafvt --protocol full

    Args:
        run: the folder that train wrote.
        protocol: full ranks among all items of the target's domain; c2dsr as the paper's tables do, among 999
            negatives drawn with replacement, where what comes within 1e-5 counts for the target (beside it
            stand the figures with ties at half); strict among 999 distinct items that the user never had.
        split: test or valid. Choose nothing by test.
        exclude_seen: leave items of the history out of the candidates.
        cold: rank the items that `prepare --hold-out-items` held out of training instead, among all items of
            their domain, ties at half; prints the figures of a random order beside.
        data: the dataset, where it has moved since training.
        device: cpu or cuda.

    Raises:
        HafvtError: no finished run, or the dataset is not the one it was trained on.
    """
    ranking = get_protocol(protocol)
    if exclude_seen and not ranking.ranks_all_items:
        raise HafvtError(f"--exclude-seen goes with --protocol full, not {protocol}: leave out one of them")
    if cold and (not ranking.ranks_all_items or split != "test" or exclude_seen):
        raise HafvtError("--cold goes with no other protocol, split or --exclude-seen: leave them out")
    opened = open_run(run, data)
    if cold:
        ranks, results, chance = rank_cold(opened, torch.device(device))
        return Evaluation(opened.name, results, ranks, {}, opened.folder / "cold", chance)
    targets = len(opened.data.test if split == "test" else opened.data.valid)
    if targets == 0:
        raise HafvtError(f"{opened.data.folder} has no {split} targets: prepare it with longer histories")
    place = torch.device(device)
    with progress(f"evaluate {opened.name}", targets, "targets") as advance:
        half, ranks = rank_targets(
            [model.to(place) for model in opened.models],
            opened.data,
            split,
            ranking,
            exclude_seen=exclude_seen,
            device=place,
            advance=advance,
        )
    # What training wrote into the run's folder, of test by its own protocol, is replaced by its like alone.
    folder, what = opened.folder, f"{split} targets"
    own = opened.about["training"].get("protocol", "full")
    words: list[str] = [] if split == "test" and protocol == own and not exclude_seen else [split]
    words += [protocol] if protocol != own else []
    words += ["unseen"] if exclude_seen else []
    if words:
        folder = folder / "-".join(words)
        folder.mkdir(exist_ok=True)
        what += " (items of the history left out)" if exclude_seen else ""
    models = [model.cpu() for model in opened.models]
    results = report(folder, opened.name, models, opened.data, ranks, what, ranking)
    names = [domain.name for domain in opened.data.domains]
    return Evaluation(
        opened.name, results, ranks, summarize(half, names) if not ranking.ties_count_half else {}, folder
    )
