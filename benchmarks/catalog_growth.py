"""Speed and memory of sampled training steps against the size of the catalog.

    python benchmarks/catalog_growth.py [--large]

Histories of 51 uniformly drawn items, batches of 64, 4,096 negatives for each softmax, one thread. A step is
the trainer's: loss, gradients, average and optimizer. Each size runs in a process of its own; small and large
catalogs take turns, so that other work on the machine slows both. Processor time counts. With --large,
10,000,000 items of width 64 are measured, too; they need 12 GiB. Writes results/catalog_growth.md and .json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from machine import describe, record, sentence
from torch.nn import functional

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain
from hafvt.features.item_features import ItemFeatures, Vectors
from hafvt.models import build_model, configure
from hafvt.progress import memory_gib
from hafvt.tables import markdown_table
from hafvt.training.ema import EmaWeights
from hafvt.training.optimizer import RowAdam

BATCH, LENGTH, NEGATIVES, CONTENT_WIDTH, WARMUP_STEPS = 64, 51, 4096, 64, 3
SIZES = [(30_000, 128), (1_000_000, 128)]
LARGE_SIZES = [(30_000, 64), (10_000_000, 64)]
MODELS: dict[str, dict[str, Any]] = {
    "sasrec": {},
    "hafvt, ids": {"modalities": ("id",)},
    "hafvt, ids and titles": {"cluster_sizes": (80,)},
}


def main() -> None:
    """Measure all models and sizes in turns, and write the table."""
    parser = argparse.ArgumentParser(description="Sampled training steps against the size of the catalog.")
    parser.add_argument("--large", action="store_true", help="measure 10,000,000 items, too")
    parser.add_argument("--turns", type=int, default=3, help="measurements of each size")
    parser.add_argument("--steps", type=int, default=10, help="steps of a measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cases = [(model, SIZES) for model in MODELS]
    cases += [(model, LARGE_SIZES) for model in ("sasrec", "hafvt, ids") if arguments.large]
    results = []
    for model, sizes in cases:
        turns: list[list[dict[str, float]]] = [[] for _ in sizes]
        for _ in range(arguments.turns):
            for size, (items, width) in enumerate(sizes):
                command = [model, str(items), str(width), str(arguments.steps)]
                process = subprocess.run(
                    [sys.executable, __file__, "--one", *command],
                    check=True,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                turns[size].append(json.loads(process.stdout.splitlines()[-1]))
                print(*command, turns[size][-1], flush=True)
        ratios = [b["per_second"] / a["per_second"] for a, b in zip(*turns, strict=True)]
        for (items, width), measured in zip(sizes, turns, strict=True):
            medians = {name: statistics.median(one[name] for one in measured) for name in measured[0]}
            case = {"model": model, "items": items, "width": width, "turns": len(measured)}
            results.append({**case, **medians})
        results[-1]["ratio"] = statistics.median(ratios)
    write(results)


def measure(model_name: str, items: int, width: int, steps: int) -> dict[str, float]:
    """Return the histories per CPU-second, and the memory of this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name, before = model_name.partition(",")[0], memory_gib()
    features = ItemFeatures(
        (Domain("x", 0, items // 2), Domain("y", items // 2, items)), {}, torch.ones(items)
    )
    rows = None
    if "titles" in model_name:
        rows = functional.normalize(torch.randn(items, CONTENT_WIDTH), dim=1)
        features.vectors["title"] = Vectors(rows, torch.ones(items, dtype=torch.bool))
    params = {"num_negatives": NEGATIVES, "id_width" if name == "hafvt" else "width": width}
    model = build_model(name, features, configure(name, params=params | MODELS[model_name])).train()
    del features, rows
    optimizer, ema = RowAdam(model.parameters(), lr=1e-3, fused=True), EmaWeights(model, 0.995)
    start = 0.0
    for step in range(WARMUP_STEPS + steps):
        start = time.process_time() if step == WARMUP_STEPS else start
        batch = Batch(torch.randint(0, items, (BATCH, LENGTH)), torch.full((BATCH,), LENGTH))
        optimizer.zero_grad()
        model.loss(batch).backward()  # type: ignore[no-untyped-call]
        ema.update_rows(step)
        optimizer.step()
        ema.update(step + 1)
    seconds = time.process_time() - start
    table = items * width * 4 / 2**30
    content = sum(values.nbytes for key, values in model.named_buffers() if "content" in key) / 2**30
    return {
        "per_second": steps * BATCH / seconds,
        "ms": 1e3 * seconds / steps,
        "tables_gib": 4 * table + content,  # weights, two moments and average; frozen vectors
        "resident_gib": memory_gib() - before,
    }


def write(results: list[dict[str, Any]]) -> None:
    """Write the table."""
    machine = describe()
    header = [
        "model",
        "items",
        "width",
        "turns",
        "histories per CPU-second",
        "of 30,000 items'",
        "resident, GiB",
        "tables, GiB",
    ]
    rows = [
        [
            row["model"],
            f"{row['items']:,}",
            str(row["width"]),
            str(row["turns"]),
            f"{row['per_second']:.0f}",
            f"{row['ratio']:.2f}" if "ratio" in row else "1",
            f"{row['resident_gib']:.2f}",
            f"{row['tables_gib']:.2f}",
        ]
        for row in results
    ]
    text = [
        "# Sampled training steps against the size of the catalog",
        "",
        "`python benchmarks/catalog_growth.py --large`",
        "",
        sentence(machine),
        f"Batches of {BATCH} histories of {LENGTH} items, {NEGATIVES:,} negatives for each softmax. Medians "
        "of measurements in turns, and of their ratios. Resident: memory of the process after the steps, "
        "beyond its start. Tables: weights, both moments and average of the ids, and frozen vectors.",
        "",
        markdown_table(header, rows),
        "",
    ]
    record("catalog_growth", "\n".join(text), {"machine": machine, "results": results})
    print("\n".join(text))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(measure(sys.argv[2], *map(int, sys.argv[3:]))))
    else:
        main()
