"""Our SASRec beside those of RecTools, RePlay and RecBole: one log, width, length, loss and number of passes.

    python benchmarks/peers.py --shared ../shared/data --work DIR [--passes 5] [--only rectools ...]

Each runs in a process, and the peers in virtual environments of their own, which are made on the first call;
one after the other, each with all processors. What is finished is left as it is: a call that was stopped goes
on where it was. The log is amazon-food-kitchen, histories of at most 20 items, the last one the test target,
ranked among all items of both domains. Writes results/peers.md and .json.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
from contestants.common import BATCH, BLOCKS, DROPOUT, HEADS, LENGTH, RATE, WIDTH
from environments import interpreter
from machine import describe, record, sentence
from real_data import make_data

from hafvt.data.dataset import Dataset
from hafvt.files import atomic_file, read_json
from hafvt.tables import markdown_table

HERE = Path(__file__).resolve().parent / "contestants"
PEERS = ("rectools", "replay", "recbole")


def main() -> None:
    parser = argparse.ArgumentParser(description="SASRec of hafvt, RecTools, RePlay and RecBole.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for environments, log and runs")
    parser.add_argument("--passes", type=int, default=5, help="over the training sequences")
    parser.add_argument("--only", nargs="+", default=["hafvt", *PEERS], help="of hafvt, rectools, ...")
    arguments = parser.parse_args()
    arguments.work = arguments.work.resolve()
    data = arguments.work / "data"
    source = arguments.shared / "amazon-food-kitchen"
    make_data(source, arguments.work / source.name)
    if not data.exists():
        data.symlink_to(source.name)
    log = arguments.work / "log.npz"
    targets = write_log(Dataset.open(data), log)
    results: dict[str, dict[str, Any]] = {}
    for name in ["hafvt", *PEERS]:
        out = arguments.work / f"{name}-{arguments.passes}"
        if name in arguments.only and not (out / "figures.json").exists():
            command = [
                interpreter(name, arguments.work),
                HERE / f"{name}_sasrec.py",
                "--log",
                log,
                "--out",
                out,
            ]
            out.mkdir(exist_ok=True)
            # Some leave files where they are started.
            subprocess.run(
                [*map(str, command), "--passes", str(arguments.passes)],
                check=True,
                cwd=out,
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},  # waiting is not charged as work
            )
        if (out / "figures.json").exists():
            results[name] = {
                **read_json(out / "figures.json"),
                "NDCG@10": ndcg(np.load(out / "top.npy"), targets),
            }
            print(name, results[name], flush=True)
    if len(results) == 1 + len(PEERS):
        write(results, arguments.passes)


def write_log(data: Dataset, path: Path) -> np.ndarray:
    """Writes what all are given, and returns the test targets."""
    train, history, targets = [], [], []
    for start, end, test in zip(data.offsets[:-1], data.train_lengths, data.test, strict=True):
        row = np.asarray(data.items[start : start + end])[-LENGTH - 1 :]
        if len(row) >= 2:
            train.append(row)
        history.append(np.asarray(data.items[start:test])[-LENGTH:])
        targets.append(data.items[test])
    rows = {"train": train, "history": history}
    arrays = {name: np.concatenate(part) for name, part in rows.items()}
    offsets = {f"{name}_offsets": np.cumsum([0, *map(len, part)]) for name, part in rows.items()}
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, items=data.domains[-1].stop, **arrays, **offsets)
    return np.array(targets)


def ndcg(top: np.ndarray, targets: np.ndarray) -> float:
    """Returns the mean NDCG@10 of lists of ten, (users, 10)."""
    hit, place = (top == targets[:, None]).nonzero()
    assert len(np.unique(hit)) == len(hit)
    return float((1 / np.log2(place + 2)).sum() / len(targets))


def write(results: dict[str, dict[str, Any]], passes: int) -> None:
    """Writes the table."""
    machine = describe()
    best = max(row["targets_per_cpu_s"] for name, row in results.items() if name != "hafvt")
    rows = [
        [
            row["version"],
            f"{row['targets_per_cpu_s']:,.0f}",
            f"{row['targets_per_cpu_s'] / best:.2f}",
            f"{row['train_wall_s']:,.0f}",
            f"{row['train_gib_above_start']:.2f}",
            f"{row['rank_histories_per_cpu_s']:,.0f}",
            f"{100 * row['NDCG@10']:.2f}",
        ]
        for row in results.values()
    ]
    header = ["system", "targets per CPU-s", "of the best peer", "wall, s", "GiB above start"]
    header += ["ranked histories per CPU-s", "NDCG@10, %"]
    text = [
        "# SASRec of four libraries",
        "",
        "`python benchmarks/peers.py --shared ../shared/data --work DIR`: amazon-food-kitchen, "
        f"{passes} passes, exact cross-entropy over 28,095 items, width {WIDTH}, {BLOCKS} blocks of {HEADS} "
        f"heads, dropout {DROPOUT}, histories of {LENGTH} items, batches of {BATCH} histories (RecBole: "
        f"{16 * BATCH} prefixes), Adam at {RATE}.",
        "",
        sentence(machine),
        "",
        markdown_table(header, rows),
    ]
    record("peers", "\n".join(text), {"machine": machine, "passes": passes, "systems": results})


if __name__ == "__main__":
    main()
