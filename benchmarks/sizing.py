"""The sizing table of docs/how-to/sizing.md, from the committed results of the other benchmarks.

    python benchmarks/sizing.py --events 20e6 --users 1e6 --items 200e3 --pictures 200e3 --requests 50

prints the hours of each stage on one machine of 2 cores, and the replicas, for your own numbers.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, NamedTuple

from hafvt.files import read_json
from hafvt.tables import markdown_table

RESULTS = Path(__file__).resolve().parent / "results"
CORES = 2  # of the machine of all results
EPOCHS = 10
WINDOW = 50  # interactions of a history in training
SMALL_CATALOG = 10_000  # items up to which the load test's rate holds


class Shop(NamedTuple):
    """What decides the size: events, users, items and pictures in all, and requests a second at the peak."""

    events: float
    users: float
    items: float
    pictures: float
    requests: float


EXAMPLES = (
    Shop(1e6, 50e3, 5e3, 5e3, 50),
    Shop(20e6, 1e6, 200e3, 200e3, 50),
    Shop(100e6, 5e6, 1e6, 1e6, 200),
)


def load(name: str) -> dict[str, Any]:
    """Return the results of a benchmark."""
    results: dict[str, Any] = read_json(RESULTS / f"{name}.json")
    return results


def rates() -> dict[str, float]:
    """Return what one machine of 2 cores was measured to do in a second, by stage."""
    prepare, steps = load("prepare"), load("catalog_growth")["results"]
    training = [row for row in steps if row["model"] == "hafvt, ids and titles" and row["items"] == 1_000_000]
    return {
        "events prepared": prepare["interactions"] / prepare["steps"]["prepare"]["wall_s"],
        "pictures encoded": CORES / load("encoding")["cpu_seconds_per_picture"],
        "histories trained": CORES * training[0]["per_second"],
        "users evaluated": CORES
        * prepare["steps"]["sasrec"]["histories"]
        / prepare["steps"]["sasrec"]["wall_s"],
        "requests, small catalog": load("load")["per_second"],
        "requests, 1,000,000 items": load("million")["served"]["per_second"],
    }


def stages(shop: Shop) -> dict[str, float]:
    """Return the hours of each stage on one machine of 2 cores, and the number of replicas that serve."""
    rate = rates()
    histories = max(shop.users, shop.events / WINDOW)
    catalog = "small catalog" if shop.items <= SMALL_CATALOG else "1,000,000 items"
    ranked = shop.users * shop.items / load("prepare")["steps"]["prepare"]["items"]
    return {
        "prepare": shop.events / rate["events prepared"] / 3600,
        "encode": shop.pictures / rate["pictures encoded"] / 3600,
        "train": EPOCHS * histories / rate["histories trained"] / 3600,
        "evaluate": ranked / rate["users evaluated"] / 3600,
        "replicas": math.ceil(shop.requests / rate[f"requests, {catalog}"]) + 1,
    }


def hours(value: float) -> str:
    """Return a number of hours in words."""
    if value < 1 / 60:
        return "under 1 min"
    return f"{value:,.0f} h" if value >= 10 else f"{value:.1f} h" if value >= 1 else f"{60 * value:.0f} min"


def sizing() -> str:
    """Return both tables: measured rates, and the sizes of three shops."""
    measured = [[name, f"{value:,.0f}"] for name, value in rates().items()]
    rows = []
    for shop in EXAMPLES:
        size = [f"{value:,.0f}" for value in shop]
        needs = stages(shop)
        times = [hours(needs[name]) for name in ("prepare", "encode", "train", "evaluate")]
        rows.append([*size, *times, f"{needs['replicas']:.0f}"])
    header = ["events", "users", "items", "pictures", "requests a second"]
    header += ["`prepare`", "`encode`", f"`train`, {EPOCHS} epochs", "`evaluate`", "replicas"]
    return "\n".join(
        [
            markdown_table(["in a second, on 2 cores", "measured"], measured).rstrip(),
            "",
            markdown_table(header, rows).rstrip(),
        ]
    )


def main() -> None:
    """Print the sizes of one shop."""
    parser = argparse.ArgumentParser(description="Hours of each stage on 2 cores, and replicas to serve.")
    for name, value in EXAMPLES[1]._asdict().items():
        parser.add_argument(f"--{name}", type=float, default=value)
    needs = stages(Shop(**vars(parser.parse_args())))
    print("\n".join(f"{n}: {hours(v) if n != 'replicas' else f'{v:.0f}'}" for n, v in needs.items()))


if __name__ == "__main__":
    main()
