"""`hafvt evaluate`: rank the targets of a finished run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from hafvt.data.dataset import Dataset
from hafvt.data.repeats import CandidateRule
from hafvt.errors import ArgumentError, HafvtError
from hafvt.evaluation.list_metrics import ListResults
from hafvt.evaluation.metrics import METRICS, Metric, Results, metrics_at
from hafvt.evaluation.protocols import Protocol, get_protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.evaluation.results import (
    OTHER_CANDIDATES,
    RANKS,
    read_description,
    read_half_tie_results,
    read_list_results,
    read_other_results,
    read_results,
    read_results_by_novelty,
    write_results,
)
from hafvt.evaluation.tables import plain_list_table, plain_table, plain_table_at
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.cold_evaluation import rank_cold_targets
from hafvt.experiments.newer_evaluation import rank_newer_targets
from hafvt.files import explained_write_errors
from hafvt.ops.collectives import barrier, process_group
from hafvt.ops.device import process_device
from hafvt.processes import num_processes, process_index
from hafvt.progress import progress
from hafvt.reports.report import write_run_report
from hafvt.settings import Device, Devices, Folder, check_arguments
from hafvt.training.config import module_arguments
from hafvt.training.launch import launch_processes
from hafvt.training.run import Run, histories_of, open_run

TIE_TOLERANCE = 0.001  # a smaller effect of the tie rule, as a fraction of 1, gives no warning


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation; `str()` returns its table.

    Attributes:
        model: name of the model.
        results: by domain and "overall", each metric with its 95 % interval.
        ranks: of every target.
        half_tie_results: under c2dsr the same metrics with a tie counted half, else empty.
        folder: ranks.parquet, results.json and report.html.
        by_novelty: the metrics of new targets and of repeats, which the history contains; empty without
            repeats.
        random_order: with `cold` the expected metrics of a random order, else empty.
        other_results: the metrics by the other rule for items of the history; empty without repeats.
        list_results: coverage, Gini, popularity, novelty, diversity and calibration of the recommended
            lists; empty for protocols that draw negatives.
    """

    model: str
    results: Results
    ranks: Ranks
    half_tie_results: Results
    folder: Path
    by_novelty: dict[str, Results] = field(default_factory=dict)
    random_order: Results = field(default_factory=dict)
    other_results: Results = field(default_factory=dict)
    list_results: ListResults = field(default_factory=dict)

    @property
    def tie_gain(self) -> float:
        """The largest effect of c2dsr's tie rule on a metric, as a fraction of 1; 0 up to 0.001."""
        gains = [
            self.results[domain][metric].value - value.value
            for domain, row in self.half_tie_results.items()
            for metric, value in row.items()
        ]
        return max((gain for gain in gains if abs(gain) > TIE_TOLERANCE), default=0.0, key=abs)

    def __str__(self) -> str:
        rows, files, lines = {self.model: self.results}, "ranks.parquet, results.json and report.html", []
        if self.random_order:
            rows["a random order"], files = self.random_order, "ranks.parquet and results.json"
            ratios = ", ".join(
                f"{row['MRR'].value / self.random_order[name]['MRR'].value:.1f} ({name})"
                for name, row in self.results.items()
            )
            lines.append(f"MRR over cold items, as a multiple of that of a random order: {ratios}")
        if self.half_tie_results:
            rows = {f"{self.model}, c2dsr's rule": self.results, "ties at half": self.half_tie_results}
        if self.tie_gain:
            lines.append(
                f"WARNING: c2dsr's tie rule raises a metric of {self.model} by up to "
                f"{100 * self.tie_gain:.2f} points: report the values with ties at half"
            )
        rows |= {f"{self.model}, {OTHER_CANDIDATES}": self.other_results} if self.other_results else {}
        rows |= self.by_novelty
        table = plain_table(_select(rows, METRICS), mark_best=False)
        if any(metric not in METRICS for row in self.results.values() for metric in row):
            lines.insert(0, plain_table_at(self.results))
        if self.list_results:
            lines.insert(0, plain_list_table(self.list_results))
        lines.append(read_description(self.folder))
        return "\n".join([table, *lines, f"wrote {files} to {self.folder}"])


@check_arguments
def evaluate(
    run: Folder,
    *,
    protocol: str = "full",
    split: Literal["test", "valid"] = "test",
    candidates: CandidateRule = "auto",
    at: list[int] | None = None,
    cold: bool = False,
    data: str | Path | Dataset | None = None,
    device: Device = "cpu",
    devices: Devices = 1,
) -> Evaluation:
    """Rank every target of a finished run and write ranks.parquet, results.json and report.html.

    By default a target is ranked among the items that `recommend` may list, and a tie counts half. MRR,
    NDCG@5, NDCG@10 and HR@1/5/10 have 95 % bootstrap intervals over users, per domain and as the mean of the
    domains. Coverage, Gini, popularity, novelty, diversity and calibration describe the recommended lists of
    10 items. Several processes, by `devices` or torchrun, share the targets; the ranks do not depend on their
    number.

    Example: hafvt evaluate runs/hafvt --protocol full --at 5 10 20

    Args:
        run: the folder that train wrote.
        protocol: full ranks among all items of the target's domain. c2dsr ranks as the paper's tables do:
            among 999 negatives drawn with replacement, where a score within 1e-5 of the target's counts as
            lower; the metrics with ties at half stand beside. sampled-unseen ranks among 999 distinct items
            that the user has not seen.
        split: test or valid. Make no choices by test.
        candidates: with protocol full: all ranks a target among all items of its domain; unseen leaves out
            the items of the history, and a target that is among them counts as missed; auto is the
            choice of the training: by default, all in domains where more than 5 % of the next items are
            repeats (see info), and unseen in others.
        at: also give NDCG, HR, recall, precision, MAP and MRR of the first k items, for each k of a list.
        cold: rank the items that `prepare --hold-out-items` held out of training instead, among the items of
            their domain that are candidates by default; the expected metrics of a random order stand beside.
        data: the dataset, where it has moved since training, or a newer one: its targets are ranked among the
            items of the run, matched by their ids. Targets with other items count as missed. The results are
            in the subfolder named after split and dataset, such as test-2026-12-07.
        device: auto, cpu, cuda, cuda:N or mps.
        devices: processes that rank together on this machine, with cuda each on a GPU of its own.

    Raises:
        HafvtError: the run is not finished, the dataset has no targets, or options exclude each other.
    """
    ranking = get_protocol(protocol, candidates)  # checks both before the run is opened
    metrics = metrics_at(at or [])
    if cold and (not ranking.ranks_all_items or split != "test" or candidates != "auto" or at):
        raise ArgumentError(
            "--cold ranks by its own rule: leave out --protocol, --split, --candidates and --at"
        )
    if devices == 1:
        return _evaluate(run, ranking, split, metrics, cold, data, device)
    if cold or num_processes() > 1:
        raise ArgumentError("--devices starts processes: leave it out with torchrun, and with --cold")
    opened = open_run(run, data, models=())
    if opened.data.is_catalog:
        raise ArgumentError(f"--devices needs the dataset that {run} was trained on: leave it out")
    options = {"protocol": protocol, "split": split, "candidates": candidates, "device": device}
    if data is not None:
        options["data"] = str(data.folder if isinstance(data, Dataset) else data)
    arguments = [f"--{name}={value}" for name, value in options.items()]
    arguments += [*(f"--at={length}" for length in at or []), *module_arguments(opened.name)]
    launch_processes(["evaluate", str(run), *arguments], devices)
    folder = _results_folder(opened, ranking, split)
    positions = opened.data.test if split == "test" else opened.data.valid
    return _read_evaluation(opened, folder, Ranks.read(folder / RANKS, opened.data, np.asarray(positions)))


@process_group()
def _evaluate(
    run: Folder,
    ranking: Protocol,
    split: Literal["test", "valid"],
    metrics: Mapping[str, Metric],
    cold: bool,
    data: str | Path | Dataset | None,
    device: str,
) -> Evaluation:
    """Return `evaluate` in this process, and in others that torchrun started."""
    target_device = process_device(device)
    opened = open_run(run, data)
    if opened.data.is_catalog:
        newer = histories_of(opened, data)
        return _evaluate_newer(opened, newer, ranking, split, metrics, cold, target_device)
    if cold:
        ranks, results, random_order = rank_cold_targets(opened, target_device)
        return Evaluation(opened.name, results, ranks, {}, opened.folder / "cold", random_order=random_order)
    ranking, folder = _training_rule(opened, ranking), _results_folder(opened, ranking, split)
    num_targets = len(opened.data.test if split == "test" else opened.data.valid)
    if num_targets == 0:
        raise HafvtError(f"{opened.data.folder} has no {split} targets: prepare it with longer histories")
    with progress(f"evaluate {opened.name}", num_targets, "targets") as advance:
        half_ties, ranks = rank_targets(
            [model.to(target_device) for model in opened.models],
            opened.data,
            split,
            ranking,
            with_lists=True,
            device=target_device,
            advance=advance,
        )
    for model in opened.models:
        model.cpu()
    with explained_write_errors(folder):
        folder.mkdir(exist_ok=True)
    ties = None if ranking.ties_count_half else half_ties
    write_results(folder, opened.data, ranks, ranking, f"{split} targets", ties, metrics)
    if process_index() == 0:
        write_run_report(opened, folder, ranking.candidates if ranking.ranks_all_items else None)
    barrier()  # all processes read what process 0 has written
    return _read_evaluation(opened, folder, ranks)


def _select(rows: Mapping[str, Results], metrics: Mapping[str, Metric]) -> dict[str, Results]:
    """Return the results of some metrics."""
    return {
        label: {domain: {m: v for m, v in row.items() if m in metrics} for domain, row in results.items()}
        for label, results in rows.items()
    }


def _evaluate_newer(
    opened: Run,
    data: Dataset,
    ranking: Protocol,
    split: Literal["test", "valid"],
    metrics: Mapping[str, Metric],
    cold: bool,
    device: torch.device,
) -> Evaluation:
    """Return the evaluation of a run on the targets of another dataset than that of its training."""
    if cold or not ranking.ranks_all_items or num_processes() > 1:
        raise ArgumentError(
            f"{data.folder} is not the dataset that {opened.folder} was trained on, whose targets are ranked "
            "by one process among all items: leave out --cold and --protocol, and torchrun"
        )
    ranking = _training_rule(opened, ranking)
    newer_run, ranks, targets = rank_newer_targets(opened, data, split, ranking, device)
    names = [split, data.folder.resolve().name] + [ranking.candidates] * (ranking.candidates != "auto")
    folder = opened.folder / "-".join(names)
    with explained_write_errors(folder):
        folder.mkdir(exist_ok=True)
    write_results(folder, newer_run.data, ranks, ranking, targets, metrics=metrics)
    write_run_report(newer_run, folder, ranking.candidates)
    return _read_evaluation(opened, folder, ranks)


def _training_rule(run: Run, ranking: Protocol) -> Protocol:
    """Return the protocol of the training in place of its namesake with default candidates."""
    is_default = ranking.name == run.protocol.name and ranking.candidates == "auto"
    return run.protocol if is_default else ranking


def _results_folder(run: Run, ranking: Protocol, split: str) -> Path:
    """Return the folder of results: that of the run for test targets by the protocol of the training.

    Other results have a subfolder, named after the split, protocol and candidates that were chosen.
    """
    if split == "test" and _training_rule(run, ranking) == run.protocol:
        return run.folder
    names = [split] + ([] if ranking.name == run.protocol.name else [ranking.name])
    names += [] if ranking.candidates == "auto" else [ranking.candidates]
    return run.folder / "-".join(names)


def _read_evaluation(run: Run, folder: Path, ranks: Ranks) -> Evaluation:
    """Return the evaluation in a folder of results."""
    return Evaluation(
        run.name,
        read_results(folder),
        ranks,
        read_half_tie_results(folder),
        folder,
        read_results_by_novelty(folder),
        other_results=read_other_results(folder),
        list_results=read_list_results(folder),
    )
