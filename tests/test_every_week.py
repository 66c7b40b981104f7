"""The commands of docs/how-to/every_week.md work in their order."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl

from hafvt.data.sources.demo import generate_world
from hafvt.inference.recommender import Recommender

TEXT = (Path(__file__).parents[1] / "docs" / "how-to" / "every_week.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.MULTILINE | re.DOTALL)


def test_every_week_commands_of_the_page_work(tmp_path, monkeypatch):
    interactions, items = generate_world(tmp_path / "world", users=60, items_per_shop=30, seed=0)
    log = pl.read_csv(interactions).sort("timestamp")
    table = pl.read_csv(items)
    monkeypatch.chdir(tmp_path)

    def run(block):
        program = f'hafvt() {{ {sys.executable} -m hafvt "$@"; }}\nset -e\n'
        quick = block.replace("hafvt train hafvt", "hafvt train hafvt --epochs 1 --params.id_width 8")
        quick = quick.replace(" --epochs 10\n", "\n")
        subprocess.run(["bash", "-c", program + quick], check=True, capture_output=True, text=True)

    def write(share):
        log.head(int(share * len(log))).write_csv("log.csv")
        known = table.filter(pl.col("item_id").is_in(pl.read_csv("log.csv")["item_id"].unique()))
        known.write_csv("items.csv")

    first, week, compare, swap, back, one_folder = BLOCKS
    write(0.8)
    run(first)
    write(1.0)
    for block in (week, compare, swap):
        run(block)
    assert Path("runs/current").resolve().name == "2026-12-07"
    assert Path("runs/2026-11-30/test-2026-12-07/results.json").exists()
    run(back)
    assert Path("runs/current").resolve().name == "2026-11-30"
    shutil.rmtree("data")
    recommender = Recommender.open("runs/current")
    assert recommender.recommend([[]], recommender.domains[0], k=3)[0].items
    run(first.replace("2026-11-30", "shop").replace("ln -s shop runs/current\n", ""))
    run(one_folder)
    assert Recommender.open("runs/shop").recommend([[]], recommender.domains[0], k=3)[0].items
