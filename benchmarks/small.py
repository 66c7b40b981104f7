"""Small shops: HAF-VT and SASRec on a tenth of the users of the two real data sets.

    python benchmarks/small.py --shared ../shared/data --work DIR [--only TEXT] [--jobs 2]

Takes every tenth user, in the order of their ids, and the items that they had. Every run is `hafvt train`
with the options of `RUNS` and what else comes with it, until validation MRR has not risen for five
validations. Nothing was chosen on the test targets.

What was stopped goes on when the command is given again. What a run found is kept in results/small.json, and
a run that is there is not made again.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from machine import describe, record, recorded, sentence
from real_data import ENCODE, PREPARE, call, options

from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.comparison_runner import slug
from hafvt.files import atomic_file
from hafvt.tables import markdown_table
from hafvt.training.run import open_run

EVERY = 10  # users, of whom one is taken
RUNS = {
    "hafvt": "hafvt",
    "sasrec": "sasrec",
    "hafvt, unmixed": "hafvt --preset unmixed",
    "hafvt, ids only": "hafvt --params.modalities [id]",
    "hafvt, rate 0.001": "hafvt --learning-rate 0.001",
    "sasrec, rate 0.003": "sasrec --learning-rate 0.003",
    "hafvt, batches of 128": "hafvt --batch-size 128",
    "sasrec, batches of 128": "sasrec --batch-size 128",
}
PROTOCOLS = ("full", "sampled-unseen")


def main() -> None:
    arguments = options("HAF-VT and SASRec on a tenth of the users.").parse_args()
    wanted = [(data, name) for name in RUNS for data in PREPARE if arguments.only in f"{data}/{name}"]
    results = recorded("small")
    wanted = [run for run in wanted if run not in results]
    for data in dict.fromkeys(data for data, _ in wanted):
        make_data(arguments.shared / data, arguments.work / data)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for run, figures in zip(
            wanted, pool.map(lambda run: measure(arguments.work, *run), wanted), strict=True
        ):
            results[run] = figures
            write(results)
    print(write(results))


def make_data(source: Path, out: Path) -> None:
    """Takes every tenth user and what they had, prepares and encodes, unless that is done."""
    log = out.with_suffix(".log")
    if not (out / "manifest.json").exists():
        names = {"user_id": pl.String, "item_id": pl.String}
        log_of_all = pl.read_csv(source / "interactions.csv.gz", schema_overrides=names)
        users = log_of_all["user_id"].unique().sort().gather_every(EVERY)
        interactions = log_of_all.filter(pl.col("user_id").is_in(users.implode()))
        items = pl.read_csv(source / "items.csv", schema_overrides=names).drop("image", strict=False)
        items = items.filter(pl.col("item_id").is_in(interactions["item_id"].unique().implode()))
        out.parent.mkdir(parents=True, exist_ok=True)
        tables = {"interactions": interactions, "items": items}
        paths = {name: out.with_name(f"{source.name}-{name}.csv") for name in tables}
        for name, table in tables.items():
            with atomic_file(paths[name]) as path:
                table.write_csv(path)
        entry = " ".join(f"--{name} {path}" for name, path in paths.items())
        call(["prepare", *f"{entry} {PREPARE[source.name]} --out {out}".split()], log, 2)
    if not (out / "features" / "title").exists():
        call(["encode", str(out), *ENCODE[source.name].format(f=source / "features").split()], log, 2)


def measure(work: Path, data: str, name: str) -> dict[str, Any]:
    """Trains one run, or goes on with it, and returns its figures."""
    out = work / "runs" / data / slug(name)
    if not (out / "results.json").exists():
        place = ["--data", str(work / data), "--out", str(out), "--resume"]
        call(["train", *RUNS[name].split(), *place], out.with_suffix(".log"), 1)
    run = open_run(out)
    figures: dict[str, Any] = {"data": data, "run": name, "best": run.manifest["best"], "machine": describe()}
    domains = run.data.domains
    figures |= {"users": run.data.num_users, "items": {domain.name: len(domain) for domain in domains}}
    for protocol in PROTOCOLS:
        for split in ("valid", "test"):
            ranks, _ = rank_targets(run.models, run.data, split, get_protocol(protocol))
            figures[f"{split} {protocol}"] = mean_mrr(ranks)
            figures[f"{split} targets"] = len(ranks.ranks)
    return json.loads(json.dumps(figures, default=float))


def write(results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """Writes the tables of all finished runs and returns them."""
    text = [
        "# Small shops",
        "",
        "`python benchmarks/small.py --shared ../shared/data --work DIR`: every tenth user and what they "
        "had; MRR in %, mean of the domains, one seed, default settings but for the options; "
        "`sampled-unseen` ranks among at most 999 items that the user never had.",
    ]
    for data in PREPARE:
        runs = [results[data, name] for name in RUNS if (data, name) in results]
        if not runs:
            continue
        items = " and ".join(f"{count:,} items of {domain}" for domain, count in runs[0]["items"].items())
        targets = f"{runs[0]['valid targets']:,} validation and {runs[0]['test targets']:,} test targets"
        header = ["run", "train", "valid", "valid, unseen", "test", "test, unseen", "best epoch", "minutes"]
        rows = []
        for run in runs:
            figures = [f"{100 * run[f'{of} {by}']:.2f}" for of in ("valid", "test") for by in PROTOCOLS]
            best, minutes = run["best"], f"{run['best']['seconds'] / 60:.1f}"
            epochs = f"{best['epoch']} of {best['epochs']}"
            rows.append([run["run"], f"`{RUNS[run['run']]}`", *figures, epochs, minutes])
        text += ["", f"## {data}", "", f"{runs[0]['users']:,} users, {items}; {targets}.", ""]
        text += [markdown_table(header, rows, text_columns=2)]
        text += sorted({sentence(run["machine"]) for run in runs})
    entry = "\n".join(text)
    record("small", entry, {"runs": list(results.values())})
    return entry


if __name__ == "__main__":
    main()
