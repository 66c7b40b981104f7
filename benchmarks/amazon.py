"""Time and memory of `hafvt prepare-amazon` on 10 million generated reviews.

    python benchmarks/amazon.py

Two categories of five million lines each, in the format of 2014 (JSON reviews, Python-literal metadata, .gz).
Users and items follow power laws, so that most users are met once, as in the real dumps.
"""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CATEGORIES = {"movie": "Movies_and_TV", "book": "Books"}
REVIEWS, USERS, ITEMS = 5_000_000, 4_000_000, 300_000


def write(raw: Path, name: str, category: str, random: np.random.Generator) -> None:
    """Writes the two files of a category."""
    users = (USERS * random.random(REVIEWS) ** 3).astype(int)
    items = (ITEMS * random.random(REVIEWS) ** 3).astype(int)
    times = random.integers(1_200_000_000, 1_400_000_000, REVIEWS) // 86_400 * 86_400
    text = "It arrived on time and does what it should. " * 8
    with gzip.open(raw / f"reviews_{category}.json.gz", "wt", compresslevel=1) as file:
        for user, item, when in zip(users.tolist(), items.tolist(), times.tolist(), strict=True):
            file.write(
                f'{{"reviewerID": "A{user:010}", "asin": "{name[:1].upper()}{item:09}", "helpful": [0, 0], '
                f'"reviewText": "{text}", "overall": 5.0, "unixReviewTime": {when}}}\n'
            )
    with gzip.open(raw / f"meta_{category}.json.gz", "wt", compresslevel=1) as file:
        for item in range(ITEMS):
            related = [f"{name[:1].upper()}{(item + step) % ITEMS:09}" for step in range(1, 20)]
            asin = f"{name[:1].upper()}{item:09}"
            fields = {"asin": asin, "title": f"No. {item}", "related": {"also_bought": related}}
            file.write(f"{fields!r}\n")


def measure(raw: str) -> None:
    """Prepares the dumps in this process and prints what it took, as JSON."""
    import resource

    from hafvt.data.sources.amazon import prepare_amazon

    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        summary = prepare_amazon(
            raw, Path(out) / "data", domains=CATEGORIES, window="month", min_per_domain=1
        )
        seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": seconds, "peak_gib": peak, "sequences": summary.dataset.num_users}))


def main() -> None:
    """Prints the table; writes results/amazon.md and .json."""
    from machine import describe, sentence

    from hafvt.files import atomic_file, write_json
    from hafvt.tables import markdown_table

    with tempfile.TemporaryDirectory() as folder:
        raw, random = Path(folder), np.random.default_rng(0)
        for name, category in CATEGORIES.items():
            write(raw, name, category, random)
        command = [sys.executable, __file__, "measure", str(raw)]
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
        size = sum(path.stat().st_size for path in raw.iterdir()) / 2**30
    summary = {"reviews": 2 * REVIEWS, "packed_gib": size, **json.loads(ran.stdout.splitlines()[-1])}
    header = ["reviews", "packed (GiB)", "time (s)", "peak memory (GiB)", "sequences"]
    row = [
        f"{summary['reviews']:,}",
        *(f"{summary[n]:.2f}" for n in ("packed_gib", "seconds", "peak_gib")),
        f"{summary['sequences']:,}",
    ]
    table = markdown_table(header, [row])
    print(table)
    results, machine = Path(__file__).parent / "results", describe()
    write_json(results / "amazon.json", {"machine": machine, "rows": [summary]})
    lines = ["# prepare-amazon on generated dumps", "`python benchmarks/amazon.py`", sentence(machine), table]
    with atomic_file(results / "amazon.md") as temporary:
        temporary.write_text("\n\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    measure(sys.argv[2]) if sys.argv[1:2] == ["measure"] else main()
