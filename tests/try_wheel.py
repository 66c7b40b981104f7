"""Tries an installed wheel with no extra or with one: `python tests/try_wheel.py [EXTRA] [FOLDER]`.

`make dist` runs it without extras, `make dist-extras` once for each, in an environment that has no other.
`onnx` reads the export that `export` left in FOLDER.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import requires, version
from pathlib import Path
from urllib.request import urlopen

import hafvt

PACKAGE = Path(hafvt.__file__).parent
HAFVT = [sys.executable, "-I", "-m", "hafvt"]


def write_tables(items_per_domain: int = 20) -> None:
    """Write a log of two domains, with three users for each item of a domain."""
    draw = random.Random(0)
    items = [f"{domain}{number}" for domain in ("book", "game") for number in range(items_per_domain)]
    rows = (f"{item},{item[:4]}s,red {item},{item}.png\n" for item in items)
    Path("items.csv").write_text("item_id,domain,title,image\n" + "".join(rows))
    interactions = [
        f"u{user},{draw.choice(items)},{time}\n" for user in range(3 * items_per_domain) for time in range(12)
    ]
    Path("log.csv").write_text("user_id,item_id,timestamp\n" + "".join(interactions))


def run(*arguments: str) -> str:
    """Return what a command prints."""
    ended = subprocess.run([*HAFVT, *arguments], capture_output=True, text=True, check=False)
    if ended.returncode:
        raise SystemExit(f"hafvt {' '.join(arguments)}: {ended.stdout[-2000:]}{ended.stderr[-2000:]}")
    return ended.stdout


def recommend(run_or_export: str) -> None:
    """Check that three items are recommended."""
    options = ("--history", "book1", "game2", "--domain", "games", "--k", "3", "--out", "list.csv")
    run("recommend", run_or_export, *options)
    if len(Path("list.csv").read_text().splitlines()) != 4:
        raise SystemExit(f"recommend {run_or_export}: {Path('list.csv').read_text()}")


def try_encoders() -> None:
    """Encode pictures and titles by the encoders that need no checkpoint, and train on them."""
    from PIL import Image

    for number, line in enumerate(Path("items.csv").read_text().splitlines()[1:]):
        Image.new("RGB", (32, 32), (6 * number, 200, 0)).save(line.split(",")[-1])
    run("encode", "data", "--image", "classic", "--title", "classic")
    run("train", "hafvt", "data", "--out", "runs/encoded", "--epochs", "1")
    recommend("runs/encoded")


def try_compare() -> None:
    """Compare two models, with paired tests."""
    run("compare", "data", "--out", "compare", "--models", "sasrec", "popularity", "--budget", "small")


def try_serve() -> None:
    """Serve a model and read the page."""
    command = [*HAFVT, "serve", "runs/hafvt", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        address = next(word for line in server.stdout for word in line.split() if word.startswith("http"))
        with urlopen(address) as page:
            assert b"<html" in page.read()
        server.terminate()


def try_export() -> None:
    """Export a model and recommend from the export."""
    run("export", "runs/hafvt", "--out", "export")
    recommend("export")


def try_onnx() -> None:
    """Recommend from an export that was made elsewhere."""
    recommend("export")


def try_index() -> None:
    """Build an index; smaller catalogs need none."""
    write_tables(5000)
    run("prepare", "--interactions", "log.csv", "--items", "items.csv", "--out", "large")
    run("train", "sasrec", "large", "--out", "runs/large", "--epochs", "1", "--test", "false")
    run("index", "runs/large")
    recommend("runs/large")


def try_track() -> None:
    """Write events for TensorBoard."""
    run("train", "sasrec", "data", "--out", "runs/tracked", "--epochs", "1", "--logger", "tensorboard")
    if not list(Path("runs/tracked").rglob("events*")):
        raise SystemExit("no events for TensorBoard")


def try_tune() -> None:
    """Search for hyperparameters."""
    run("tune", "sasrec", "data", "--out", "tune", "--trials", "2", "--epochs", "1")


TRIALS: dict[str, Callable[[], None]] = {
    "classic": try_encoders,
    "encode": try_encoders,
    "compare": try_compare,
    "serve": try_serve,
    "export": try_export,
    "onnx": try_onnx,
    "index": try_index,
    "track": try_track,
    "tune": try_tune,
}


def main(extra: str = "", folder: str = "") -> None:
    """Run the main commands, then what the extra is for."""
    if not PACKAGE.is_relative_to(sys.prefix) or not (PACKAGE / "py.typed").exists():
        raise SystemExit(f"{PACKAGE}: not an installed package with py.typed")
    if not any("extra ==" in requirement for requirement in requires("hafvt") or []):
        raise SystemExit("the wheel names no extras")
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        if extra == "onnx":
            shutil.copytree(Path(folder) / "export", "export")
        write_tables()
        run("prepare", "--interactions", "log.csv", "--items", "items.csv", "--out", "data")
        for model in ("hafvt", "popularity"):
            run("train", model, "data", "--out", f"runs/{model}", "--epochs", "1")
            run("evaluate", f"runs/{model}")
        recommend("runs/hafvt")
        if extra in TRIALS:
            TRIALS[extra]()
        if extra == "export" and folder:
            shutil.copytree("export", Path(folder) / "export", dirs_exist_ok=True)
        os.chdir(PACKAGE)
    print(f"hafvt {version('hafvt')}: the wheel works with {f'the extra {extra}' if extra else 'no extra'}")


if __name__ == "__main__":
    main(*sys.argv[1:])
