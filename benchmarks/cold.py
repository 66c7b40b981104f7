"""Items that were held out of training, ranked among all: HAF-VT, ids only, a random order.

    python benchmarks/cold.py --shared ../shared/data --work DIR

Prepares movielens-posters with 10 % of each domain's items held out, trains each run of `RUNS` by the command
line on one thread, and ranks the targets among held-out items (cold) and the test targets (warm). What was
stopped goes on when the command is given again; what is finished is left as it is. `cold_item_boost`, the
factor on the score of cold items, changes scores alone: one run shows what each value of it gives.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from machine import describe, record, sentence

from hafvt.data.batches import target_batches
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.tables import interval
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.experiments.cold_evaluation import rank_cold_targets
from hafvt.models.hafvt import HafVt
from hafvt.tables import markdown_table, percent
from hafvt.training.run import Run, open_run

DATA = "movielens-posters"
PREPARE = "--min-per-domain 3 --hold-out-items 0.1"
ENCODE = "--precomputed image={f}/mobilenet_v2_poster.npz title={f}/minilm_title.npz"
TRAIN = "--epochs 8 --learning-rate 0.003 --batch-size 128 --params.max_length 20"
RUNS = {"hafvt": "", "hafvt ids only": "--params.modalities [id]"}
FACTORS = (1.0, 1.5, 2.0, 3.0)


def main() -> None:
    parser = argparse.ArgumentParser(description="Ranks items that were held out of training.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for data set and runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = make_data(arguments.shared / DATA, arguments.work / "data" / DATA)
    measured = []
    for name, options in RUNS.items():
        out = arguments.work / "runs" / name.replace(" ", "-")
        command = f"train hafvt {TRAIN} {options}".strip()
        if not (out / "results.json").exists():
            call(
                [*command.split(), "--data", str(data), "--out", str(out), "--resume"],
                out.with_suffix(".log"),
            )
        run = open_run(out, data)
        for factor in FACTORS if options == "" else (run.config.cold_item_boost,):
            measured.append({"run": name, "command": f"hafvt {command}", **measure(run, factor)})
    write(measured)


def call(command: list[str], log: Path) -> None:
    """Runs hafvt; what it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).with_name("hafvt"))
    with log.open("a") as file:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        subprocess.run([program, *command], check=True, stdout=file, stderr=file, env=environment)


def make_data(source: Path, out: Path) -> Path:
    """Prepares and encodes the data set, unless that is done."""
    if not (out / "manifest.json").exists():
        tables = f"--interactions {source}/interactions.csv.gz --items {source}/items.csv"
        call(["prepare", *f"{tables} {PREPARE} --out {out}".split()], out.with_suffix(".log"))
    if not (out / "features" / "title").exists():
        call(["encode", str(out), *ENCODE.format(f=source / "features").split()], out.with_suffix(".log"))
    return out


def measure(run: Run, factor: float) -> dict[str, Any]:
    """Returns what a run has at a `cold_item_boost`: cold MRR, warm MRR, places among the best ten."""
    model = run.model
    assert isinstance(model, HafVt)
    model.config = model.config.replace(cold_item_boost=factor)
    _, results, chance = rank_cold_targets(run, torch.device("cpu"))
    return {
        "cold_item_boost": factor,
        "cold": {name: vars(row["MRR"]) for name, row in results.items()},
        "cold_shown": {
            name: percent(row["MRR"].value) + " " + interval(row["MRR"]) for name, row in results.items()
        },
        "chance": {name: row["MRR"].value for name, row in chance.items()},
        "times": {name: row["MRR"].value / chance[name]["MRR"].value for name, row in results.items()},
        "warm": mean_mrr(rank_positions(model, run.data, run.data.test).half_ties),
        "places": places(model, run),
    }


def places(model: HafVt, run: Run) -> float:
    """Returns the share of cold items among the best ten of 1,024 test histories."""
    _, batch = next(target_batches(run.data, run.data.test[:1024], 1024, model.max_length))
    measured = []
    with torch.inference_mode():
        for number, domain in enumerate(model.domains):
            best = model.scores(batch, number).topk(10, dim=1).indices + domain.start
            measured.append(float(model.trained.is_cold[best].float().mean()))
    return sum(measured) / len(measured)


def write(measured: list[dict[str, Any]]) -> None:
    """Writes results/cold.md and .json."""
    machine = describe()
    header = ["run", "`cold_item_boost`", "cold MRR (%), mean of the domains", "times random's"]
    header += ["by domain", "warm MRR (%)", "places among the best ten (%)"]
    rows = []
    for one in measured:
        names = [name for name in one["times"] if name != "overall"]
        by_domain = ", ".join(f"{one['times'][name]:.1f} {name}" for name in names)
        cells = [one["run"], f"{one['cold_item_boost']:g}", one["cold_shown"]["overall"]]
        cells += [f"{one['times']['overall']:.1f}", by_domain, percent(one["warm"]), percent(one["places"])]
        rows.append(cells)
    rows.append(["a random order", "", percent(measured[0]["chance"]["overall"]), "1.0", "", "", ""])
    text = "\n".join(
        [
            "# Cold items",
            "",
            f"{DATA}, 10 % of each domain's items held out (`hafvt prepare {PREPARE}`), vectors of",
            f"MobileNet-v2 and MiniLM; `hafvt train hafvt {TRAIN}`.",
            "",
            "Cold: targets among the held-out items that follow their user's training part, each ranked",
            "among all items of its domain, ties at half, with 95 % bootstrap intervals over users. Warm:",
            "the test targets, likewise. Places: how many of the best ten items are ones that training never",
            "met.",
            "",
            markdown_table(header, rows, text_columns=1),
            sentence(machine),
            "",
        ]
    )
    record("cold", text, {"machine": machine, "runs": measured})
    print(text)


if __name__ == "__main__":
    main()
