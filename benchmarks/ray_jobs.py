"""`encode` and `recommend` on Ray with 2 CPUs beside the local run with 2 threads.

    python benchmarks/ray_jobs.py --export exports/hafvt

Pictures are noise, encoded by `classic`; histories are random items of the export, in JSONL. The start of
Ray and of its workers is not counted, see `compare`. Both ways run in turn, `--repeats` times; the median
counts, as the machine may have other work, whose load is recorded. Compares the files of both ways.
Writes results/ray_jobs.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import torch
from machine import describe, record, sentence
from PIL import Image

from hafvt import encode, prepare, recommend
from hafvt.parts import ray_cluster
from hafvt.tables import markdown_table

CPUS = 2
NUM_ITEMS, NUM_HISTORIES = (512, 2_560), (1_000, 9_000)  # the smaller one gives each worker one part
FILE_HISTORIES = 500


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--export", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(CPUS)
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112  # Ray's 15 would measure the other work of a busy machine
    with tempfile.TemporaryDirectory() as temporary, ray_cluster("local", num_cpus=CPUS):
        folder = Path(temporary)
        datasets = {size: write_dataset(folder / f"items-{size}", size) for size in NUM_ITEMS}
        sources = {
            size: write_histories(folder / f"histories-{size}", options.export, size)
            for size in NUM_HISTORIES
        }

        def encode_pictures(size: int, ray: str | None) -> dict[str, bytes]:
            data = datasets[size]
            shutil.rmtree(data / "features", ignore_errors=True)
            encode(data, image="classic", ray=ray)
            return files(data / "features")

        def recommend_items(size: int, ray: str | None) -> dict[str, bytes]:
            histories, domain = sources[size]
            shutil.rmtree(folder / "out", ignore_errors=True)
            now = 1_767_225_600
            recommend(
                options.export, histories=histories, domain=domain, out=folder / "out", time=now, ray=ray
            )
            return files(folder / "out")

        rows = [
            compare("encode pictures (classic)", NUM_ITEMS, encode_pictures, options.repeats),
            compare("recommend from an export", NUM_HISTORIES, recommend_items, options.repeats),
        ]
    write(rows)


def write_dataset(folder: Path, num_items: int) -> Path:
    """Returns the folder of a dataset whose items have pictures of noise, 256 pixels a side."""
    (folder / "pictures").mkdir(parents=True)
    random = np.random.default_rng(0)
    for item in range(num_items):
        pixels = random.integers(0, 255, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((256, 256)).save(folder / "pictures" / f"{item}.jpg")
    ids = [str(item) for item in range(num_items)]
    items = pl.DataFrame({"item_id": ids, "domain": "d", "image": [f"{item}.jpg" for item in ids]})
    items.write_csv(folder / "items.csv")
    user_of_row = np.repeat(np.arange(num_items // 10), 10)
    pl.DataFrame(
        {"user_id": user_of_row, "item_id": ids[: len(user_of_row)], "timestamp": np.arange(len(user_of_row))}
    ).write_csv(folder / "interactions.csv")
    prepare(
        folder / "interactions.csv",
        items=folder / "items.csv",
        out=folder / "data",
        image_root=folder / "pictures",
        min_per_domain=1,
        min_per_item=1,
    )
    return folder / "data"


def write_histories(folder: Path, export: Path, count: int) -> tuple[Path, str]:
    """Returns a folder with files of random histories of an export's items, and its first domain."""
    folder.mkdir()
    ids, random = pl.read_parquet(export / "items.parquet")["item_id"].to_list(), np.random.default_rng(0)
    for file in range(count // FILE_HISTORIES):
        lengths = random.integers(1, 40, size=FILE_HISTORIES)
        lines = [
            json.dumps({"history": [ids[i] for i in random.integers(len(ids), size=n)]}) for n in lengths
        ]
        (folder / f"{file:02}.jsonl").write_text("\n".join(lines) + "\n")
    return folder, json.loads((export / "export.json").read_text())["domains"][0]["name"]


def files(folder: Path) -> dict[str, bytes]:
    """Returns the files of a folder, by path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def compare(
    work: str, sizes: tuple[int, int], run: Callable[[int, str | None], dict[str, bytes]], repeats: int
) -> dict[str, str | float | bool]:
    """Returns the rates of both ways, without start: the additional work divided by its additional time."""
    outputs = [run(sizes[0], None), run(sizes[0], "local")]
    seconds: dict[str | None, list[float]] = {None: [], "local": []}
    for _ in range(repeats):
        for ray, times in seconds.items():
            marks = [time.perf_counter()]
            for size in sizes:
                run(size, ray)
                marks.append(time.perf_counter())
            times.append((marks[2] - marks[1]) - (marks[1] - marks[0]))
    size = sizes[1] - sizes[0]
    here, there = (statistics.median(times) for times in seconds.values())
    row = {
        "work": work,
        "local_per_s": size / here,
        "ray_per_s": size / there,
        "ratio": here / there,
        "equal_bytes": outputs[0] == outputs[1],
        "load": os.getloadavg()[0],
    }
    print(row, flush=True)
    return row


def write(rows: list[dict[str, str | float | bool]]) -> None:
    """Writes results/ray_jobs.md and .json."""
    machine = describe()
    table = markdown_table(
        ["work", "local, 2 threads", "Ray, 2 CPUs", "Ray / local", "equal bytes", "load of the machine"],
        [
            [
                str(row["work"]),
                f"{row['local_per_s']:,.0f}/s",
                f"{row['ray_per_s']:,.0f}/s",
                f"{row['ratio']:.2f}",
                "yes" if row["equal_bytes"] else "no",
                f"{row['load']:.1f}",
            ]
            for row in rows
        ],
    )
    text = f"# Ray on one machine\n\n{sentence(machine)}\n\n{table}\n"
    record("ray_jobs", text, {"machine": machine, "found": rows})


if __name__ == "__main__":
    main()
