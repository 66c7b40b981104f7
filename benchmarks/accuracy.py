"""What bfloat16 and sampled softmaxes cost in quality, on the two real data sets.

    python benchmarks/accuracy.py --shared ../shared/data --work DIR [--seeds 3] [--jobs 2] [--only TEXT]

Trains HAF-VT and SASRec in float32, in bfloat16, and in float32 with sampled softmaxes, by the command line,
one thread each, with the same seeds and number of epochs; test targets are not looked at. What was stopped
goes on when the command is given again. Writes results/accuracy.md and .json from the runs that are finished;
rows of earlier calls of which this one has no runs stay.
"""

from __future__ import annotations

import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from machine import describe, record, recorded, sentence
from real_data import PREPARE, call, make_data, options
from study import COMMON, NARROW, SASREC

from hafvt.files import read_json
from hafvt.tables import markdown_table

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
    parser = options("Quality of bfloat16 and of sampled softmaxes.")
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    for name in PREPARE:
        make_data(arguments.shared / name, arguments.work / "data" / name)
    runs = [
        (*case, variant, seed) for seed in range(arguments.seeds) for case in EPOCHS for variant in VARIANTS
    ]
    runs = [run for run in runs if arguments.only in "/".join(run[:3])]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for finished in [pool.submit(train, arguments.work, *run) for run in runs]:
            finished.result()
    print(write(arguments.work, arguments.seeds))


def folder_of(work: Path, data: str, model: str, variant: str, seed: int) -> Path:
    return work / "runs" / data / f"{model}-{variant}-{seed}"


def train(work: Path, data: str, model: str, variant: str, seed: int) -> None:
    """Trains one run, or goes on with it; a finished one is left as it is."""
    out = folder_of(work, data, model, variant, seed)
    if (out / "model.json").exists():
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    settings = f"train {MODELS[model]} --seed {seed} --epochs {EPOCHS[data, model]} {COMMON}"
    settings += f" --precision {'bf16' if variant == 'bf16' else 'fp32'}"
    if variant == "sampled":
        settings += f" --params.num_negatives {SAMPLED[data]}"
    place = ["--data", str(work / "data" / data), "--out", str(out)]
    call([*settings.split(), *place], out.with_suffix(".log"), 1)


def write(work: Path, seeds: int) -> str:
    """Writes the table of all finished runs, rows of earlier calls among them, and returns it."""
    results = recorded("accuracy")
    for data, model in EPOCHS:
        for variant in VARIANTS[1:]:
            pairs = [
                [folder_of(work, data, model, which, seed) / "model.json" for which in (variant, "fp32")]
                for seed in range(seeds)
            ]
            bests = [
                [read_json(path)["best"]["valid_mrr"] for path in pair]
                for pair in pairs
                if all(path.exists() for path in pair)
            ]
            if len(bests) > 1:
                row = {"data": data, "run": f"{model} {variant}", "epochs": EPOCHS[data, model]}
                row |= {"valid_mrr": [here for here, _ in bests], "valid_mrr_beside": [x for _, x in bests]}
                results[data, row["run"]] = row | {"machine": describe()}
    order = [(data, f"{model} {variant}") for data, model in EPOCHS for variant in VARIANTS]
    previous = [results[name] for name in order if name in results]
    header = ["data", "model", "epochs", "variant", "seeds", "MRR in fp32, %", "MRR, %", "change", "flags"]
    machines = dict.fromkeys(sentence(row["machine"]) for row in previous)
    text = "\n".join(
        [
            "# Quality in bfloat16 and with sampled softmaxes",
            "",
            "`python benchmarks/accuracy.py --shared ../shared/data --work DIR`: best validation MRR of the "
            "same seeds and number of epochs, width 64, histories of 20 items, batches of 128, learning rate "
            "0.003; the change is that of the mean, after ± its standard error over the seeds. One thread a "
            "run, two side by side. The flags are the processor's, by which the machines differ:",
            "",
            *(f"* {machine}" for machine in machines),
            "",
            markdown_table(header, [cells_of(row) for row in previous], text_columns=4),
        ]
    )
    record("accuracy", text, {"runs": previous})
    return text


def cells_of(row: dict[str, Any]) -> list[str]:
    """Returns a row of the table."""
    here, there = row["valid_mrr"], row["valid_mrr_beside"]
    ratios = [a / b - 1 for a, b in zip(here, there, strict=True)]
    error = statistics.stdev(ratios) / len(ratios) ** 0.5
    model, variant = row["run"].split()
    return [
        row["data"],
        model,
        str(row["epochs"]),
        f"{SAMPLED[row['data']]:,} sampled items" if variant == "sampled" else variant,
        str(len(here)),
        *(f"{100 * statistics.mean(x):.2f}" for x in (there, here)),
        f"{statistics.mean(here) / statistics.mean(there) - 1:+.1%} ± {error:.1%}",
        ", ".join(row["machine"]["flags"]),
    ]


if __name__ == "__main__":
    main()
