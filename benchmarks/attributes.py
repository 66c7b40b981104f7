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
import time
from pathlib import Path
from typing import Any

import polars as pl
import torch
from machine import describe, record, sentence

import hafvt
from hafvt.data.dataset import Dataset
from hafvt.experiments.cold_evaluation import rank_cold_targets
from hafvt.files import read_json, write_json
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
PARAMS = {"id_width": 64, "max_length": 20}
RUNS = {
    "content": lambda content: ("id", *content),
    "content and attributes": lambda content: ("id", *content, "attributes"),
    "attributes alone": lambda content: ("id", "attributes"),
}
"""By name: the modalities of a run on data that has pictures or titles."""


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
        for run, modalities in RUNS.items():
            folder = arguments.work / f"{name}-{run.replace(' ', '-')}"
            rows.append(
                {"data": name, "run": run, **measure(data, folder, modalities(VECTORS[name]), EPOCHS[name])}
            )
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
        files = {modality: source / "features" / f"{file}.npz" for modality, file in VECTORS[name].items()}
        for table in hafvt.encode(data, precomputed=files, attributes=ATTRIBUTES[name]).values():
            print(table.summary, flush=True)
    return Dataset.open(out)


def measure(data: Dataset, folder: Path, modalities: tuple[str, ...], epochs: int) -> dict[str, Any]:
    """Train a run and return MRR on validation, test and cold targets, and the processor time in seconds."""
    if not (folder / "measured.json").exists():
        start = time.process_time()
        params = {**PARAMS, "modalities": modalities}
        settings: dict[str, Any] = {"batch_size": 128, "patience": 0, "overwrite": True}
        run = hafvt.train("hafvt", data, folder, params=params, epochs=epochs, **settings)
        seconds = time.process_time() - start
        best = read_json(run.folder / "model.json")["best"]
        test = read_json(run.folder / "results.json")["results"]["overall"]["MRR"]
        _, cold, chance = rank_cold_targets(open_run(folder, data), torch.device("cpu"))
        measured = {
            "valid": best["valid_mrr"],
            "epoch": best["epoch"],
            "test": test,
            "cold": vars(cold["overall"]["MRR"]),
            "chance": chance["overall"]["MRR"].value,
            "seconds": round(seconds),
        }
        write_json(folder / "measured.json", measured)
    return dict(read_json(folder / "measured.json"))


def write(rows: list[dict[str, Any]]) -> None:
    """Write results/attributes.md and .json."""
    header = ["data", "modalities beside ids", "validation MRR (%)", "best epoch", "test MRR (%)"]
    header += ["cold MRR (%)", "times random", "processor time (s)"]
    cells = [
        [
            row["data"],
            row["run"],
            percent(row["valid"]),
            f"{row['epoch']} of {EPOCHS[row['data']]}",
            percent(row["test"]["value"]),
            percent(row["cold"]["value"]),
            f"{row['cold']['value'] / row['chance']:.1f}",
            str(row["seconds"]),
        ]
        for row in rows
    ]
    machine = describe()
    lines = ["# Attributes", "", "`python benchmarks/attributes.py --shared ../shared/data --work DIR`", ""]
    lines += [markdown_table(header, cells, text_columns=2), sentence(machine), ""]
    record("attributes", "\n".join(lines), {"machine": machine, "runs": rows})
    print("\n".join(lines))


if __name__ == "__main__":
    main()
