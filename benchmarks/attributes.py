"""Attributes as a modality: HAF-VT with and without them on films and goods, all items and cold items.

    python benchmarks/attributes.py --shared ../shared/data --work DIR

10 % of each domain's items are held out. Films have genres and the year in their title. The table of goods
has no column beside the title, so that attributes are read from it: the first word as the brand, the weight
in ounces, the number of pieces. They show whether columns are worth something beside vectors of the titles
that they came from. Each run of `RUNS` is trained on one thread; a finished one is left as it is. Writes
results/attributes.md and .json.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import polars as pl
import torch
from machine import describe, record, sentence

import hafvt
from hafvt.data.dataset import Dataset
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.experiments.cold_evaluation import rank_cold_targets
from hafvt.files import read_json
from hafvt.models.hafvt import HafVt
from hafvt.tables import markdown_table, percent
from hafvt.training.run import open_run

TITLE = pl.col("title")
PIECES = TITLE.str.extract(r"(?i)pack of (\d+)").fill_null(
    TITLE.str.extract(r"(?i)(\d+)[- ]?(?:pack|count|pieces?)\b")
)
DERIVED = {
    "movielens-posters": {"year": TITLE.str.extract(r"\((\d{4})\)")},
    "amazon-food-kitchen": {
        "brand": TITLE.str.extract(r"^(\S+)").str.to_lowercase(),
        "ounces": TITLE.str.extract(r"(?i)(\d+(?:\.\d+)?)[- ]?(?:oz|ounces?)\b"),
        "pieces": PIECES,
    },
}
"""By data set: columns that are added to the items table."""
ATTRIBUTES = {"movielens-posters": ["genres", "year"], "amazon-food-kitchen": ["brand", "ounces", "pieces"]}
VECTORS = {
    "movielens-posters": {"image": "mobilenet_v2_poster", "title": "minilm_title"},
    "amazon-food-kitchen": {"title": "minilm_title"},
}
MIN_PER_DOMAIN = {"movielens-posters": 3, "amazon-food-kitchen": 1}
EPOCHS = {"movielens-posters": 6, "amazon-food-kitchen": 4}
BOOSTS = (1.0, 1.5, 3.0)
"""Values of `cold_item_boost`, the factor on the scores of cold items, that all runs are ranked with."""
TRAINED_ONLY = 0.001
"""A boost that leaves cold items below all trained ones."""
PARAMS = {"id_width": 64, "max_length": 20}
RUNS = {"content": False, "content and attributes": True, "attributes alone": True}
"""By name: whether the run has attributes. The last one has no pictures and titles."""


def main() -> None:
    """Prepare both datasets, train all runs and write the table."""
    parser = argparse.ArgumentParser(description="HAF-VT with and without attributes.")
    parser.add_argument("--shared", type=Path, default=Path("../shared/data"), help="folder of the real data")
    parser.add_argument("--work", type=Path, required=True, help="folder for data sets and runs")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in ATTRIBUTES:
        data = prepare(arguments.shared / name, arguments.work / name)
        for run, has_attributes in RUNS.items():
            content = () if run == "attributes alone" else tuple(VECTORS[name])
            modalities = ("id", *content, *(["attributes"] if has_attributes else []))
            folder = arguments.work / f"{name}-{run.replace(' ', '-')}"
            rows.append({"data": name, "run": run, **measure(data, folder, modalities, EPOCHS[name])})
            print(rows[-1], flush=True)
    write(rows)


def prepare(source: Path, out: Path) -> Dataset:
    """Return the data set with columns of attributes and all vectors; an existing one is opened."""
    name = source.name
    if not (out / "features" / "attributes").exists():
        items = pl.read_csv(source / "items.csv").with_columns(**DERIVED[name])
        data = hafvt.prepare(
            pl.read_csv(source / "interactions.csv.gz"),
            items,
            out,
            min_per_domain=MIN_PER_DOMAIN[name],
            hold_out_items=0.1,
            overwrite=True,
        )
        files: dict[str, str | Path] = {
            modality: source / "features" / f"{file}.npz" for modality, file in VECTORS[name].items()
        }
        for table in hafvt.encode(data, precomputed=files, attributes=ATTRIBUTES[name]).values():
            print(table.summary, flush=True)
    return Dataset.open(out)


def measure(data: Dataset, folder: Path, modalities: tuple[str, ...], epochs: int) -> dict[str, Any]:
    """Train a run, unless it is finished; return MRR on validation, test and cold targets by boost."""
    if not (folder / "results.json").exists():
        params = {**PARAMS, "modalities": modalities}
        settings: dict[str, Any] = {"batch_size": 128, "patience": 0, "overwrite": True}
        hafvt.train("hafvt", data, folder, params=params, epochs=epochs, **settings)
    run = open_run(folder, data)
    model, best = run.model, read_json(folder / "model.json")["best"]
    assert isinstance(model, HafVt)
    test, cold, chance = {}, {}, 0.0
    for boost in (TRAINED_ONLY, *BOOSTS):
        model.config = model.config.replace(cold_item_boost=boost)
        test[boost] = mean_mrr(rank_positions(model, data, data.test).half_ties)
        if boost in BOOSTS:
            _, results, random_order = rank_cold_targets(run, torch.device("cpu"))
            cold[boost], chance = vars(results["overall"]["MRR"]), random_order["overall"]["MRR"].value
    return {"valid": best["valid_mrr"], "epoch": best["epoch"], "test": test, "cold": cold, "chance": chance}


def write(rows: list[dict[str, Any]]) -> None:
    """Write results/attributes.md and .json."""
    header = ["data", "modalities beside ids", "validation", "test, among trained items"]
    header += [f"{part}, boost {boost:g}" for boost in BOOSTS for part in ("test", "cold")]
    cells = []
    for row in rows:
        parts = [(row["test"][boost], row["cold"][boost]["value"]) for boost in BOOSTS]
        values = [row["valid"], row["test"][TRAINED_ONLY], *(value for pair in parts for value in pair)]
        cells.append([row["data"], row["run"], *map(percent, values)])
    machine = describe()
    chance = ", ".join(dict.fromkeys(f"{percent(row['chance'])} ({row['data']})" for row in rows))
    lines = ["# Attributes", "", "`python benchmarks/attributes.py --shared ../shared/data --work DIR`", ""]
    lines += ["MRR in %, mean of the domains; boost: `cold_item_boost`, 1.5 in validation.", ""]
    lines += [markdown_table(header, cells, text_columns=2), f"Cold items in a random order: {chance}.", ""]
    lines += [sentence(machine), ""]
    record("attributes", "\n".join(lines), {"machine": machine, "runs": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
