from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from hafvt.data.prepare import prepare
from hafvt.data.schema import read_items
from hafvt.data.sources.base import SourceTables, prepare_source
from hafvt.data.titles import normalize_title, normalize_titles
from tests.data.helpers import log_of

TITLES = {
    "Salt &amp; pepper": "Salt & pepper",
    "Salt & pepper": "Salt & pepper",
    "AT&T": "AT&T",
    "Cafe\u0301": "Caf\u00e9",
    "\uff21\uff22\uff23\u3000\uff11\uff12": "ABC 12",
    "\uff76\uff9e": "\u30ac",
    "5 \u00bd\u00b2": "5 \u00bd\u00b2",
    " two  blanks\t": "two blanks",
    "5&quot; &#39;x&#39; &lt;b&gt;": "5\" 'x' <b>",
    "plain": "plain",
}


@pytest.mark.parametrize("title", TITLES)
def test_normalize_title_gives_one_form(title: str) -> None:
    assert normalize_title(title) == TITLES[title]


def test_normalize_title_blank_is_none() -> None:
    assert normalize_title(" &nbsp;\u3000") is None
    assert normalize_title("a\ud800") == "a?"


def test_normalize_titles_equals_normalize_title() -> None:
    column = pl.Series("title", [*TITLES, " ", None, "plain"])
    assert normalize_titles(column).to_list() == [*TITLES.values(), None, None, "plain"]
    nulls = pl.Series("title", [None, None], dtype=pl.String)
    assert normalize_titles(nulls).equals(nulls)


def test_titles_of_every_source_have_one_form(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "domain": "all", "title": ["Salt &amp; pepper", " "]})
    log = log_of(("u", "a", 1), ("u", "b", 2))
    source = SourceTables(
        log.with_columns(part=pl.lit("train")), items.with_columns(image=pl.lit(None, pl.String)), {}
    )
    for data in (prepare(log, items, tmp_path / "a"), prepare_source(source, tmp_path / "b")):
        assert set(data.item_table["title"]) == {"Salt & pepper", None}
    assert read_items(items, {}).frame["title"].to_list() == ["Salt & pepper", None]
