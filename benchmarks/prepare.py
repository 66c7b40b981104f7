"""Time and memory of preparing and evaluating a big generated log.

    python benchmarks/prepare.py [INTERACTIONS]

A log of two domains with one user per 20 and one item per 100 interactions, items drawn with skewed
popularity, goes as CSV into a temporary folder. A fresh process prepares it; another ranks the test target of
every user among all items of its domain, by popularity and by an untrained SASRec of width 64 (which takes as
long as a trained one). By default 20 million interactions of 1 million users; that run alone writes
results/prepare.md and .json.
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
from machine import describe, record, sentence

from hafvt.tables import markdown_table

FULL = 20_000_000
PREPARE = """
import json, resource, sys, time
from hafvt.data.prepare import prepare
start = time.perf_counter()
data = prepare(sys.argv[1], sys.argv[2], sys.argv[3], min_per_domain=1, last=50)
print(json.dumps({
    "wall_s": round(time.perf_counter() - start, 1),
    "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    "users": data.num_users, "items": data.domains[-1].stop, "kept": len(data.items),
    "tied": data.manifest["ties"]["tied_pairs"],
}))
"""
EVALUATE = """
import json, resource, sys, time
import numpy as np
from hafvt.data.dataset import Dataset
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.models import build_model, configure
from hafvt.progress import progress
from hafvt.training.run import model_item_features
data, name, params = Dataset.open(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
config = configure(name, params=params)
model = build_model(name, model_item_features(data, name, config), config)
positions = np.asarray(data.test)
start = time.perf_counter()
with progress(f"rank {name}", len(positions), "histories") as advance:
    ranks = rank_positions(model, data, positions, advance=advance).half_ties
print(json.dumps({
    "wall_s": round(time.perf_counter() - start, 1),
    "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    "histories": len(positions),
    "mean_rank": round(float(ranks.ranks.mean()), 1),
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
    interactions = int(sys.argv[1]) if len(sys.argv) > 1 else FULL
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        start = time.perf_counter()
        generate(folder, interactions)
        generated = round(time.perf_counter() - start, 1)
        size = round((folder / "interactions.csv").stat().st_size / 2**20)
        print(f"{interactions:,} interactions, {size:,} MiB, generated in {generated} s", file=sys.stderr)
        out = folder / "out"
        results = {"prepare": call(PREPARE, folder / "interactions.csv", folder / "items.csv", out)}
        for model, params in (("popularity", {}), ("sasrec", {"width": 64, "max_length": 20})):
            results[model] = call(EVALUATE, out, model, json.dumps(params))
    print(json.dumps({"interactions": interactions, "csv_mib": size, **results}))
    if interactions == FULL:
        write(interactions, size, results)


def call(script: str, *arguments: object) -> dict[str, float]:
    """Runs a script in a process of its own and returns the JSON that it prints."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    results: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
    return results


def write(interactions: int, size: int, results: dict[str, dict[str, float]]) -> None:
    """Writes the table."""
    machine, fresh_rows = describe(), results["prepare"]
    rows = [["`prepare`", f"{fresh_rows['wall_s']:,.0f}", f"{fresh_rows['peak_rss_gib']:.1f}", "–"]]
    for model in ("popularity", "sasrec"):
        row = results[model]
        cells = [f"ranking, {model}", f"{row['wall_s']:,.0f}", f"{row['peak_rss_gib']:.1f}"]
        rows.append([*cells, f"{row['histories'] / row['wall_s']:,.0f}"])
    text = [
        "# A big log, prepared and evaluated",
        "",
        f"`python benchmarks/prepare.py`: {interactions:,} interactions in a CSV of {size:,} MiB, "
        f"{fresh_rows['users']:,} users, {fresh_rows['items']:,} items in two domains. Each test target is "
        "ranked among all items of its domain.",
        "",
        f"{sentence(machine)} Load of the machine at the end: {os.getloadavg()[1]:.1f} (above its cores, "
        "other work slowed this).",
        "",
        markdown_table(["step", "wall, s", "peak memory of the process, GiB", "histories/s"], rows),
    ]
    record("prepare", "\n".join(text), {"machine": machine, "interactions": interactions, "steps": results})


if __name__ == "__main__":
    main()
