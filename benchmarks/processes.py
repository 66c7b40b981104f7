"""How much faster two processes train than one, with an exact softmax over 64,000 items.

    python benchmarks/processes.py [--items 64000] [--steps 12] [--repeats 3]

Histories of 20 items, width 64, 64 users per step, float32, one thread per process. Runs of one and of two
processes alternate. A process takes turns with other programs on a busy machine, so the table has processor
seconds beside wall-clock time: the speed-up by processor seconds is what an idle machine with a core for each
process gives at best. Writes results/processes.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from generated import write_histories
from machine import describe, record, sentence
from step_times import step_seconds

from hafvt.data.batches import TrainBatches
from hafvt.data.dataset import Dataset, Domain
from hafvt.evaluation.protocols import FULL
from hafvt.models import build_model, configure
from hafvt.ops.collectives import process_group
from hafvt.processes import num_processes, process_index
from hafvt.tables import markdown_table
from hafvt.training.config import TrainingConfig
from hafvt.training.run import model_item_features
from hafvt.training.trainer import Trainer

WIDTH, LENGTH, BATCH = 64, 20, 64


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of one and of two processes.")
    parser.add_argument("--items", type=int, default=64_000)
    parser.add_argument("--steps", type=int, default=12, help="steps that are timed")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each number of processes")
    parser.add_argument("--worker", metavar="DATA", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(Path(arguments.worker), arguments.steps)
        return
    seconds: dict[int, list[list[float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "data", arguments.items)
        for _ in range(arguments.repeats):
            for count, runs in seconds.items():
                runs.append(measure(count, Path(folder) / "data", arguments.steps))
                print(count, runs[-1], flush=True)
    write(seconds, arguments.items)


def generate(folder: Path, num_items: int) -> Dataset:
    """Writes random histories over two domains, each item likely to follow its predecessor."""
    random = np.random.default_rng(0)
    items = np.empty((20 * BATCH, LENGTH + 2), dtype=np.int32)
    items[:, 0] = random.integers(num_items, size=len(items))
    for slot in range(1, items.shape[1]):
        items[:, slot] = (items[:, slot - 1] + random.choice([7, 31], size=len(items))) % num_items
    half = num_items // 2
    return write_histories(folder, [Domain("first", 0, half), Domain("second", half, num_items)], items)


def measure(count: int, data: Path, steps: int) -> list[float]:
    """Returns wall-clock and processor seconds of a step, the latter of the process that needs more."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command = command if count > 1 else [sys.executable]
    command += [__file__, "--worker", str(data), f"--steps={steps}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
    wall, processor = zip(*map(json.loads, output.splitlines()), strict=True)
    return [max(wall), max(processor)]


@process_group()
def work(folder: Path, steps: int) -> None:
    """Trains SASRec in this process, and prints the median seconds of a step."""
    data, config = Dataset.open(folder), configure("sasrec", params={"width": WIDTH, "max_length": LENGTH})
    features = model_item_features(data, "sasrec", config)
    torch.manual_seed(0)
    model = build_model("sasrec", features, config).train()
    share = {"process_index": process_index(), "num_processes": num_processes()}
    batches = TrainBatches(data, BATCH, LENGTH + 1, 0, **share)
    settings, cpu = TrainingConfig(batch_size=BATCH), torch.device("cpu")
    trainer = Trainer(model, data, batches, folder / "run", settings, FULL, cpu, torch.float32)
    seconds = step_seconds(trainer, batches, steps, skip=2)
    sys.stdout.write(json.dumps(seconds) + "\n")


def write(seconds: dict[int, list[list[float]]], num_items: int) -> None:
    """Writes the table."""
    machine = {**describe(), "threads": 1}
    best = {count: [min(column) for column in zip(*runs, strict=True)] for count, runs in seconds.items()}
    rows = [
        [str(count), *(f"{1000 * value:,.0f}" for value in values)]
        + [f"{best[1][column] / values[column]:.2f}" for column in (0, 1)]
        for count, values in best.items()
    ]
    header = ["processes", "ms per step", "processor ms", "times as fast", "by processor seconds"]
    text = [
        "# Training with two processes",
        "",
        f"`python benchmarks/processes.py`: SASRec, exact softmax over {num_items:,} items, width {WIDTH}, "
        f"histories of {LENGTH} items, "
        f"{BATCH} users per step over all processes, float32, one thread per process; the best of "
        f"{len(seconds[1])} alternating runs, "
        "each the median of its steps. Processor seconds are those of the process that needs more, waiting "
        "excluded.",
        "",
        sentence(machine),
        "",
        markdown_table(header, rows),
    ]
    record("processes", "\n".join(text) + "\n", {"machine": machine, "items": num_items, "seconds": seconds})


if __name__ == "__main__":
    main()
