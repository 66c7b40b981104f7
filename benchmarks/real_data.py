"""HAF-VT and the yardsticks on the two real data sets: test figures, time, epochs.

    python benchmarks/real_data.py --shared ../shared/data --work DIR [--only TEXT] [--jobs 2]

Prepares and encodes each data set, then trains every run of `RUNS` by the command line, one thread each and
`--jobs` side by side. What was stopped goes on when the command is given again, what is finished is left as
it is. Whenever a run ends, results/real_data.md and .json are written anew; rows of earlier calls stay there
until their run is made again, each with the day that it was made.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

from machine import describe, record, recorded, sentence

from hafvt.evaluation.metrics import Results
from hafvt.evaluation.results import results_from_json
from hafvt.evaluation.tables import results_markdown
from hafvt.files import read_json
from hafvt.tables import markdown_table, percent

PREPARE = {
    "movielens-posters": "--min-per-domain 3",
    "amazon-food-kitchen": "--min-per-domain 1",
}
ENCODE = {
    "movielens-posters": "--precomputed image={f}/mobilenet_v2_poster.npz title={f}/minilm_title.npz",
    "amazon-food-kitchen": "--precomputed title={f}/minilm_title.npz",
}

# (data set, name of the run, what stands behind `hafvt train`). Where no --epochs stands, the run ends when
# validation MRR has not risen for five validations in a row. The literal reading is slow (it compares in the
# full width of the frozen vectors) and flat (see README), so it gets a fixed number of epochs.
RUNS = [
    ("movielens-posters", "hafvt", "hafvt"),
    ("amazon-food-kitchen", "hafvt", "hafvt --epochs 20"),
    ("movielens-posters", "sasrec", "sasrec"),
    ("movielens-posters", "hafvt ids only", "hafvt --params.modalities [id]"),
    ("movielens-posters", "popularity", "popularity"),
    ("amazon-food-kitchen", "popularity", "popularity"),
    ("amazon-food-kitchen", "sasrec", "sasrec"),
    ("amazon-food-kitchen", "hafvt ids only", "hafvt --epochs 20 --params.modalities [id]"),
    ("movielens-posters", "hafvt paper", "hafvt-paper --epochs 10"),
    ("amazon-food-kitchen", "hafvt paper", "hafvt-paper --epochs 10"),
]


def main() -> None:
    arguments = options("Trains and evaluates on the two real data sets.").parse_args()
    chosen = [run for run in RUNS if arguments.only in f"{run[0]}/{run[1]}"]
    for name in dict.fromkeys(name for name, _, _ in chosen):
        make_data(arguments.shared / name, arguments.work / "data" / name)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for finished in [pool.submit(train, arguments.work, *run) for run in chosen]:
            finished.result()
    print(write_results(arguments.work))


def options(description: str) -> argparse.ArgumentParser:
    """Returns a parser of what all benchmarks on the real data sets are told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets and runs")
    parser.add_argument("--only", default="", help="only runs whose 'data set/name' holds this text")
    parser.add_argument("--jobs", type=int, default=2, help="runs side by side, one thread each")
    return parser


def call(command: list[str], log: Path, threads: int) -> None:
    """Runs hafvt; what it prints goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    program = str(Path(sys.executable).with_name("hafvt"))
    with log.open("a") as file:
        subprocess.run(
            [program, *command],
            check=True,
            stdout=file,
            stderr=file,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )


def make_data(source: Path, out: Path) -> None:
    """Prepares and encodes a data set, unless that is done."""
    log = out.with_suffix(".log")
    if not (out / "manifest.json").exists():
        tables = f"--interactions {source}/interactions.csv.gz --items {source}/items.csv"
        call(["prepare", *f"{tables} {PREPARE[source.name]} --out {out}".split()], log, 2)
    if not (out / "features" / "title").exists():
        options = ENCODE[source.name].format(f=source / "features")
        call(["encode", str(out), *options.split()], log, 2)


def folder_of(work: Path, data: str, name: str) -> Path:
    return work / "runs" / data / name.replace(" ", "-")


def train(work: Path, data: str, name: str, options: str) -> None:
    """Trains one run, or goes on with it; a finished one is left as it is."""
    out = folder_of(work, data, name)
    if not (out / "results.json").exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        place = ["--data", str(work / "data" / data), "--out", str(out), "--resume"]
        call(["train", *options.split(), *place], out.with_suffix(".log"), 1)
    write_results(work)


def write_results(work: Path) -> str:
    """Writes the tables of all finished runs, those of earlier calls among them, and returns them."""
    machine, results_by_run = describe(), recorded("real_data")
    lines = ["# Real data", "", "`python benchmarks/real_data.py --shared ../shared/data --work DIR`", ""]
    for data in PREPARE:
        results: dict[str, Results] = {}
        rows = []
        for name, options in ((name, options) for d, name, options in RUNS if d == data):
            out = folder_of(work, data, name)
            if (out / "results.json").exists():
                previous, model = read_json(out / "results.json"), read_json(out / "model.json")
                entry = {"data": data, "run": name, "command": f"hafvt train {options}"}
                run_date = date.fromtimestamp((out / "results.json").stat().st_mtime).isoformat()
                entry |= {"best": model["best"], "parameters": model["parameters"], "made": run_date}
                results_by_run[data, name] = {**entry, **previous, "machine": machine}
            if (data, name) not in results_by_run:
                continue
            run = results_by_run[data, name]
            results[name], best = results_from_json(run["results"]), run["best"]
            cells = [name, f"`{run['command']}`", run["made"], f"{run['parameters']:,}"]
            cells += [f"{best['epoch']} of {best['epochs']}", f"{best['seconds'] / 60:.1f}"]
            rows.append([*cells, percent(best["valid_mrr"])])
        if rows:
            runs = [run for (of, _), run in results_by_run.items() if of == data]
            lines += [f"## {data}", "", f"`hafvt prepare {PREPARE[data]}`; {runs[-1]['protocol']}.", ""]
            lines += [results_markdown(results)]
            header = ["run", "command", "made", "parameters", "best epoch", "minutes", "validation MRR (%)"]
            lines += [markdown_table(header, rows, text_columns=3)]
            lines += [*sorted({f"{sentence(run['machine'])} One thread a run." for run in runs}), ""]
    text = "\n".join(lines)
    record("real_data", text, {"runs": list(results_by_run.values())})
    return text


if __name__ == "__main__":
    main()
