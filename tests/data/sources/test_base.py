"""A data source of one's own, in the fewest lines."""

from __future__ import annotations

from pathlib import Path
from pkgutil import resolve_name

import polars as pl
import pytest

from hafvt.data.prepare import prepare
from hafvt.data.sources import SOURCES
from hafvt.data.sources.base import SourceTables, prepare_source
from hafvt.errors import HafvtError, InputError
from hafvt.folders import folder_lock

ITEMS = pl.DataFrame(
    {
        "item_id": ["b", "a", "y", "x"],
        "domain": ["tea", "tea", "cups", "cups"],
        "title": ["B", None, "Y", None],
    }
).with_columns(image=pl.lit(None, pl.String))
ROWS = [
    ("v", "a", 1, "train"),
    ("v", "x", 2, "train"),
    ("v", "b", 3, "valid"),
    ("u", "y", 5, None),
    ("u", "a", 5, "test"),
]
INTERACTIONS = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp", "part"], orient="row")


def test_prepare_source_keeps_order_and_split_of_the_tables(tmp_path: Path) -> None:
    data = prepare_source(
        SourceTables(INTERACTIONS, ITEMS, {"settings": {"source": "test"}}), tmp_path / "out"
    )
    assert data.user_ids.to_list() == ["v", "u"]
    assert data.item_table["item_id"].to_list() == ["b", "a", "y", "x"]
    assert [(domain.name, domain.start, domain.stop) for domain in data.domains] == [
        ("tea", 0, 2),
        ("cups", 2, 4),
    ]
    assert data.items.tolist() == [1, 3, 0, 2, 1]
    assert (data.train_lengths.tolist(), data.valid.tolist(), data.test.tolist()) == ([2, 0], [2], [4])
    assert data.manifest["settings"] == {"source": "test"}
    assert data.manifest["ties"] == {"order": "input", "adjacent_pairs": 3, "tied_pairs": 1}


def test_prepare_source_titles_have_the_form_that_prepare_gives_them(tmp_path: Path) -> None:
    titles = ["Salt &amp; pepper", "Salt & pepper", "Salt &amp;amp; pepper", "\uff33alt \uff06 pepper "]
    items = ITEMS.with_columns(title=pl.Series(titles))
    data = prepare_source(SourceTables(INTERACTIONS, items, {}), tmp_path / "source")
    assert data.item_table["title"].to_list() == ["Salt & pepper"] * 4
    log = INTERACTIONS.select("user_id", "item_id", "timestamp")
    prepared = prepare(log, items.drop("image"), tmp_path / "table", min_per_domain=0)
    assert prepared.item_table["title"].to_list() == ["Salt & pepper"] * 4


def test_prepare_source_unknown_item_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="value 'x': unknown item"):
        prepare_source(SourceTables(INTERACTIONS, ITEMS.head(3), {}), tmp_path / "out")


@pytest.mark.parametrize("name", SOURCES)
def test_sources_into_a_folder_in_use_are_refused(name: str, tmp_path: Path) -> None:
    prepare = resolve_name(SOURCES[name])
    options = {"domains": {"a": "Books"}} if name == "amazon" else {}
    with folder_lock(tmp_path / "out"), pytest.raises(HafvtError, match="out is in use by another process"):
        prepare(tmp_path, tmp_path / "out", **options)
    with pytest.raises(HafvtError, match="nowhere is not a folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out", **options)


@pytest.mark.parametrize("name", SOURCES)
def test_sources_entry_names_a_function(name: str) -> None:
    assert resolve_name(SOURCES[name]).__name__ == f"prepare_{name}"
