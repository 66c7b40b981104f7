"""What bfloat16 and sampled softmaxes cost in quality, on the two real data sets.

    python benchmarks/accuracy.py --shared ../shared/data --work DIR [--seeds 3] [--jobs 2]

Trains HAF-VT and SASRec in float32, in bfloat16, and in float32 with sampled softmaxes, by the command line,
one thread each, with the same seeds and number of epochs; test targets are not looked at. What was stopped
goes on when the command is given again. Writes results/accuracy.md and .json from the runs that are finished.
"""

from __future__ import annotations

import argparse
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe, record, sentence
from real_data import PREPARE, call, make_data
from study import COMMON, NARROW, SASREC

from hafvt.files import read_json
from hafvt.reports.table import markdown_table

EPOCHS = {
    ("movielens-posters", "hafvt"): 12,
    ("movielens-posters", "sasrec"): 16,
    ("amazon-food-kitchen", "sasrec"): 6,
    ("amazon-food-kitchen", "hafvt"): 5,
}
MODELS = {"hafvt": f"hafvt {NARROW}", "sasrec": SASREC}
SAMPLED = {"movielens-posters": 512, "amazon-food-kitchen": 4096}
VARIANTS = ("fp32", "bf16", "sampled")


def main() -> None:
    parser = argparse.ArgumentParser(description="Quality of bfloat16 and of sampled softmaxes.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets and runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    given = parser.parse_args()
    for name in PREPARE:
        make_data(given.shared / name, given.work / "data" / name)
    runs = [(*case, variant, seed) for seed in range(given.seeds) for case in EPOCHS for variant in VARIANTS]
    with ThreadPoolExecutor(given.jobs) as pool:
        for finished in [pool.submit(train, given.work, *run) for run in runs]:
            finished.result()
    print(write(given.work, given.seeds))


def folder_of(work: Path, data: str, model: str, variant: str, seed: int) -> Path:
    return work / "runs" / data / f"{model}-{variant}-{seed}"


def train(work: Path, data: str, model: str, variant: str, seed: int) -> None:
    """Trains one run, or goes on with it; a finished one is left as it is."""
    out = folder_of(work, data, model, variant, seed)
    if (out / "model.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    options = f"train {MODELS[model]} --seed {seed} --epochs {EPOCHS[data, model]} {COMMON}"
    options += f" --precision {'bf16' if variant == 'bf16' else 'fp32'}"
    if variant == "sampled":
        options += f" --params.sampled {SAMPLED[data]}"
    place = ["--data", str(work / "data" / data), "--out", str(out)]
    call([*options.split(), *place], out.with_suffix(".log"), 1)


def write(work: Path, seeds: int) -> str:
    """Writes the table of all finished runs and returns it."""
    machine, rows = describe(), []
    held: list[dict[str, Any]] = []
    for data, model in EPOCHS:
        found: dict[str, dict[int, float]] = {}
        for variant in VARIANTS:
            bests = {
                seed: read_json(path / "model.json")["best"]
                for seed in range(seeds)
                if ((path := folder_of(work, data, model, variant, seed)) / "model.json").exists()
            }
            found[variant] = {seed: best["valid_mrr"] for seed, best in bests.items()}
        for variant, other in (("bf16", "fp32"), ("sampled", "fp32")):
            both = sorted(set(found[variant]) & set(found[other]))
            if len(both) < 2:
                continue
            here, there = ([found[which][seed] for seed in both] for which in (variant, other))
            ratios = [a / b - 1 for a, b in zip(here, there, strict=True)]
            change = statistics.mean(here) / statistics.mean(there) - 1
            error = statistics.stdev(ratios) / len(both) ** 0.5
            name = f"{SAMPLED[data]:,} sampled items" if variant == "sampled" else variant
            cells = [data, model, name, f"{'all items, ' if variant == 'sampled' else ''}{other}"]
            cells += [str(len(both)), *(f"{100 * statistics.mean(x):.2f}" for x in (there, here))]
            cells += [f"{change:+.1%} ± {error:.1%}"]
            rows.append(cells)
            held.append({"data": data, "model": model, "variant": variant, "beside": other, "seeds": both})
            held[-1] |= {"valid_mrr": here, "valid_mrr_beside": there, "change": change, "error": error}
    header = ["data", "model", "variant", "beside", "seeds", "MRR beside, %", "MRR, %", "change"]
    text = "\n".join(
        [
            "# Quality in bfloat16 and with sampled softmaxes",
            "",
            "`python benchmarks/accuracy.py --shared ../shared/data --work DIR`: best validation MRR of the "
            "same seeds and number of epochs ("
            + ", ".join(f"{model} on {data}: {epochs}" for (data, model), epochs in EPOCHS.items())
            + "), width 64, histories of 20 items, batches of 128, learning rate 0.003; the change is that "
            "of the mean, after ± its standard error over the seeds. A run is on one "
            "thread, two side by side.",
            "",
            sentence(machine),
            "",
            markdown_table(header, rows, text_columns=4),
        ]
    )
    record("accuracy", text, {"machine": machine, "epochs": list(EPOCHS.values()), "rows": held})
    return text


if __name__ == "__main__":
    main()
