"""Continual training against training anew, on goods split by date.

    python benchmarks/continual.py [--data DATA] [--work WORK] [--seeds 2] [--users 600]

The earlier dataset ends where 85 % of the interactions have happened; the newer one has them all. Both are
split by time. A model is trained on the earlier dataset. On the newer one, it goes on from its weights
(`--init-from`) for as many epochs as a training anew, and for a tenth of them; a training anew gets the same
numbers of epochs. All are ranked on the newer test targets, and so is the earlier model without training.
Processor time counts. Writes results/continual.md and .json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from machine import describe, record, sentence

import hafvt
from hafvt.data.dataset import Dataset
from hafvt.tables import markdown_table
from hafvt.training.run import Run

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data" / "amazon-food-kitchen"
EPOCHS, TENTH = 10, 1
EARLIER_SHARE = 0.85  # of the interactions
MODELS: dict[str, dict[str, Any]] = {"hafvt": {"id_width": 32}, "sasrec": {"width": 32}}
EARLIER, ANEW, ANEW_SHORT = "earlier model, unchanged", "anew", "anew, a tenth of the epochs"
ON, ON_SHORT = "continued, as many epochs", "continued, a tenth of the epochs"


def main() -> None:
    """Prepare both datasets, train all models and write the table."""
    parser = argparse.ArgumentParser(description="Continual training against training anew.")
    parser.add_argument("--data", type=Path, default=SHARED, help="folder of the tables")
    parser.add_argument("--work", type=Path, default=Path("continual"), help="folder of datasets and runs")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each kind")
    parser.add_argument("--users", type=int, default=600, help="users, drawn at random")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    earlier, newer = prepare(arguments.data, arguments.work, arguments.users)
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        for seed in range(arguments.seeds):
            rows += measure(model, seed, earlier, newer, arguments.work / "runs")
            print(*rows[-5:], sep="\n", flush=True)
    write(rows, earlier, newer)


def prepare(source: Path, work: Path, num_users: int) -> tuple[Dataset, Dataset]:
    """Write the earlier and the newer dataset, with titles, and return them."""
    log = pl.read_csv(source / "interactions.csv.gz")
    users = np.random.default_rng(0).permutation(log["user_id"].unique().sort())[:num_users]
    log = log.filter(pl.col("user_id").is_in(list(users))).sort("timestamp", maintain_order=True)
    log = log.filter(pl.len().over("item_id") >= 3)
    until = log["timestamp"][int(EARLIER_SHARE * len(log))]
    items, datasets = pl.read_csv(source / "items.csv"), []
    for name, part in (("earlier", log.filter(pl.col("timestamp") < until)), ("newer", log)):
        shares = {"split": "time", "valid_share": 0.03, "test_share": 0.04, "overwrite": True}
        listed = items.filter(pl.col("item_id").is_in(part["item_id"].unique().implode()))
        data = hafvt.prepare(part, listed, work / name, **shares)
        hafvt.encode(data, precomputed={"title": source / "features" / "minilm_title.npz"})
        datasets.append(data)
    return datasets[0], datasets[1]


def measure(model: str, seed: int, earlier: Dataset, newer: Dataset, runs: Path) -> list[dict[str, Any]]:
    """Train a model in all ways with a seed; return MRR, NDCG@10 and processor time of each way."""

    def train(name: str, data: Dataset, epochs: int, **options: Any) -> tuple[Run, float]:
        start = time.process_time()
        folder = runs / f"{model}-{seed}-{name.replace(', ', '-').replace(' ', '-')}"
        settings: dict[str, Any] = {"epochs": epochs, "patience": 0, "seed": seed, "validate_every": 1}
        run = hafvt.train(model, data, folder, test=False, overwrite=True, **settings, **options)
        return run, time.process_time() - start

    params = {"params": MODELS[model]}
    old, _ = train("earlier", earlier, EPOCHS, **params)
    trained: dict[str, tuple[Run, float]] = {
        EARLIER: (old, 0.0),
        ANEW: train(ANEW, newer, EPOCHS, **params),
        ANEW_SHORT: train(ANEW_SHORT, newer, TENTH, **params),
        ON: train(ON, newer, EPOCHS, init_from=old),
        ON_SHORT: train(ON_SHORT, newer, TENTH, init_from=old),
    }
    rows = []
    for way, (run, seconds) in trained.items():
        results = hafvt.evaluate(run.folder, data=newer).results["overall"]
        values = {name: results[name].value for name in ("MRR", "NDCG@10")}
        rows.append({"model": model, "seed": seed, "way": way, "seconds": seconds, **values})
    return rows


def write(rows: list[dict[str, Any]], earlier: Dataset, newer: Dataset) -> None:
    """Write the means over the seeds."""
    machine, table, seeds = describe(), [], sorted({row["seed"] for row in rows})
    for model in MODELS:
        for way in (EARLIER, ANEW_SHORT, ON_SHORT, ANEW, ON):
            same = [row for row in rows if (row["model"], row["way"]) == (model, way)]
            means = {
                name: statistics.mean(row[name] for row in same) for name in ("MRR", "NDCG@10", "seconds")
            }
            mrrs = " ".join(f"{row['MRR']:.2%}" for row in same)
            cells = [f"{means['MRR']:.2%}", mrrs, f"{means['NDCG@10']:.2%}", f"{means['seconds']:.0f}"]
            table.append([model, way, *cells])
    sizes = [
        f"{data.num_users:,} users, {data.num_items:,} items, {len(data.items):,} interactions"
        for data in (earlier, newer)
    ]
    text = [
        "# Continual training against training anew",
        "",
        "`python benchmarks/continual.py`",
        "",
        sentence(machine),
        f"Goods, split by date. Earlier: {sizes[0]}. Newer: {sizes[1]}, {len(newer.test):,} test targets. "
        f"Width 32, titles, {EPOCHS} epochs or {TENTH}, {len(seeds)} seeds; the best epoch by validation. "
        "MRR and NDCG@10 of the newer test targets, means of both domains; targets with an item that the "
        "earlier model does not know count as missed. CPU seconds of training and validation.",
        "",
        markdown_table(["model", "training", "MRR", "of each seed", "NDCG@10", "CPU seconds"], table),
        "",
    ]
    record("continual", "\n".join(text), {"machine": machine, "rows": rows})
    print("\n".join(text))


if __name__ == "__main__":
    main()
