"""The tables of all models on the two real data sets, and the ablation of HAF-VT where there are pictures.

    python benchmarks/tables.py --shared ../shared/data --work DIR [--only TEXT]

Prepares and encodes each data set, runs `hafvt compare` or `hafvt ablate` on it with the small budget, and
copies the tables to results/. What was stopped goes on when the command is given again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from machine import RESULTS, describe, sentence
from real_data import PREPARE, make_data

from hafvt.files import atomic_file


def main() -> None:
    parser = argparse.ArgumentParser(description="hafvt compare and hafvt ablate on the real data sets.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets and runs")
    parser.add_argument("--only", default="", help="only what holds this text, such as compare-movielens")
    arguments = parser.parse_args()
    jobs = [("compare", name) for name in PREPARE] + [("ablate", "movielens-posters")]
    for what, name in jobs:
        if arguments.only in f"{what}-{name}":
            make_data(arguments.shared / name, arguments.work / "data" / name)
            run(what, name, arguments.work)


def run(what: str, name: str, work: Path) -> None:
    """Runs a comparison, or goes on with it, and copies its tables."""
    data, out = work / "data" / name, work / f"{what}-{name}"
    command = [what, str(data), "--out", str(out), "--budget", "small"]
    start = time.monotonic()
    subprocess.run([str(Path(sys.executable).with_name("hafvt")), *command], check=True)
    minutes = (time.monotonic() - start) / 60
    head = [
        f"`python benchmarks/tables.py --shared ../shared/data --work DIR --only {what}-{name}`, which runs "
        f"`hafvt {what} DIR/data/{name} --out DIR/{what}-{name} --budget small`.",
        "",
        f"{sentence(describe())} The last call took {minutes:.0f} minutes; what was finished before it is "
        "not in them.",
        "",
    ]
    for results in sorted([*out.glob("compare.*"), *out.glob("ablate.svg")]):
        text = results.read_text(encoding="utf-8")
        with atomic_file(RESULTS / f"{what}-{name}{results.suffix}") as path:
            path.write_text("\n".join(head) + text if results.suffix == ".md" else text, encoding="utf-8")


if __name__ == "__main__":
    main()
