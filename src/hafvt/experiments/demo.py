"""`hafvt demo`: all steps from raw data to recommendations, on generated data."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hafvt.data.prepare import prepare
from hafvt.data.sources.demo import generate_world
from hafvt.evaluation.metrics import Results
from hafvt.evaluation.tables import plain_table
from hafvt.experiments.evaluate import evaluate
from hafvt.features.encode import encode
from hafvt.folders import check_output_folder, remove_folder
from hafvt.progress import console
from hafvt.reports.report import write_report
from hafvt.settings import OutFolder, PositiveCount, Seed, check_arguments
from hafvt.training.run import RUN_FOLDER, open_run
from hafvt.training.train import train

DEMO_TRAININGS: dict[str, dict[str, Any]] = {
    "hafvt": {"epochs": 8, "batch_size": 64, "validate_every": 2},
    "sasrec": {"epochs": 40, "batch_size": 64, "validate_every": 2},
    "popularity": {"epochs": 1},
}
"""Options of `train` by model; a training stops early when its validation MRR no longer rises."""


@dataclass(frozen=True)
class Demo:
    """The results of the demo; `str()` returns their table and the next commands.

    Attributes:
        results: by model: by domain and "overall", each metric.
        folder: data/, runs/ and report.html.
        seconds: time of the demo.
    """

    results: dict[str, Results]
    folder: Path
    seconds: float

    def __str__(self) -> str:
        run_folders = " ".join(str(self.folder / "runs" / name) for name in self.results)
        return (
            f"{plain_table(self.results)}\n{self.seconds:.0f} s in all\n\n"
            f"The report:     open {self.folder / 'report.html'}\n"
            f"The page:       hafvt serve {run_folders}\n"
            "Your own data:  hafvt fit interactions.csv items.csv --out shop"
        )


@check_arguments
def demo(
    out: OutFolder = "demo",
    *,
    users: PositiveCount = 3000,
    items_per_shop: PositiveCount = 400,
    seed: Seed = 0,
) -> Demo:
    """Generate two shops that share customers, train and compare three models, and write report.html.

    The steps are those for your own data: prepare, encode (classic), train, evaluate.

    Example: hafvt demo --out demo

    Args:
        out: a new folder, or the folder of an earlier demo, whose data and runs are replaced.
        users: number of customers of both shops.
        items_per_shop: number of items of each shop.
        seed: of the generated data and of the models.

    Raises:
        HafvtError: a setting is wrong, or a folder that would be replaced holds something else than a run.
    """
    started = time.monotonic()
    folder = Path(out)
    run_folders = {name: folder / "runs" / name for name in DEMO_TRAININGS}
    for path in run_folders.values():
        check_output_folder(path, RUN_FOLDER, overwrite=True)
    interactions, items = generate_world(
        folder / "world", users=users, items_per_shop=items_per_shop, seed=seed
    )
    data = prepare(interactions, items, folder / "data", min_per_domain=3, seed=seed, overwrite=True)
    encode(data, image="classic", title="classic", seed=seed)
    results, runs = {}, {}
    for name, options in DEMO_TRAININGS.items():
        console.print(f"training {name}", style="bold")
        remove_folder(run_folders[name])
        train(name, data, run_folders[name], seed=seed, **options)
        results[name] = evaluate(run_folders[name]).results
        runs[name] = open_run(run_folders[name])
    note = f"generated data of {users:,} users, seed {seed}; targets ranked among all items of their domain"
    write_report(folder / "report.html", runs, [note])
    return Demo(results, folder, time.monotonic() - started)
