"""Search of items by words of titles and ids."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from hafvt.data.dataset import Domain
from hafvt.errors import HafvtError
from hafvt.inference.catalog import ItemCatalog
from hafvt.server.search import ItemSearch, normalized_words

TITLES = ["Amélie (2001)", "STAR WARS", "Star Trek", None, "Wars of the stars", "Łódź, Straße 5"]


@pytest.fixture
def item_search():
    table = pl.DataFrame(
        {"item_id": ["B-1x", "b2", "b3", "b4", "b5", "b6"], "domain": list("aaabbb"), "title": TITLES},
    ).with_columns(image=pl.lit(None, pl.String))
    domains = (Domain("a", 0, 3), Domain("b", 3, 6))
    return ItemSearch(ItemCatalog(table, domains, np.array([1, 5, 9, 0, 7, 2]), None))


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("", [2, 4, 1, 5, 0, 3]),
        ("  ", [2, 4, 1, 5, 0, 3]),
        ("star", [2, 4, 1]),
        ("war st", [4, 1]),
        ("AMELIE", [0]),
        ("amélie 2001", [0]),
        ("strasse", [5]),
        ("b-1", [0]),
        ("b", [2, 4, 1, 5, 0, 3]),
        ("tar", []),
        ("star nothing", []),
        ("!?", []),
        ("\U0010ffff", []),
        ("%_*\\", []),
    ],
)
def test_search_query_matches_word_prefixes_of_title_and_id(item_search, query, matches):
    assert item_search.search(query).tolist() == matches


@pytest.mark.parametrize(
    ("query", "matches"),
    [
        ("stars", [2, 4, 1]),  # the stem
        ("treks", [2]),
        ("amelei", [0]),  # two letters swapped
        ("amlie", [0]),  # a letter is missing
        ("strazse", [5]),
        ("warrs", [4, 1]),
        ("wrs", []),  # too short
        ("ammmelie", [0]),
        ("ammmmmelie", []),  # too different
    ],
)
def test_search_query_matches_stems_and_similar_spellings(item_search, query, matches):
    assert item_search.search(query).tolist() == matches


def test_search_domain_limits_matches(item_search):
    assert item_search.search("star", "b").tolist() == [4]
    assert item_search.search("", "a").tolist() == [2, 1, 0]
    with pytest.raises(HafvtError, match="no domain 'c'"):
        item_search.search("star", "c")


def test_normalized_words_drop_case_and_accents():
    assert normalized_words("ÀÉ_İstanbul ﬁn. 東京 x-2") == ["ae", "istanbul", "fin", "東京", "x", "2"]
