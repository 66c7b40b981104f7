"""A run under torch beside its export under onnxruntime: one history at a time, and many at once.

    python benchmarks/export.py [--work FOLDER]

HAF-VT with id, picture and title, its default configuration, after one epoch on generated histories (which
takes as long as a good one); two catalogues; one thread. What a call costs is the time of the processor, the
median of many calls, so that a machine that others use too does not change it much. Writes results/export.md
and .json.
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

import hafvt
from hafvt.data.dataset import Domain
from hafvt.files import write_json
from hafvt.progress import memory_gib
from hafvt.reports.table import markdown_table
from hafvt.serving.onnx_scorer import OnnxScorer
from hafvt.serving.scorer import Scorer
from hafvt.serving.torch_scorer import TorchScorer
from hafvt.training.run import open_run

SIZES = {"movielens": (965, 1_356), "64,000 items": (32_000, 32_000)}
USERS, LENGTH, WIDTH, MANY = 256, 20, 128, 64


def main() -> None:
    parser = argparse.ArgumentParser(description="torch beside onnxruntime.")
    parser.add_argument(
        "--work", type=Path, default=None, help="keeps the runs here; default: nothing is kept"
    )
    work: Path | None = parser.parse_args().work
    torch.set_num_threads(1)
    found = []
    with tempfile.TemporaryDirectory() as temporary:
        for name, sizes in SIZES.items():
            folder = (work or Path(temporary)) / name.replace(" ", "-").replace(",", "")
            if not (folder / "run" / "model.json").exists():
                make_run(folder, sizes)
            for catalogue in ("baked", "given"):
                if not (folder / catalogue).exists():
                    start = time.process_time()
                    made = hafvt.export(folder / "run", out=folder / catalogue, catalogue=catalogue)  # type: ignore[arg-type]
                    print(name, catalogue, made, f"{time.process_time() - start:.0f} CPU s", flush=True)
            scorers: dict[str, Scorer] = {"torch": TorchScorer(open_run(folder / "run"))}
            for catalogue in ("baked", "given"):
                before = memory_gib()
                scorers[f"onnxruntime, {catalogue}"] = OnnxScorer(folder / catalogue, threads=1)
                print(name, catalogue, f"{1024 * (memory_gib() - before):.0f} MiB", flush=True)
            for way, scorer in scorers.items():
                row = {"items": name, "way": way, "one_ms": 1e3 * cost(scorer, 1)}
                row |= {"many_ms": 1e3 * cost(scorer, MANY), "size": size(folder, way)}
                found.append(row)
                print(row, flush=True)
    write(found)


def make_run(folder: Path, sizes: tuple[int, int]) -> None:
    """Writes generated histories with random vectors, and a run on them."""
    random = np.random.default_rng(0)
    stop = sum(sizes)
    domains = [Domain("first", 0, sizes[0]), Domain("second", sizes[0], stop)]
    data = write_histories(folder / "data", domains, random.integers(stop, size=(USERS, LENGTH + 2)))
    for name in ("image", "title"):
        rows = random.normal(size=(stop, WIDTH)).astype(np.float32)
        target = data.folder / "features" / name
        target.mkdir(parents=True)
        np.save(target / "rows.npy", (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float16))
        np.save(target / "present.npy", np.ones(stop, dtype=bool))
        write_json(target / "about.json", {"encoder": "random"})
    hafvt.train("hafvt", data, folder / "run", epochs=1)


def cost(scorer: Scorer, count: int) -> float:
    """Returns the seconds of processor that the scores of so many histories take, the median of calls."""
    random, taken = np.random.default_rng(1), []
    last = scorer.domains[-1].stop
    while len(taken) < 5 or (sum(taken) < 5 and len(taken) < 100):
        items = random.integers(last, size=(count, LENGTH))
        lengths = random.integers(1, LENGTH + 1, size=count)
        items[np.arange(LENGTH) >= lengths[:, None]] = 0
        start = time.process_time()
        scorer.scores(items, lengths, 0)
        taken.append(time.process_time() - start)
    return statistics.median(taken[1:])


def size(folder: Path, way: str) -> int:
    """Returns the bytes of an export, 0 for torch."""
    place = folder / way.rpartition(" ")[2]
    return sum(path.stat().st_size for path in place.iterdir()) if place.exists() else 0


def write(found: list[dict[str, Any]]) -> None:
    """Writes the table."""
    machine = describe()
    rows = [
        [
            row["items"],
            row["way"],
            f"{row['one_ms']:,.1f}",
            f"{1e3 * MANY / row['many_ms']:,.0f}",
            f"{row['size'] / 1e6:,.1f}" if row["size"] else "",
        ]
        for row in found
    ]
    sizes = ", ".join(f"{first:,} and {second:,}" for first, second in SIZES.values())
    text = [
        "# Under torch and under onnxruntime",
        "",
        f"`python benchmarks/export.py`: HAF-VT with three modalities of width {WIDTH}, histories of up to "
        f"{LENGTH} items, scores of all items of the first of two domains ({sizes} items); time of one "
        f"processor, the median of calls; many: {MANY} histories in a call.",
        "",
        sentence(machine),
        "",
        markdown_table(["items", "by", "one history, ms", "many, histories/s", "export, MB"], rows),
    ]
    record("export", "\n".join(text), {"machine": machine, "found": found})


if __name__ == "__main__":
    main()
