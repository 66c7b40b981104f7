"""Time and memory of `prepare` on a generated log: python benchmarks/prepare.py [INTERACTIONS].

A log of two domains with about one user per 20 and one item per 100 interactions, items drawn with skewed
popularity, goes as CSV into a temporary folder; a fresh process prepares it. Prints one line of JSON.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

PREPARE = """
import json, resource, sys, time
from hafvt.data.prepare import prepare
start = time.perf_counter()
data = prepare(sys.argv[1], sys.argv[2], sys.argv[3], last=50)
print(json.dumps({
    "wall_s": round(time.perf_counter() - start, 1),
    "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    "users": data.users, "items": data.domains[-1].stop, "kept": len(data.items),
    "tied": data.manifest["ties"]["tied"],
}))
"""
CHUNK = 1_000_000


def generate(folder: Path, interactions: int) -> None:
    """Writes items.csv and, chunk by chunk, interactions.csv."""
    random = np.random.default_rng(0)
    users, items = max(interactions // 20, 10), max(interactions // 100, 10)
    ids = pl.Series(random.permutation(items)).cast(pl.String).str.zfill(10)
    table = pl.DataFrame(
        {"item_id": "B" + ids, "domain": ["food", "kitchen"] * (items // 2) + ["food"] * (items % 2)}
    )
    table.with_columns(title="title of " + pl.col("item_id")).write_csv(folder / "items.csv")
    with (folder / "interactions.csv").open("wb") as file:
        for start in range(0, interactions, CHUNK):
            size = min(CHUNK, interactions - start)
            chunk = pl.DataFrame(
                {
                    "user_id": random.integers(0, users, size),
                    "item_id": table["item_id"][(items * random.random(size) ** 2).astype(np.int64)],
                    "timestamp": 1_300_000_000 + random.integers(0, 3_000, size) * 86_400,
                }
            )
            chunk = chunk.with_columns(user_id="A" + pl.col("user_id").cast(pl.String).str.zfill(13))
            chunk.write_csv(file, include_header=start == 0)


def main() -> None:
    interactions = int(sys.argv[1]) if len(sys.argv) > 1 else 2_000_000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        generate(folder, interactions)
        generated = round(time.perf_counter() - start, 1)
        size = round((folder / "interactions.csv").stat().st_size / 2**20)
        print(f"{interactions:,} interactions, {size:,} MiB, generated in {generated} s", file=sys.stderr)
        paths = [folder / "interactions.csv", folder / "items.csv", folder / "out"]
        run = subprocess.run(
            [sys.executable, "-c", PREPARE, *map(str, paths)], stdout=subprocess.PIPE, check=True
        )
        given = {"interactions": interactions, "csv_mib": size, "cpus": os.cpu_count()}
        print(json.dumps({**given, **json.loads(run.stdout)}))


if __name__ == "__main__":
    main()
