"""`hafvt demo`: the whole way on a generated world."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from hafvt.data.prepare import prepare
from hafvt.data.sources.demo import generate_world
from hafvt.evaluation.metrics import Results
from hafvt.evaluation.tables import plain_table
from hafvt.experiments.evaluate import evaluate
from hafvt.features.encode import encode
from hafvt.progress import console
from hafvt.reports.report import write_report
from hafvt.training.run import open_run
from hafvt.training.trainer import train

BUDGET: dict[str, dict[str, int]] = {
    "hafvt": {"epochs": 8, "batch_size": 64, "validate_every": 2},
    "sasrec": {"epochs": 40, "batch_size": 64, "validate_every": 2},
    "popularity": {"epochs": 1},
}
"""Epochs at most; each model stops earlier once its validation MRR has ceased to rise."""


@dataclass(frozen=True)
class Demo:
    """What the demo found: the results of each model, and its folder with report.html."""

    results: dict[str, Results]
    folder: Path
    seconds: float

    def __str__(self) -> str:
        """The table, in per cent."""
        table = plain_table(self.results)
        return f"{table}\n{self.seconds:.0f} s in all\nopen {self.folder / 'report.html'}"


def demo(out: str | Path = "demo", *, users: int = 3000, items_per_shop: int = 400, seed: int = 0) -> Demo:
    """Generates two shops that share customers, trains and compares three models, writes report.html.

    Runs what a user runs on their own data: prepare, encode (classic), train, evaluate.

    Example: hafvt demo --out demo

    Args:
        out: a new folder, or that of an earlier demo, which is replaced piece by piece.
        users: customers of both shops.
        items_per_shop: items of each shop.
        seed: of the world and of the models.
    """
    started = time.monotonic()
    folder = Path(out)
    interactions, items = generate_world(
        folder / "world", users=users, items_per_shop=items_per_shop, seed=seed
    )
    data = prepare(interactions, items, folder / "data", min_per_domain=3, seed=seed, overwrite=True)
    encode(data, image="classic", title="classic", seed=seed)
    # Each demo trains anew, in a folder of its own: a run is never overwritten.
    runs = Path(tempfile.mkdtemp(prefix="runs-", dir=folder))
    results, parts = {}, {}
    for name, budget in BUDGET.items():
        console.print(f"training {name}", style="bold")
        train(name, data, runs / name, seed=seed, **budget)  # type: ignore[arg-type]
        found = evaluate(runs / name)
        results[name] = found.results
        parts[name] = (open_run(runs / name).models, found.results, runs / name)
    write_report(
        folder / "report.html",
        parts,
        data,
        [
            f"a generated world of {users:,} users, seed {seed}; "
            "every target ranked among all items of its domain"
        ],
    )
    return Demo(results, folder, time.monotonic() - started)
