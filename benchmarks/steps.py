"""How fast every model trains, and how much of a step is spent in tensor operations.

    python benchmarks/steps.py [--models sasrec srgnn]

Histories of 20 items, width 64, batches of 128, two domains of 4,000 items each, all cores. Of the steps of
a model the median counts; a profiler then tells which share of the wall time some tensor operation was under
way, in the main thread or in that of the backward pass. Writes results/steps.md and .json.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import write_histories
from machine import describe, record, sentence
from torch.profiler import ProfilerActivity, profile

from hafvt.data.batches import Batch, TrainBatches
from hafvt.data.dataset import Dataset, Domain
from hafvt.features.item_features import load_item_features
from hafvt.models import MODELS, build_model, configure, resolve_config
from hafvt.models.base import Model
from hafvt.tables import markdown_table

WIDTH, LENGTH, BATCH, ITEMS, USERS = 64, 20, 128, 8000, 4096


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of the training step of every model.")
    parser.add_argument(
        "--models", nargs="+", default=[name for name, entry in MODELS.items() if entry.has_weights]
    )
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = generate(Path(folder) / "data")
        results = {}
        for name in arguments.models:
            results[name] = measure(name, data, arguments.steps)
            print(name, results[name], flush=True)
    if set(results) == {name for name, entry in MODELS.items() if entry.has_weights}:
        write(results)


def generate(folder: Path) -> Dataset:
    """Writes random histories over two domains, each item likely to follow its predecessor."""
    random = np.random.default_rng(0)
    length = LENGTH + 2
    items = np.empty((USERS, length), dtype=np.int32)
    items[:, 0] = random.integers(ITEMS, size=USERS)
    for slot in range(1, length):
        step = random.choice([7, ITEMS // 2 + 3, 31], size=USERS)
        items[:, slot] = (items[:, slot - 1] + step) % ITEMS
    half = ITEMS // 2
    domains = [Domain("first", 0, half), Domain("second", half, ITEMS)]
    return write_histories(folder, domains, items)


def measure(name: str, data: Dataset, steps: int) -> dict[str, Any]:
    """Returns a model's speed, its parameters, and the share of its step within tensor operations."""
    torch.manual_seed(0)
    names = type(configure(name)).model_fields
    params = {"width": WIDTH, "max_length": LENGTH, "pretrain_steps": 0}
    config = configure(name, params={key: value for key, value in params.items() if key in names})
    catalog = load_item_features(data, relations=True)
    model = build_model(name, catalog, resolve_config(config, catalog)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    batches = list(TrainBatches(data, batch_size=BATCH, max_length=model.max_length, seed=0).epoch(0))
    step(model, optimizer, batches[0])
    step(model, optimizer, batches[1])
    seconds = []
    for number in range(steps):
        start = time.perf_counter()
        step(model, optimizer, batches[number % len(batches)])
        seconds.append(time.perf_counter() - start)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        start = time.perf_counter()
        for number in range(5):
            step(model, optimizer, batches[number])
        wall = time.perf_counter() - start
    spans = [(e.time_range.start, e.time_range.end) for e in profiler.events() if e.name.startswith("aten::")]
    return {
        "examples per s": round(BATCH / statistics.median(seconds)),
        "ms per step": round(1000 * statistics.median(seconds), 1),
        "share in tensor operations": round(covered(spans) / 1e6 / wall, 3),
        "parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }


def step(model: Model, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One training step as the trainer takes it."""
    optimizer.zero_grad(set_to_none=True)
    model.loss(batch).backward()
    optimizer.step()


def covered(spans: list[tuple[float, float]]) -> float:
    """Returns the length of the union of spans."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(stop - max(start, end), 0.0)
        end = max(end, stop)
    return total


def write(results: dict[str, dict[str, Any]]) -> None:
    """Writes the table."""
    machine = describe()
    yardstick = results["sasrec"]["examples per s"]
    rows = [
        [
            name,
            f"{row['examples per s']:,}",
            f"{row['examples per s'] / yardstick:.2f}",
            f"{row['ms per step']:.1f}",
            f"{100 * row['share in tensor operations']:.0f}",
            f"{row['parameters'] / 1e6:.2f}",
        ]
        for name, row in results.items()
    ]
    header = [
        "model",
        "histories/s",
        "of sasrec's",
        "ms per step",
        "in tensor operations, %",
        "parameters, M",
    ]
    text = [
        "# Training steps of all models",
        "",
        f"`python benchmarks/steps.py`: histories of {LENGTH} items, width {WIDTH}, batches of {BATCH}, two "
        f"domains of {ITEMS // 2:,} items each.",
        "",
        sentence(machine),
        "",
        markdown_table(header, rows),
        "",
        "SR-GNN, MIFN and Tri-CDR take a few prefixes of each history in a step, drawn anew each time; the "
        "others all of them.",
        "",
    ]
    record("steps", "\n".join(text), {"machine": machine, "models": results})


if __name__ == "__main__":
    main()
