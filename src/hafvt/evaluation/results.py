"""results.json and ranks.parquet: the metrics and the ranks of one evaluated model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.evaluation.list_metrics import ListResults, summarize_lists
from hafvt.evaluation.metrics import Metric, MetricValue, Results, summarize
from hafvt.evaluation.negatives import NUM_NEGATIVES
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.files import explained_read_errors, read_json, sha256, verify_files, verify_json, write_json
from hafvt.processes import process_index

NOVELTY = ("new targets", "repeats")
RANKS = "ranks.parquet"
OTHER_CANDIDATES = "other candidates"
HALF_TIES = "ties at half"
REMEDY = "evaluate the run again with hafvt evaluate"


def write_results(
    folder: Path,
    data: Dataset,
    ranks: Ranks,
    protocol: Protocol,
    targets: str = "test targets",
    half_ties: Ranks | None = None,
    metrics: Mapping[str, Metric] | None = None,
) -> Results:
    """Write ranks.parquet and results.json into a folder, and return the metrics per domain and overall.

    `targets` says what the targets are, in words for reports. `half_ties` are the ranks with ties at half, if
    the protocol has another rule. `metrics` are those of every evaluation by default. Of several processes,
    process 0 writes.
    """
    names = [domain.name for domain in data.domains]
    results, notes = summarize(ranks, names, metrics=metrics), _notes(ranks, data, protocol)
    if process_index() > 0:
        return results
    ranks.write(folder / RANKS, data)
    description = (
        f"{len(ranks.ranks):,} {targets} of {len(np.unique(ranks.users)):,} users, each ranked among "
        f"{protocol.describe(data)}; intervals: 95 % bootstrap over users"
    )
    content = {
        "protocol": protocol.name,
        "candidates": protocol.candidates,
        "description": "; ".join([description, *notes]),
        "notes": notes,
        "results": results_to_json(results),
        **{n: results_to_json(part) for n, part in _results_by_novelty(ranks, data, metrics).items()},
        "lists": summarize_lists(ranks, data),
        "sha256": {RANKS: sha256(folder / RANKS)},
    }
    if (other := ranks.by_other_rule()) is not None:
        content[OTHER_CANDIDATES] = results_to_json(summarize(other, names, metrics=metrics))
    if half_ties is not None:
        content[HALF_TIES] = results_to_json(summarize(half_ties, names, metrics=metrics))
    write_json(folder / "results.json", content, checksum=True)
    return results


def _results_by_novelty(
    ranks: Ranks, data: Dataset, metrics: Mapping[str, Metric] | None
) -> dict[str, Results]:
    """Return the metrics of new targets and of repeats, see `read_results_by_novelty`."""
    if not ranks.is_repeat.any():
        return {}
    names = [domain.name for domain in data.domains]
    parts = dict(zip(NOVELTY, (~ranks.is_repeat, ranks.is_repeat), strict=True))
    return {
        name: summarize(ranks, names, rows, metrics=metrics) for name, rows in parts.items() if rows.any()
    }


def _notes(ranks: Ranks, data: Dataset, protocol: Protocol) -> list[str]:
    """Return in words what is particular about targets: few candidates, repeats."""
    notes, expected = [], 0 if protocol.ranks_all_items else 1 + NUM_NEGATIVES
    for number, domain in enumerate(data.domains):
        counts = ranks.candidates[(ranks.domains == number) & (ranks.candidates > 1)]
        if len(counts) and counts.min() < expected:
            spread = " to ".join(f"{count:,}" for count in np.unique([counts.min(), counts.max()]))
            notes.append(
                f"{domain.name}: only {spread} candidates per target, as the domain has no more unseen items"
            )
        elif len(counts) and len(domain) < expected:
            notes.append(
                f"{domain.name}: the {NUM_NEGATIVES} negatives of a target contain items several times, as "
                f"the domain has {len(domain):,} items"
            )
    if ranks.is_repeat.any():
        num_missed = int(np.isinf(ranks.ranks).sum())
        notes.append(
            f"repeats, which the history contains: {ranks.is_repeat.mean():.1%} of the targets"
            + (f", {num_missed:,} of which count as missed" if num_missed else "")
        )
    if ranks.other_ranks is not None:
        excluded = [d.name for d, out in zip(data.domains, protocol.exclude_seen(data), strict=True) if out]
        included = [domain.name for domain in data.domains if domain.name not in excluded]
        rules = [f"items of the history ranked as well in {', '.join(excluded)}"] if excluded else []
        rules += [f"without items of the history in {', '.join(included)}"] if included else []
        notes.append(f"{OTHER_CANDIDATES}: {'; '.join(rules)}")
    if lone := len(ranks.ranks) - len(ranks.with_rivals().ranks):
        notes.append(f"{lone:,} targets without another candidate are left out of the means")
    return notes


def _read_content(folder: Path) -> dict[str, Any]:
    """Return the content of a folder's results.json after a check for damage."""
    content: dict[str, Any] = read_json(folder / "results.json", REMEDY)
    verify_json(folder / "results.json", content, REMEDY)
    return content


def verify_ranks(folder: Path) -> None:
    """Check that a folder's ranks.parquet is the one that its results.json was computed from.

    Raises:
        HafvtError: it is missing or damaged, or results.json is.
    """
    with explained_read_errors(folder / "results.json", REMEDY):
        verify_files(folder, _read_content(folder).get("sha256", {}), REMEDY)


def read_results(folder: Path) -> Results:
    """Return the metrics in a folder's results.json."""
    with explained_read_errors(folder / "results.json", REMEDY):
        return results_from_json(_read_content(folder)["results"])


def read_results_by_novelty(folder: Path) -> dict[str, Results]:
    """Return the metrics of new targets and of repeats in a folder's results.json.

    Repeats are targets that the history contains. Without repeats, nothing is returned.
    """
    with explained_read_errors(folder / "results.json", REMEDY):
        content = _read_content(folder)
        return {name: results_from_json(content[name]) for name in NOVELTY if name in content}


def read_other_results(folder: Path) -> Results:
    """Return the metrics by the other rule for items of the history, empty without repeats."""
    with explained_read_errors(folder / "results.json", REMEDY):
        return results_from_json(_read_content(folder).get(OTHER_CANDIDATES, {}))


def read_half_tie_results(folder: Path) -> Results:
    """Return the metrics with ties at half, empty where the protocol counts them so."""
    with explained_read_errors(folder / "results.json", REMEDY):
        return results_from_json(_read_content(folder).get(HALF_TIES, {}))


def read_list_results(folder: Path) -> ListResults:
    """Return the metrics of the recommended lists in a folder's results.json; empty where there are none."""
    with explained_read_errors(folder / "results.json", REMEDY):
        results: ListResults = _read_content(folder).get("lists", {})
        return results


def read_description(folder: Path) -> str:
    """Return the sentence in a folder's results.json that says what was ranked, and how."""
    with explained_read_errors(folder / "results.json", REMEDY):
        return str(_read_content(folder)["description"])


def read_notes(folder: Path) -> list[str]:
    """Return what a reader of the metrics in a folder's results.json must know beside the protocol."""
    with explained_read_errors(folder / "results.json", REMEDY):
        return list(_read_content(folder).get("notes", ()))


def results_to_json(results: Results) -> dict[str, Any]:
    """Return metrics as nested dictionaries that JSON can hold."""
    return {domain: {name: asdict(value) for name, value in row.items()} for domain, row in results.items()}


def results_from_json(content: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Results:
    """Return the metrics that `results_to_json` turned into dictionaries."""
    return {d: {name: MetricValue(**value) for name, value in row.items()} for d, row in content.items()}
