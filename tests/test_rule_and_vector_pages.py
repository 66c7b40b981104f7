"""The examples of the pages on rules, diversity and vectors give the lists of the recommender."""

from __future__ import annotations

import ast
import json
import re
import shlex
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from starlette.testclient import TestClient

import hafvt
from hafvt.cli import main
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "docs" / "how-to" / name for name in ("rules_and_diversity.md", "vectors.md")]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)


def examples(name: str) -> list[str]:
    """Returns the blocks of the pages that follow a mark."""
    return re.findall(rf"<!-- example: {re.escape(name)} -->\n```\w*\n(.*?)```", TEXT, flags=re.DOTALL)


def value_of(code: str) -> object:
    """Returns the value of the last expression of some code."""
    tree, names = ast.parse(code), dict[str, object]()
    last = tree.body.pop()
    assert isinstance(last, ast.Expr)
    exec(compile(tree, "page", "exec"), names)
    return eval(compile(ast.Expression(last.value), "page", "eval"), names)


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A folder with the run and the policies of the page."""
    folder, random = tmp_path_factory.mktemp("page"), np.random.default_rng(0)
    ids = [f"{letter}{n}" for letter in "AB" for n in range(40)]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "domain": ["tea" if one[0] == "A" else "cups" for one in ids],
            "title": [f"{['green', 'black', 'white'][n % 3]} number {n}" for n in range(80)],
            "brand": [["acme", "orb", "zeta"][n] for n in random.integers(3, size=80)],
            "price": [round(float(p), 2) for p in random.uniform(1, 40, 80)],
        }
    )
    rows = [(f"u{u}", ids[random.integers(80)], t) for u in range(40) for t in range(8)]
    log = pl.DataFrame(rows, schema=["user_id", "item_id", "timestamp"], orient="row")
    data = hafvt.prepare(log, items, folder / "data")
    hafvt.encode(data, title="classic")
    hafvt.train("hafvt", data, folder / "runs" / "shop", params={"id_width": 8}, epochs=1, test=False)
    (folder / "policies.yaml").write_text(examples("policies.yaml")[0])
    return folder


def command_rows(command: str, out: Path) -> list[dict[str, object]]:
    """Returns the rows that a command of the page writes."""
    assert main([*shlex.split(command)[1:], "--out", str(out)]) == 0
    return json.loads(out.read_text(encoding="utf-8"))["items"]


@pytest.mark.parametrize("name", ["rules", "diversity"])
def test_examples_of_the_page_give_equal_lists(shop, monkeypatch, tmp_path, name):
    monkeypatch.chdir(shop)
    python, command, request, *others = examples(name)
    (result,) = value_of(python)
    listed = [(one.item.item_id, one.score) for one in result.items]
    assert len(listed) == 5
    for line in (command, *others):
        rows = command_rows(line, tmp_path / "out.jsonl")
        assert [(row["item_id"], row["score"]) for row in rows] == listed
    with TestClient(create_app(ModelSource(shop / "runs" / "shop"))) as client:
        answer = client.post("/recommend", json=json.loads(request))
        assert [item["item_id"] for item in answer.json()["items"]] == [item_id for item_id, _ in listed]


def test_example_of_rules_follows_them(shop, monkeypatch):
    monkeypatch.chdir(shop)
    (result,) = value_of(examples("rules")[0])
    assert result.items[2].item.item_id == "A9"
    others = [one.item.attributes for n, one in enumerate(result.items) if n != 2]
    assert all(item["price"] < 20 and item["brand"] in ("acme", "orb") for item in others)


def test_example_of_vectors_gives_the_models_order(shop, monkeypatch):
    monkeypatch.chdir(shop)
    Path("histories.jsonl").write_text(json.dumps({"history": ["A1", "B7"]}))
    assert main(shlex.split(examples("vectors")[0])[1:]) == 0
    recommender = hafvt.Recommender.open("runs/shop")
    (result,) = recommender.recommend([["A1", "B7"]], "tea", 10, exclude_seen=True)
    listed = value_of(examples("mixture")[0])
    items = map(recommender.catalog.item, recommender.catalog.indices(listed).indices.tolist())
    trained = [one.item_id for one in items if one.train_count and one.item_id != "A1"]
    expected = [one.item.item_id for one in result.items if one.item.train_count]
    assert trained[: len(expected)] == expected


def test_example_of_the_curve_writes_it(shop, monkeypatch, capsys):
    monkeypatch.chdir(shop)
    assert main(shlex.split(examples("curve")[0])[1:]) == 0
    assert "calibration brand" in capsys.readouterr().out
    assert Path("runs/shop/rerank_curve.json").exists()
