"""Designs of HAF-VT on validation data of the two real data sets: what makes a difference.

    python benchmarks/study.py --shared ../shared/data --work /tmp/study [--only TEXT] [--jobs 2] [--seeds 1]

Trains every variant of `VARIANTS` by the command line, one thread each, with the same number of epochs, rate
and histories, and ranks its validation targets, those of rarely met items also by themselves. Test targets
are not looked at. What was stopped goes on when the command is given again. Writes results/study.md and .json
when it ends, from the runs that are finished.
"""

from __future__ import annotations

import argparse
import json
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import describe, record, sentence
from real_data import PREPARE, call, make_data

from hafvt.evaluation.metrics import Ranks, mean_mrr
from hafvt.evaluation.protocols import ranked
from hafvt.files import read_json, write_json
from hafvt.reports.table import markdown_table
from hafvt.training.run import open_run

EPOCHS = {"movielens-posters": 16, "amazon-food-kitchen": 6}
COMMON = "--learning-rate 0.003 --batch-size 128 --params.max_length 20 --patience 0 --test false --resume"
NARROW = "--params.id_width 64 --params.content_width 64"
BEFORE = "--params.blocks 0 --params.repeats false --params.lambda1 0.1 --params.lambda2 1.0"
VARIANTS = {
    "sasrec": "sasrec --params.width 64",
    "default": f"hafvt {NARROW}",
    "ids only": f"hafvt {NARROW} --params.modalities [id]",
    "without repeats": f"hafvt {NARROW} --params.repeats false",
    "merged history alone": f"hafvt {NARROW} --params.hierarchy false",
    "one block": f"hafvt {NARROW} --params.blocks 1",
    "an attention of each branch": f"hafvt {NARROW} --params.blocks 0",
    "default before": f"hafvt {NARROW} {BEFORE}",
    "content apart from ids": f"hafvt {NARROW} --params.fused false",
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Designs of HAF-VT on validation data.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets and runs")
    parser.add_argument("--only", default="", help="only runs whose 'data set/variant' holds this text")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    parser.add_argument("--seeds", type=int, default=1)
    given = parser.parse_args()
    for name in PREPARE:
        make_data(given.shared / name, given.work / "data" / name)
    runs = [(data, variant, seed) for seed in range(given.seeds) for variant in VARIANTS for data in EPOCHS]
    runs = [run for run in runs if given.only in f"{run[0]}/{run[1]}"]
    with ThreadPoolExecutor(given.jobs) as pool:
        for finished in [pool.submit(train, given.work, *run) for run in runs]:
            finished.result()
    print(write(given.work))


def train(work: Path, data: str, variant: str, seed: int) -> None:
    """Trains one run, or goes on with it, and ranks its validation targets, unless it is finished."""
    name = variant.replace(" ", "-").replace(",", "")
    out = work / "runs" / data / f"{name}-{seed}"
    if (out / "study.json").exists():
        return
    model, *options = VARIANTS[variant].split()
    place = ["--data", str(work / "data" / data), "--out", str(out)]
    command = ["train", model, *place, "--epochs", str(EPOCHS[data]), "--seed", str(seed)]
    call([*command, *options, *COMMON.split()], out.with_suffix(".log"), 1)
    run = open_run(out)
    items = np.asarray(run.data.items)
    met = run.data.train_counts()
    figures: dict[str, Any] = {"data": data, "variant": variant, "seed": seed}
    for protocol in ("full", "strict"):
        ranks, _ = ranked(run.models, run.data, "valid", protocol)
        often = met[items[ranks.positions]]
        # Rarely: fewer than five times, or, where few are, the rarest tenth of the targets.
        limit = 4 if (often < 5).mean() > 0.1 else np.quantile(often, 0.1)
        figures |= {protocol: mean_mrr(ranks), f"{protocol}_rare": mrr(ranks, often <= limit)}
    write_json(out / "study.json", {**figures, "epoch": run.about["best"]["epoch"]})


def mrr(ranks: Ranks, chosen: np.ndarray) -> float:
    """Returns the MRR of some of the targets."""
    return float((1 / ranks.ranks[chosen]).mean())


def write(work: Path) -> str:
    """Writes the tables of all finished runs and returns them."""
    found = [read_json(path) for path in sorted(work.glob("runs/*/*/study.json"))]
    machine = describe()
    text = [
        "# Designs of HAF-VT",
        "",
        "`python benchmarks/study.py --shared ../shared/data --work DIR`: validation MRR in %, mean of the "
        "domains, best epoch of "
        + " and ".join(f"{epochs} ({data})" for data, epochs in EPOCHS.items())
        + ", width 64, histories of 20 items, batches of 128, learning rate 0.003. `strict` ranks among "
        "999 items that the user never had; rare: targets that training met less than five times, or else "
        "the rarest tenth.",
        "",
        sentence(machine),
    ]
    header = ["variant", "options", "seeds", "MRR", "rare", "strict MRR", "strict, rare", "best epoch"]
    for data in EPOCHS:
        rows = []
        for variant, options in VARIANTS.items():
            runs = [run for run in found if run["data"] == data and run["variant"] == variant]
            if runs:
                means = [
                    f"{100 * statistics.mean(run[key] for run in runs):.2f}"
                    for key in ("full", "full_rare", "strict", "strict_rare")
                ]
                told = " ".join(options.replace(NARROW, "").split())
                epochs = ", ".join(str(run["epoch"]) for run in runs)
                rows.append([variant, f"`{told}`", str(len(runs)), *means, epochs])
        text += ["", f"## {data}", "", markdown_table(header, rows, text_columns=2)]
    told = "\n".join(text)
    record("study", told, json.loads(json.dumps({"machine": machine, "runs": found})))
    return told


if __name__ == "__main__":
    main()
