"""The commands and snippets of README and docs run as documented."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import polars as pl
import pytest

import hafvt
from hafvt.cli import COMMANDS, main, make_app, normalize_arguments
from hafvt.data.sources.demo import generate_world

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
TEXTS = [README, *(path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").rglob("*.md")))]
BLOCKS = [block for text in TEXTS for block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)]
SMALL = ["--epochs", "1", "--params.max_length", "6"]


def lines_of(block: str) -> list[list[str]]:
    """Returns the hafvt commands of a block as arguments."""
    typed = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in typed if line.startswith("hafvt ")]


def documented() -> list[list[str]]:
    """Returns all commands of the README and of the functions' examples."""
    results = [arguments for _, block in BLOCKS for arguments in lines_of(block)]
    for command in COMMANDS.values():
        results += lines_of(
            "\n".join(re.findall(r"Example: (.+)", resolve_name(command.target).__doc__ or ""))
        )
    return results


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_documented_command_parses(arguments):
    typed = [
        word for word in normalize_arguments(arguments) if not word.endswith(".yaml") and word != "--config"
    ]
    make_app(arguments[0]).parse_args(typed, exit_on_error=False, print_error=False)


@pytest.fixture
def project(tmp_path, shared_data):
    """A folder beside which lies what 120 users did in the real data, in place of all of it."""
    for source in (shared_data / name for name in ("movielens-posters", "amazon-food-kitchen")):
        folder = tmp_path / "shared" / "data" / source.name
        folder.mkdir(parents=True)
        log = pl.read_csv(source / "interactions.csv.gz", infer_schema=False)
        log = log.filter(pl.col("user_id").is_in(log["user_id"].unique(maintain_order=True)[:120].implode()))
        items = pl.read_csv(source / "items.csv", infer_schema=False)
        items = items.filter(pl.col("item_id").is_in(log["item_id"].unique().implode()))
        (folder / "interactions.csv.gz").write_bytes(gzip.compress(log.write_csv().encode()))
        items.write_csv(folder / "items.csv")
        for image in items["image"].drop_nulls() if "image" in items.columns else ():
            (folder / image).parent.mkdir(exist_ok=True)
            (folder / image).write_bytes((source / image).read_bytes())
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def quick(step: list[str]) -> list[str]:
    """Return a command with a training shortened to one epoch of short histories."""
    if step[0] != "train":
        return step
    if "--epochs" in step:
        position = step.index("--epochs")
        step = step[:position] + step[position + 2 :]
    return [*step, *SMALL]


def block_with(text: str) -> str:
    (block_text,) = [block for _, block in BLOCKS if text in block]
    return block_text


@pytest.mark.slow
def test_readme_own_data_steps_each_in_a_process_succeed(tmp_path):
    interactions, _ = generate_world(tmp_path, users=150, items_per_shop=40)
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(interactions.read_bytes()))
    output = ""
    for step in lines_of(block_with("--out data/shops")):
        call = [sys.executable, "-m", "hafvt", *quick(step)]
        ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{step}: {ended.stderr}"
        output += ended.stdout
    assert "garments" in output
    assert (tmp_path / "runs" / "hafvt" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["movies", "amazon"])
def test_documented_real_data_steps_succeed(project, name, monkeypatch, capsys):
    monkeypatch.chdir(project)
    for step in lines_of(block_with(f"--out data/{name}")):
        assert main(quick(step)) == 0, step
    assert "NDCG@10" in capsys.readouterr().out
    assert (project / "runs" / f"{name}-hafvt" / "report.html").exists()
    if name == "movies":
        recommending()
        output = capsys.readouterr().out
        assert "attention in %" in output
        top = pl.read_parquet(project / "top.parquet")
        assert top.group_by("user_id", "domain", maintain_order=True).len().rows() == [
            ("u1", "drama", 10),
            ("u2", "action", 5),
        ]


def recommending():
    """Does what the section about recommending says, with the run that is there."""
    Path("histories.jsonl").write_text(block_with('"260", "1270"]}'), encoding="utf-8")
    for step in lines_of(block_with("recommend runs/movies-hafvt")):
        assert main(step) == 0, step


def test_readme_python_example_runs_on_generated_shops(tmp_path, monkeypatch, capsys):
    interactions, _ = generate_world(tmp_path, users=150, items_per_shop=40)
    monkeypatch.chdir(tmp_path)
    Path("interactions.csv.gz").write_bytes(gzip.compress(interactions.read_bytes()))
    monkeypatch.setattr(hafvt, "fit", partial(hafvt.fit, epochs=1))
    first, second = pl.read_csv("items.csv")["item_id"][:2]
    block = block_with('similar_items(["a101"]').replace("a101", first).replace("b205", second)
    exec(compile(block, "README.md", "exec"), {})
    output = capsys.readouterr().out
    assert "garments" in output
    assert f"similar to {first}" in output


def test_documented_data_frames_are_fitted_and_returned(tmp_path, monkeypatch):
    interactions, items = generate_world(tmp_path, users=60, items_per_shop=30)
    monkeypatch.chdir(tmp_path)
    log = pl.read_csv(interactions).rename({"user_id": "customer"}).with_columns(qty=1)
    log.write_csv("orders.csv")
    pl.read_csv(items).write_csv("articles.csv")
    monkeypatch.setattr(hafvt, "fit", partial(hafvt.fit, model="popularity"))
    names = {}
    exec(compile(block_with("pd.read_csv"), "own_data.md", "exec"), names)
    assert set(names["top"]["user_id"]) == set(log["customer"])
    assert set(names["similar"]["item_id"]) <= set(pl.read_csv("articles.csv")["item_id"])


def test_readme_figures_equal_the_committed_results():
    measured = json.loads((ROOT / "benchmarks" / "results" / "tuned.json").read_text())["data"]
    labels = {
        "hafvt": "HAF-VT",
        "hafvt, unmixed": "HAF-VT, unmixed",
        "hafvt, merged history alone": "HAF-VT, merged sequence only",
        "hafvt, ids only": "HAF-VT, ids only",
        "c2dsr": "C2DSR",
        "sasrec": "SASRec",
        "gru4rec": "GRU4Rec",
        "psjnet": "PSJNet",
        "tricdr": "Tri-CDR",
        "pinet": "pi-Net",
        "srgnn": "SR-GNN",
        "mifn": "MIFN",
    }
    table = [line.replace("*", "") for line in README.splitlines() if line.startswith("| ")]
    for label, name in labels.items():
        row = [name]
        for data in ("amazon-food-kitchen", "movielens-posters"):
            results = measured[data].get(label)
            row += [f"{100 * results[p]['mrr']:.2f}" if results else "" for p in ("full", "sampled-unseen")]
        assert f"| {' | '.join(row)} |".replace("  |", " |") in table
    runs = json.loads((ROOT / "benchmarks" / "results" / "real_data.json").read_text())["runs"]
    overall = {(r["data"], r["run"]): f"{100 * r['results']['overall']['MRR']['value']:.2f} %" for r in runs}
    text = README.replace("\n", " ")
    goods, films = "amazon-food-kitchen", "movielens-posters"
    assert f"{overall[films, 'hafvt']} on films and {overall[goods, 'hafvt']} on goods" in text
    assert f"reach {overall[films, 'hafvt paper']} and {overall[goods, 'hafvt paper']}" in text


def test_main_is_the_entry_point_of_the_program(capsys):
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
