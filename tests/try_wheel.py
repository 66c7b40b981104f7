"""Tries an installed wheel without extras: prepare, train, evaluate, recommend. Run by `make dist`."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from importlib.metadata import requires, version
from pathlib import Path

import hafvt

PACKAGE = Path(hafvt.__file__).parent
HAFVT = [sys.executable, "-I", "-m", "hafvt"]


def write_tables() -> None:
    """Write a log of 60 users of two domains with 20 items each."""
    draw = random.Random(0)
    items = [f"{domain}{number}" for domain in ("book", "game") for number in range(20)]
    Path("items.csv").write_text("item_id,domain\n" + "".join(f"{item},{item[:4]}s\n" for item in items))
    rows = [f"u{user},{draw.choice(items)},{time}\n" for user in range(60) for time in range(12)]
    Path("log.csv").write_text("user_id,item_id,timestamp\n" + "".join(rows))


def run(*arguments: str) -> str:
    """Return what a command prints."""
    return subprocess.run([*HAFVT, *arguments], check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Run the main commands in a temporary folder."""
    if not PACKAGE.is_relative_to(sys.prefix) or not (PACKAGE / "py.typed").exists():
        raise SystemExit(f"{PACKAGE}: not an installed package with py.typed")
    if not any("extra ==" in requirement for requirement in requires("hafvt") or []):
        raise SystemExit("the wheel names no extras")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        write_tables()
        run("prepare", "--interactions", "log.csv", "--items", "items.csv", "--out", "data")
        for model in ("hafvt", "popularity"):
            run("train", model, "data", "--out", f"runs/{model}", "--epochs", "1")
            run("evaluate", f"runs/{model}")
        run("recommend", "runs/hafvt", "--history", "book1", "game2", "--domain", "games", "--k", "3")
        os.chdir(PACKAGE)
    print(f"hafvt {version('hafvt')}: the wheel works without extras")


if __name__ == "__main__":
    main()
