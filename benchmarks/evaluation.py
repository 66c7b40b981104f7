"""How many histories a second are ranked against a whole catalog, and in how much memory.

    python benchmarks/evaluation.py [--items 28500]

One target per history among all items of two domains of very unequal size, so that nearly each is ranked
among the whole catalog; histories of 20 items, untrained models (which takes as long), all processors.
Writes results/evaluation.md and .json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from contestants.common import Meter
from generated import write_histories
from machine import describe, record, sentence

from hafvt.data.dataset import Dataset, Domain
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.features.item_features import ItemFeatures, Vectors
from hafvt.models import build_model, configure
from hafvt.tables import markdown_table

USERS, LENGTH, OTHER = 20_000, 20, 100
CASES = {
    "sasrec": {"width": 64, "max_length": LENGTH},
    "hafvt": {"id_width": 64, "max_length": LENGTH},
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of full ranking.")
    parser.add_argument("--items", type=int, default=28_500)
    items: int = parser.parse_args().items
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder) / "data", items)
        here = torch.ones(items, dtype=torch.bool)
        torch.manual_seed(0)
        vectors = {
            name: Vectors(F.normalize(torch.randn(items, 512), dim=1), here) for name in ("image", "title")
        }
        catalog = ItemFeatures(data.domains, vectors, torch.ones(items))
        for name, params in CASES.items():
            model = build_model(name, catalog, configure(name, params=params))
            positions = np.asarray(data.test)[: USERS if name == "sasrec" else USERS // 5]
            rank_positions(model, data, positions[:500])
            with Meter() as meter:
                rank_positions(model, data, positions)
            results[name] = {
                "histories": len(positions),
                "histories_per_s": len(positions) / meter.wall_s,
                "histories_per_cpu_s": len(positions) / meter.cpu_s,
                "mib_above_start": 1024 * meter.above_gib,
                "mib_of_all_scores": len(positions) * items * 4 / 2**20,
            }
            print(name, results[name], flush=True)
    write(results, items)


def generate(folder: Path, items: int) -> Dataset:
    """Writes random histories; a handful of items make the other domain."""
    random = np.random.default_rng(0)
    domains = [Domain("first", 0, items - OTHER), Domain("second", items - OTHER, items)]
    return write_histories(folder, domains, random.integers(items, size=(USERS, LENGTH + 2)))


def write(results: dict[str, dict[str, Any]], items: int) -> None:
    """Writes the table."""
    machine = describe()
    rows = [
        [
            f"{name}, width 64" + (", three modalities" if name == "hafvt" else ""),
            f"{row['histories']:,}",
            f"{row['histories_per_s']:,.0f}",
            f"{row['histories_per_cpu_s']:,.0f}",
            f"{row['mib_above_start']:,.0f}",
            f"{row['mib_of_all_scores']:,.0f}",
        ]
        for name, row in results.items()
    ]
    header = [
        "model",
        "histories",
        "histories/s",
        "per CPU-s",
        "MiB above start",
        "MiB all scores would take",
    ]
    text = [
        "# Ranking against the whole catalog",
        "",
        f"`python benchmarks/evaluation.py`: {items:,} items, histories of {LENGTH} items.",
        "",
        sentence(machine),
        "",
        markdown_table(header, rows),
    ]
    record("evaluation", "\n".join(text), {"machine": machine, "items": items, "models": results})


if __name__ == "__main__":
    main()
