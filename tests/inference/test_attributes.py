"""Attributes are a modality of HAF-VT like pictures and titles: explained, similar, added."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest

import hafvt
from hafvt.cli import main
from hafvt.inference.catalog_add import catalog
from hafvt.inference.recommender import Recommender

HISTORY = ["a1", "b2", "a4"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on two shops whose items have no pictures and no titles but a brand, tags and a price."""
    folder = tmp_path_factory.mktemp("shops")
    ids = [f"{shop}{n}" for shop in "ab" for n in range(15)]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "domain": [{"a": "attic", "b": "barn"}[one[0]] for one in ids],
            "brand": [f"b{n % 4}" for n in range(30)],
            "tags": [None if n % 7 == 0 else ["old", "new"][: 1 + n % 2] for n in range(30)],
            "price": [None if n % 5 == 0 else 1.5 * n for n in range(30)],
        }
    )
    random = np.random.default_rng(0)
    log = pl.DataFrame(
        [(f"u{user}", ids[random.integers(30)], time) for user in range(25) for time in range(12)],
        schema=["user_id", "item_id", "timestamp"],
        orient="row",
    )
    arguments = {"attributes": ["brand", "tags", "price"], "epochs": 1}
    hafvt.fit(log, items, folder / "shop", **arguments)
    hafvt.fit(log, items, folder / "shop", **arguments)  # repeats no step
    return folder / "shop" / "run"


def test_attributes_explain_a_score(run: Path) -> None:
    explanation = Recommender.open(run).explain(HISTORY, "b3")
    assert {modality for _, modality in explanation.shares} == {"id", "attributes"}
    assert sum(explanation.shares.values()) == pytest.approx(1, abs=1e-5)
    assert sum(share for (_, name), share in explanation.shares.items() if name == "attributes") > 0.05
    assert "attributes" in str(explanation)


def test_attributes_find_similar_items(run: Path) -> None:
    (similar,) = Recommender.open(run).similar_items(["a1"], 3, by="attributes")
    assert similar.items[0].item.item_id in ("a5", "a9", "a13", "b2", "b6", "b10", "b14")


def test_attributes_of_added_items_decide_their_scores(run: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(run, tmp_path / "run")
    new = pl.DataFrame(
        {
            "item_id": ["n1", "n2", "n3"],
            "domain": ["attic", "attic", "barn"],
            "brand": ["b1", "unknown", "b2"],
            "tags": ["old", None, None],
            "price": [1.5, None, None],
        }
    )
    new.write_csv(tmp_path / "new.csv")
    data = run.parent / "data"
    assert (
        main(["catalog", "add", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--data", str(data)]) == 0
    )
    output = capsys.readouterr().out
    assert "added 2 items (1 attic, 1 barn): 2 with attributes; 2 in total" in output
    assert "skipped 'n2': attributes: no value that training items share" in output
    recommender = Recommender.open(tmp_path / "run")
    (result,) = recommender.recommend([HISTORY], "attic", k=16, exclude_seen=False)
    assert "n1" in {one.item.item_id for one in result.items}
    explanation = recommender.explain(HISTORY, "n1")
    assert all(share == 0 for (_, modality), share in explanation.shares.items() if modality == "id")
    with pytest.raises(hafvt.HafvtError, match="the dataset of the run has Float64 here"):
        catalog("add", tmp_path / "run", new.with_columns(price=pl.lit("cheap")), overwrite=True)


def test_attributes_that_are_not_encoded_are_named_in_the_remedy(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run.parent / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "features")
    with pytest.raises(hafvt.HafvtError, match=r"encode .* --attributes COLUMN$"):
        hafvt.train("hafvt", tmp_path / "data", tmp_path / "run", params={"modalities": ("id", "attributes")})
