"""results.json and ranks.parquet: the metrics and the ranks of one evaluated model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from hafvt.data.dataset import Dataset
from hafvt.evaluation.metrics import MetricValue, Results, summarize
from hafvt.evaluation.protocols import Protocol
from hafvt.evaluation.ranks import Ranks
from hafvt.files import read_json, write_json


def write_results(
    folder: Path, data: Dataset, ranks: Ranks, protocol: Protocol, targets: str = "test targets"
) -> Results:
    """Summarize ranks and write ranks.parquet and results.json.

    Args:
        folder: where the files are written.
        data: the dataset of the targets.
        ranks: of the targets.
        protocol: by which they were ranked.
        targets: what the targets are, in words for reports.

    Returns:
        The metrics per domain and overall.
    """
    results = summarize(ranks, [domain.name for domain in data.domains])
    ranks.write(folder / "ranks.parquet", data)
    description = (
        f"{len(ranks.ranks):,} {targets} of {len(np.unique(ranks.users)):,} users, each ranked among "
        f"{protocol.describe(data)}; intervals: 95 % bootstrap over users"
    )
    content = {"protocol": protocol.name, "description": description, "results": results_to_json(results)}
    write_json(folder / "results.json", content)
    return results


def read_results(folder: Path) -> Results:
    """Return the metrics in a folder's results.json."""
    return results_from_json(read_json(folder / "results.json")["results"])


def read_description(folder: Path) -> str:
    """Return the sentence in a folder's results.json that says what was ranked, and how."""
    return str(read_json(folder / "results.json")["description"])


def results_to_json(results: Results) -> dict[str, Any]:
    """Return metrics as nested dictionaries that JSON can hold."""
    return {domain: {name: asdict(value) for name, value in row.items()} for domain, row in results.items()}


def results_from_json(content: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> Results:
    """Return the metrics that `results_to_json` turned into dictionaries."""
    return {d: {name: MetricValue(**value) for name, value in row.items()} for d, row in content.items()}
