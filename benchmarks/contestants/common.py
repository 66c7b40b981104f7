"""What every contestant does alike: read the histories, be measured, say whom it would recommend what.

Needs numpy alone, as it runs in the virtual environment of every peer.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WIDTH, BLOCKS, HEADS, DROPOUT = 64, 2, 2, 0.2
LENGTH, BATCH, RATE = 20, 128, 1e-3
K = 10
SAMPLED_WIDTH, SAMPLED_LENGTH, SAMPLED_BATCH = 128, 50, 64
NEGATIVES, WARMUP_STEPS = 256, 2
"""Of `sampled_peers.py`: negatives of each target, and steps before those that are measured."""


@dataclass(frozen=True)
class Log:
    """The same for all: training sequences, and the histories that lead to the test targets.

    Attributes:
        items: how many there are; numbered from 0.
        train: each user's training items, at most LENGTH + 1, the oldest first; two at least.
        history: each user's items before the test target, at most LENGTH.
    """

    items: int
    train: list[np.ndarray]
    history: list[np.ndarray]

    @property
    def targets(self) -> int:
        """Next items in one pass over the training sequences."""
        return sum(len(row) - 1 for row in self.train)


def read(path: Path) -> Log:
    """Reads what the driver wrote."""
    state = np.load(path)
    rows = {name: np.split(state[name], state[f"{name}_offsets"][1:-1]) for name in ("train", "history")}
    return Log(int(state["items"]), rows["train"], rows["history"])


class Meter:
    """Processor time, wall time and the peak of memory above the start, of what happens within."""

    def __enter__(self) -> Meter:
        self.start_gib = self.peak_gib = resident_gib()
        self.stop = threading.Event()
        self.watch = threading.Thread(target=self._watch, daemon=True)
        self.watch.start()
        self.cpu, self.wall = cpu_seconds(), time.perf_counter()
        return self

    def _watch(self) -> None:
        while not self.stop.wait(0.01):
            self.peak_gib = max(self.peak_gib, resident_gib())

    def __exit__(self, *_: object) -> None:
        self.cpu_s, self.wall_s = cpu_seconds() - self.cpu, time.perf_counter() - self.wall
        self.stop.set()
        self.watch.join()
        self.above_gib = self.peak_gib - self.start_gib


def cpu_seconds() -> float:
    """Of this process and its ended children."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def resident_gib() -> float:
    """Memory of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def arguments() -> argparse.Namespace:
    """Of every contestant."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--passes", type=int, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def write(
    out: Path, log: Log, passes: int, training: Meter, ranking: Meter, top: np.ndarray, version: str
) -> None:
    """Writes figures, and the K items that each history is recommended, (users, K)."""
    np.save(out / "top.npy", top)
    figures: dict[str, Any] = {
        "version": version,
        "passes": passes,
        "targets_per_cpu_s": passes * log.targets / training.cpu_s,
        "train_cpu_s": training.cpu_s,
        "train_wall_s": training.wall_s,
        "train_gib_above_start": training.above_gib,
        "rank_histories_per_cpu_s": len(log.history) / ranking.cpu_s,
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2))


def write_steps(out: Path, steps: Meter, num_steps: int, start_gib: float, version: str) -> None:
    """Write the figures of training steps; `start_gib` is the memory before the model was built."""
    figures = {
        "version": version,
        "histories_per_cpu_s": num_steps * SAMPLED_BATCH / steps.cpu_s,
        "ms": 1e3 * steps.cpu_s / num_steps,
        "gib": steps.peak_gib - start_gib,
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2))


def right_padded(rows: list[np.ndarray], width: int, pad: int) -> np.ndarray:
    """Returns rows on the left of a table."""
    table = np.full((len(rows), width), pad, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = row
    return table


def left_padded(rows: list[np.ndarray], width: int, pad: int) -> np.ndarray:
    """Returns rows on the right of a table."""
    table = np.full((len(rows), width), pad, dtype=np.int64)
    for number, row in enumerate(rows):
        table[number, width - len(row) :] = row
    return table
