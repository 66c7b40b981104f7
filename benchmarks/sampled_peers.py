"""Our SASRec beside those of RecTools and RePlay with their sampled losses and a million items.

    python benchmarks/sampled_peers.py --work DIR [--items 1000000] [--steps 5]

A generated log: histories of 51 items, each item at least once, the rest uniform. Each system trains in a
process of its own, one after the other, by one thread, and the peers in virtual environments of their own,
which are made on the first call. Writes results/sampled_peers.md and .json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from contestants.common import BLOCKS, HEADS, NEGATIVES, SAMPLED_BATCH, SAMPLED_LENGTH, SAMPLED_WIDTH
from environments import interpreter
from machine import describe, record, sentence

from hafvt.files import read_json
from hafvt.tables import markdown_table

HERE = Path(__file__).resolve().parent / "contestants"
SYSTEMS = ("hafvt", "rectools", "replay")


def main() -> None:
    parser = argparse.ArgumentParser(description="Sampled training of hafvt, RecTools and RePlay.")
    parser.add_argument("--work", type=Path, required=True, help="folder for environments, log and figures")
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--steps", type=int, default=5, help="steps that are measured")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    log = work / f"log-{arguments.items}.npz"
    generate(log, arguments.items)
    results: dict[str, dict[str, Any]] = {}
    for name in SYSTEMS:
        out = work / f"{name}-sampled"
        out.mkdir(exist_ok=True)
        command = [interpreter(name, work), HERE / f"{name}_sampled.py", "--log", log, "--out", out]
        subprocess.run(
            [*map(str, command), "--passes", str(arguments.steps)],
            check=True,
            cwd=out,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        results[name] = read_json(out / "figures.json")
        print(name, results[name], flush=True)
    write(results, arguments.items, arguments.steps)


def generate(path: Path, num_items: int) -> None:
    """Write the log, as `contestants.common.read` reads it."""
    random, length = np.random.default_rng(0), SAMPLED_LENGTH + 1
    num_rows = -(-num_items * 5 // 4 // length)
    items = np.concatenate(
        [np.arange(num_items), random.integers(num_items, size=num_rows * length - num_items)]
    )
    random.shuffle(items)
    offsets = np.arange(num_rows + 1) * length
    np.savez(
        path, items=num_items, train=items, train_offsets=offsets, history=items, history_offsets=offsets
    )


def write(results: dict[str, dict[str, Any]], num_items: int, steps: int) -> None:
    """Write the table."""
    machine = {**describe(), "threads": 1}
    best = max(row["histories_per_cpu_s"] for name, row in results.items() if name != "hafvt")
    rows = [
        [
            row["version"],
            f"{row['histories_per_cpu_s']:,.0f}",
            f"{row['histories_per_cpu_s'] / best:.2f}",
            f"{row['ms']:,.0f}",
            f"{row['gib']:.2f}",
        ]
        for row in results.values()
    ]
    header = ["system", "histories per CPU-s", "of the best peer", "CPU-ms per step", "GiB"]
    text = [
        "# Sampled training of three libraries",
        "",
        f"`python benchmarks/sampled_peers.py --work DIR`: SASRec of {BLOCKS} blocks of {HEADS} heads, width "
        f"{SAMPLED_WIDTH}, {num_items:,} items, generated histories of {SAMPLED_LENGTH} targets, "
        f"{SAMPLED_BATCH} histories per step, {NEGATIVES} uniform negatives, Adam, {steps} steps after two "
        "others. hafvt and RePlay draw the negatives once for all targets of a step, RecTools for each "
        "target. GiB: the greatest memory during the steps beyond that before the model, which includes what "
        "RecTools makes of the log.",
        "",
        sentence(machine),
        "",
        markdown_table(header, rows),
    ]
    record(
        "sampled_peers", "\n".join(text) + "\n", {"machine": machine, "items": num_items, "systems": results}
    )


if __name__ == "__main__":
    main()
