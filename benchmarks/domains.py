"""Three and five domains: HAF-VT with default settings, SASRec and itself with ids only.

    python benchmarks/domains.py --shared ../shared/data --work DIR [--only TEXT] [--jobs 2]

The films are sorted into five domains by their first genre, the goods into three by words of their titles.
Nothing was chosen on these sets: every run is `hafvt train MODEL` with its defaults, but for 30 epochs on the
films and 20 on the goods. Test MRR of each domain, among all its items and
under the protocol `sampled-unseen`, among 999 that the user
never had.

What was stopped goes on when the command is given again. Rows of earlier calls stay in results/domains.md and
.json until their run is made again.
"""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from machine import describe, record, recorded, sentence
from real_data import ENCODE, call, options

from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.experiments.comparison_runner import slug
from hafvt.files import atomic_file
from hafvt.tables import markdown_table
from hafvt.training.run import open_run

GENRE = pl.col("genres").str.split("|").list.first()
TITLE = pl.col("title").fill_null("").str.to_lowercase()
CUTS = {  # by data set: where it comes from, and its domains; an item is in the first that fits
    "films in five": (
        "movielens-posters",
        {
            "horror": GENRE == "Horror",
            "suspense": GENRE.is_in(["Thriller", "Crime", "Mystery", "Film-Noir"]),
            "action": pl.col("domain") == "action",
            "drama": GENRE == "Drama",
            "light": pl.lit(True),
        },
    ),
    "goods in three": (
        "amazon-food-kitchen",
        {
            "food": pl.col("domain") == "food",
            "home": TITLE.str.contains(
                r"\b(bed|sheet|pillow|blanket|vacuum|towel|storage|iron|curtain|shelf)"
            ),
            "cooking": pl.lit(True),
        },
    ),
}
RUNS = {"hafvt": "hafvt", "hafvt, ids only": "hafvt --params.modalities [id]", "sasrec": "sasrec"}
RANKED: dict[str, tuple[str, dict[str, Any]]] = {}  # by name: a run, and fields to rank with
EPOCHS = {"films in five": "--epochs 30", "goods in three": "--epochs 20"}
PROTOCOLS = ("full", "sampled-unseen")


def main() -> None:
    arguments = options("HAF-VT with its defaults on three and five domains.").parse_args()
    wanted = [(data, name) for name in RUNS for data in CUTS if arguments.only in f"{data}/{name}"]
    for data in dict.fromkeys(data for data, _ in wanted):
        make_cut(arguments.shared, arguments.work, data)
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for finished in [pool.submit(train, arguments.work, *run) for run in wanted]:
            finished.result()
    print(write(arguments.work))


def folder(work: Path, data: str, name: str) -> Path:
    return work / "cut" / slug(data) / slug(name)


def make_cut(shared: Path, work: Path, data: str) -> None:
    """Sorts the items into domains, prepares and encodes, unless that is done."""
    name, rules = CUTS[data]
    source, out = shared / name, folder(work, data, "data")
    log = out.with_suffix(".log")
    if not (out / "manifest.json").exists():
        items = pl.read_csv(source / "items.csv", schema_overrides={"item_id": pl.String})
        domain = pl.coalesce(pl.when(rule).then(pl.lit(of)) for of, rule in rules.items())
        out.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(out.with_name("items.csv")) as path:
            items.with_columns(domain=domain).drop("image", strict=False).write_csv(path)
        tables = f"--interactions {source}/interactions.csv.gz --items {out.with_name('items.csv')}"
        call(["prepare", *tables.split(), "--out", str(out)], log, 2)
    if not (out / "features" / "title").exists():
        call(["encode", str(out), *ENCODE[name].format(f=source / "features").split()], log, 2)


def train(work: Path, data: str, name: str) -> None:
    """Trains one run, or goes on with it; a finished one is left as it is."""
    out = folder(work, data, name)
    if not (out / "results.json").exists():
        place = ["--data", str(folder(work, data, "data")), "--out", str(out), "--resume"]
        call(["train", *RUNS[name].split(), *EPOCHS[data].split(), *place], out.with_suffix(".log"), 1)


def measure(work: Path, data: str, name: str) -> dict[str, Any]:
    """Ranks the test targets by a finished run and returns its figures."""
    trained, changes = RANKED.get(name, (name, {}))
    run = open_run(folder(work, data, trained))
    models: Any = run.models
    for model in models if changes else ():
        model.config = model.config.replace(**changes)
    results: dict[str, Any] = {
        "data": data,
        "run": name,
        "users": run.data.num_users,
        "best": run.manifest["best"],
    }
    results["items"] = {domain.name: len(domain) for domain in run.data.domains}
    for protocol in PROTOCOLS:
        ranks, _ = rank_targets(run.models, run.data, "test", get_protocol(protocol))
        of = {domain.name: 1 / ranks.ranks[ranks.domains == d] for d, domain in enumerate(run.data.domains)}
        results["targets"] = {domain: len(gains) for domain, gains in of.items()}
        results[protocol] = {"all": mean_mrr(ranks)} | {domain: gains.mean() for domain, gains in of.items()}
    return json.loads(json.dumps({**results, "machine": describe()}, default=float))


def write(work: Path) -> str:
    """Writes the tables of all finished runs, those of earlier calls among them, and returns them."""
    results = recorded("domains")
    text = [
        "# Three and five domains",
        "",
        "`python benchmarks/domains.py --shared ../shared/data --work DIR`: test MRR in %, one seed, all "
        "default settings but for the epochs; `sampled-unseen` ranks among 999 unseen items.",
    ]
    for data, (source, rules) in CUTS.items():
        rows, runs = [], []
        for name in (*RUNS, *RANKED):
            if (folder(work, data, RANKED.get(name, (name,))[0]) / "results.json").exists():
                results[data, name] = measure(work, data, name)
            if (data, name) in results:
                run, best = results[data, name], results[data, name]["best"]
                runs.append(run)
                for protocol in PROTOCOLS:
                    cells = [f"{100 * run[protocol][of]:.2f}" for of in ("all", *sorted(rules))]
                    rows.append([name, protocol, *cells, f"{best['epoch']} of {best['epochs']}"])
        if runs:
            counts = runs[-1]["items"].items()
            description = ", ".join(
                f"{of} {n:,} items and {runs[-1]['targets'][of]:,} targets" for of, n in counts
            )
            text += [
                "",
                f"## {data.capitalize()}",
                "",
                f"Of {source}, {runs[-1]['users']:,} users: {description}.",
                "",
            ]
            header = ["run", "protocol", "all", *sorted(rules), "best epoch"]
            text += [markdown_table(header, rows, text_columns=2)]
            text += sorted({sentence(run["machine"]) for run in runs})
    description = "\n".join(text)
    record("domains", description, {"runs": list(results.values())})
    return description


if __name__ == "__main__":
    main()
