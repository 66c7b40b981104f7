"""Memory and time of a training step with whole and with sharded item tables, by number of processes.

    python benchmarks/sharded_catalog.py [--steps 3]

Histories of 20 uniformly drawn items, 64 users per step over all processes, one thread per process. Each row
is a run of its own. Tables are the bytes of weights, moments, averages and frozen vectors of a process.
Resident is its memory after the steps, beyond its start; it includes the catalog's counts, gradients, and
pages of vector files. Of several processes, the largest counts. Processor seconds exclude waiting. Writes
results/sharded_catalog.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generated import write_histories
from machine import describe, record, sentence
from step_times import step_seconds

from hafvt.data.batches import TrainBatches
from hafvt.data.dataset import Dataset, Domain
from hafvt.evaluation.protocols import FULL
from hafvt.features.item_features import ItemFeatures, Vectors
from hafvt.models import build_model, configure
from hafvt.ops.collectives import process_group
from hafvt.ops.shards import Shard
from hafvt.processes import num_processes, process_index
from hafvt.progress import memory_gib
from hafvt.tables import markdown_table
from hafvt.training.config import TrainingConfig
from hafvt.training.trainer import Trainer

LENGTH, BATCH, NEGATIVES, VECTOR_WIDTH = 20, 64, 4096, 256
CASES: dict[str, tuple[str, int, dict[str, Any]]] = {
    "sasrec, exact": ("sasrec", 100_000, {"width": 64}),
    "sasrec, sampled": ("sasrec", 1_000_000, {"width": 128, "num_negatives": NEGATIVES}),
    "hafvt, ids and titles, exact": ("hafvt", 100_000, {"id_width": 64, "cluster_sizes": (80,)}),
    "hafvt, ids and titles, sampled": (
        "hafvt",
        1_000_000,
        {"id_width": 64, "cluster_sizes": (80,), "num_negatives": NEGATIVES},
    ),
}
RUNS = [(1, False), (2, False), (2, True), (3, True)]
"""Numbers of processes, and whether the catalog is sharded."""


def main() -> None:
    """Measure all cases, and write the table."""
    parser = argparse.ArgumentParser(description="Memory and time of whole and of sharded item tables.")
    parser.add_argument("--steps", type=int, default=3, help="steps that are timed")
    parser.add_argument("--worker", nargs=3, metavar=("CASE", "SHARDED", "DATA"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        case, sharded, folder = arguments.worker
        work(case, sharded == "True", Path(folder), arguments.steps)
        return
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for case, (_, num_items, params) in CASES.items():
            data = Path(folder) / str(num_items)
            if not data.exists():
                generate(data, num_items)
            for count, sharded in RUNS:
                width = params.get("width") or params["id_width"]
                results.append({"case": case, "items": num_items, "width": width})
                results[-1] |= {"processes": count, "sharded": sharded}
                results[-1] |= measure(case, count, sharded, data, arguments.steps)
                print(results[-1], flush=True)
    write(results)


def generate(folder: Path, num_items: int) -> None:
    """Write random histories over two domains, and vectors of all items."""
    random, half = np.random.default_rng(0), num_items // 2
    items = random.integers(num_items, size=(20 * BATCH, LENGTH + 3))
    write_histories(folder, [Domain("first", 0, half), Domain("second", half, num_items)], items)
    shape = (num_items, VECTOR_WIDTH)
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float16, shape)
    for start in range(0, num_items, 50_000):
        rows = random.standard_normal((min(50_000, num_items - start), VECTOR_WIDTH), dtype=np.float32)
        vectors[start : start + 50_000] = rows / np.linalg.norm(rows, axis=1, keepdims=True)


def measure(case: str, count: int, sharded: bool, data: Path, steps: int) -> dict[str, float]:
    """Return the largest values of all processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = command if count > 1 else [sys.executable]
    command += [__file__, f"--steps={steps}", "--worker", case, str(sharded), str(data)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    values = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return {name: max(value[name] for value in values) for name in values[0]}


@process_group()
def work(case: str, sharded: bool, folder: Path, steps: int) -> None:
    """Train in this process, and print memory and median times of a step."""
    model_name, _, params = CASES[case]
    data, config, before = Dataset.open(folder), configure(model_name, params=params), memory_gib()
    ranges, shard = [(domain.start, domain.stop) for domain in data.domains], None
    if sharded:
        shard = Shard.of_ranges(ranges, process_index(), num_processes())
    features = ItemFeatures(data.domains, {}, torch.ones(data.domains[-1].stop), shard=shard)
    if model_name == "hafvt":
        rows = torch.from_numpy(np.load(folder / "vectors.npy", mmap_mode="c"))
        features.vectors["title"] = Vectors(rows, torch.ones(len(rows), dtype=torch.bool))
    torch.manual_seed(0)
    model = build_model(model_name, features, config).train()
    del features
    share = {"process_index": process_index(), "num_processes": num_processes()}
    batches = TrainBatches(data, BATCH, model.max_length + 1, 0, **share)
    settings, cpu = TrainingConfig(batch_size=BATCH), torch.device("cpu")
    trainer = Trainer(model, data, batches, folder / "run", settings, FULL, cpu, torch.float32)
    wall, processor = step_seconds(trainer, batches, steps, skip=1)
    assert trainer.optimizer is not None
    moments = [t for slot in trainer.optimizer.state.values() for t in slot.values()]
    vectors = [values for name, values in model.named_buffers() if "content" in name]
    tables = [*model.parameters(), *moments, *trainer.ema.weights.values(), *vectors]
    values = {
        "tables_gib": sum(table.nbytes for table in tables) / 2**30,
        "resident_gib": memory_gib() - before,
        "ms": 1e3 * wall,
        "processor_ms": 1e3 * processor,
    }
    sys.stdout.write(json.dumps(values) + "\n")


def write(results: list[dict[str, Any]]) -> None:
    """Write the table."""
    machine = {**describe(), "threads": 1}
    unsharded_gib = {row["case"]: row["tables_gib"] for row in results if row["processes"] == 1}
    rows = [
        [
            row["case"],
            f"{row['items']:,}",
            str(row["width"]),
            str(row["processes"]),
            "slices" if row["sharded"] else "whole",
            f"{row['tables_gib']:.3f}",
            f"{row['tables_gib'] / unsharded_gib[row['case']]:.2f}",
            f"{row['resident_gib']:.2f}",
            f"{row['ms']:,.0f}",
            f"{row['processor_ms']:,.0f}",
        ]
        for row in results
    ]
    header = ["model", "items", "width", "processes", "tables", "tables, GiB", "of one process's"]
    header += ["resident, GiB", "ms per step", "processor ms"]
    text = [
        "# Whole and sharded item tables",
        "",
        f"`python benchmarks/sharded_catalog.py`: histories of {LENGTH} items, {BATCH} users per step over "
        f"all processes, {NEGATIVES:,} negatives of each sampled softmax, vectors of {VECTOR_WIDTH} values, "
        "of which 128 principal components are kept, float32, one thread per process. Memory: of the largest "
        "process. Tables: weights, both moments, average, frozen vectors. Resident: memory after the steps, "
        "beyond the start, with pages of vector files. Milliseconds are medians; they include the other "
        "processes where these share cores, processor milliseconds do not.",
        "",
        sentence(machine),
        "",
        markdown_table(header, rows),
    ]
    record("sharded_catalog", "\n".join(text) + "\n", {"machine": machine, "results": results})


if __name__ == "__main__":
    main()
