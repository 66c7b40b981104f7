"""What the README tells people to type does what it says."""

from __future__ import annotations

import gzip
import json
import re
import shlex
import subprocess
import sys
from functools import partial
from pathlib import Path

import polars as pl
import pytest

import hafvt
from hafvt.cli import commands, main, parser, spell_out
from hafvt.data.sources import demo
from hafvt.data.sources.demo import generate_world

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
SMALL = ["--epochs", "1", "--params.max_length", "6"]


def lines_of(block: str) -> list[list[str]]:
    """Returns the hafvt commands of a block as arguments."""
    typed = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in typed if line.startswith("hafvt ")]


def documented() -> list[list[str]]:
    """Returns all commands of the README and of the functions' examples."""
    found = [arguments for _, block in BLOCKS for arguments in lines_of(block)]
    for command in commands().values():
        found += lines_of("\n".join(re.findall(r"Example: (.+)", command.function.__doc__ or "")))
    return found


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_a_documented_command_is_understood(arguments):
    known = commands()
    assert parser(known, arguments[0]).parse_args(spell_out(arguments, known)).command == arguments[0]


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
    """Returns a command with a training shortened to one epoch of short histories."""
    return [*step, *SMALL] if step[0] == "train" else step


def block_with(text: str) -> str:
    (found,) = [block for _, block in BLOCKS if text in block]
    return found


def test_the_steps_for_ones_own_data_each_in_a_process(tmp_path):
    interactions, _ = generate_world(tmp_path, users=150, items_per_shop=40)
    (tmp_path / "interactions.csv.gz").write_bytes(gzip.compress(interactions.read_bytes()))
    said = ""
    for step in lines_of(block_with("--out data/shops")):
        call = [sys.executable, "-m", "hafvt", *quick(step)]
        ended = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, f"{step}: {ended.stderr}"
        said += ended.stdout
    assert "garments" in said
    assert (tmp_path / "runs" / "hafvt" / "report.html").exists()


@pytest.mark.parametrize("name", ["movies", "amazon"])
def test_the_steps_on_real_data(project, name, monkeypatch, capsys):
    monkeypatch.chdir(project)
    for step in lines_of(block_with(f"--out data/{name}")):
        assert main(quick(step)) == 0, step
    assert "NDCG@10" in capsys.readouterr().out
    assert (project / "runs" / f"{name}-hafvt" / "report.html").exists()
    if name == "movies":
        recommending()
        said = capsys.readouterr().out
        assert "attention in %" in said
        top = pl.read_parquet(project / "top.parquet")
        assert top.group_by("user_id", "domain", maintain_order=True).len().rows() == [
            ("u1", "drama", 10),
            ("u2", "action", 5),
        ]


def recommending():
    """Does what the section about recommending says, with the run that is there."""
    Path("histories.jsonl").write_text(block_with('"history"'), encoding="utf-8")
    for step in lines_of(block_with("hafvt recommend")):
        assert main(step) == 0, step
    exec(compile(block_with("import Recommender"), "README.md", "exec"), {})


def test_the_python_snippet(project, monkeypatch, capsys):
    snippet = block_with("import generate_world")
    assert len([line for line in snippet.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(project)
    train = hafvt.train

    def one_epoch(*given, **named):
        return train(*given, **{**named, "epochs": 1, "params": {"max_length": 6}})

    monkeypatch.setattr(hafvt, "train", one_epoch)
    monkeypatch.setattr(demo, "generate_world", partial(generate_world, users=150, items_per_shop=40))
    exec(compile(snippet, "README.md", "exec"), {})
    said = capsys.readouterr().out
    assert all(domain in said for domain in ("garments", "action", "kitchen"))


def test_the_figures_of_real_data_are_what_was_measured():
    measured = json.loads((ROOT / "benchmarks" / "results" / "tuned.json").read_text())["data"]
    labels = {
        "hafvt": "HAF-VT",
        "hafvt, unmixed": "HAF-VT, unmixed",
        "hafvt, merged history alone": "HAF-VT, merged history alone",
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
            found = measured[data].get(label)
            row += [f"{100 * found[p]['mrr']:.2f}" if found else "" for p in ("full", "strict")]
        assert f"| {' | '.join(row)} |".replace("  |", " |") in table
    runs = json.loads((ROOT / "benchmarks" / "results" / "real_data.json").read_text())["runs"]
    overall = {(r["data"], r["run"]): f"{100 * r['results']['overall']['MRR']['value']:.2f} %" for r in runs}
    assert f"{overall['amazon-food-kitchen', 'hafvt']} among all" in README.replace("\n", " ")
    assert f"{overall['movielens-posters', 'hafvt']} on films" in README.replace("\n", " ")
    literal = [overall[data, "hafvt paper"] for data in ("amazon-food-kitchen", "movielens-posters")]
    assert f"{literal[0]} on food and kitchen, {literal[1]} on films" in README.replace("\n", " ")


def test_main_is_what_the_program_calls(capsys):
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
