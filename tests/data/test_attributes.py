"""The further columns of an items table are kept, in the same types for every kind of input."""

from __future__ import annotations

import polars as pl
import pytest

from hafvt import info, prepare
from tests.data.helpers import log_of

LOG = log_of(*((f"u{user}", item, time) for user in range(3) for time, item in enumerate("abcd")))
ITEMS = pl.DataFrame(
    {
        "item_id": list("abcd"),
        "title": ["one", "two", None, "four"],
        "brand": ["acme", None, "zeta", "acme"],
        "code": ["007", "8", "9", "10"],
        "price": [1.5, None, 3.0, 20.25],
        "year": [1999, 2000, None, 2024],
        "in_stock": [True, False, True, None],
    }
)


def attributes_of(items, folder) -> pl.DataFrame:
    return prepare(LOG, items, folder).item_table.sort("item_id").drop("domain", "image")


@pytest.mark.parametrize("kind", ["frame", "pandas", "csv", "jsonl", "parquet"])
def test_prepare_keeps_attributes_of_each_kind_of_table(tmp_path, kind):
    items = ITEMS.drop("in_stock")
    source = tmp_path / f"items.{kind}"
    if kind == "csv":
        items.write_csv(source)
    elif kind == "jsonl":
        items.write_ndjson(source)
    elif kind == "parquet":
        items.write_parquet(source)
    table = attributes_of({"frame": items, "pandas": items.to_pandas()}.get(kind, source), tmp_path / "data")
    assert table.equals(items)
    assert table.schema == items.schema


def test_prepare_keeps_booleans_dates_and_lists(tmp_path):
    days = pl.Series("day", ["2024-01-01"] * 4).str.to_date()
    items = ITEMS.select("item_id", "title", "in_stock").with_columns(
        days, tags=pl.Series([["x", "y"], [], None, ["y"]])
    )
    assert attributes_of(items, tmp_path / "data").equals(items)


def test_prepare_json_lists_in_text_become_lists(tmp_path):
    items = pl.DataFrame({"item_id": list("abcd"), "tags": ['["x","y"]', "[]", "", '["y"]']})
    items.write_csv(tmp_path / "items.csv")
    table = attributes_of(tmp_path / "items.csv", tmp_path / "data")
    assert table["tags"].to_list() == [["x", "y"], [], None, ["y"]]


def test_prepare_other_columns_that_cannot_be_kept_are_left_out(tmp_path, capsys):
    items = ITEMS.select("item_id", "brand").to_pandas()
    items["picture"], items["mixed"] = [b"x"] * 4, [1, "a", [], None]
    table = attributes_of(items, tmp_path / "data")
    assert table.columns == ["item_id", "title"]
    assert "columns besides item_id are left out" in capsys.readouterr().err
    (tmp_path / "items.csv").write_text("item_id,brand,brand,size\na,x,y,1\nb,x,y,2\nc,x,y,3\nd,x,y,4\n")
    assert attributes_of(tmp_path / "items.csv", tmp_path / "other").columns == ["item_id", "title", "size"]


def test_prepare_column_that_is_mapped_to_another_is_no_attribute(tmp_path):
    items = ITEMS.rename({"title": "name"}).with_columns(title=pl.lit("no"), image_root=pl.lit("/tmp"))
    table = prepare(LOG, items, tmp_path / "data", columns={"title": "name"}).item_table
    assert table.columns == ["item_id", "domain", "title", "image", *ITEMS.columns[2:]]
    assert table.sort("item_id")["title"].to_list() == ITEMS["title"].to_list()


def test_info_lists_attributes(tmp_path):
    data = prepare(LOG, ITEMS, tmp_path / "data")
    assert info(data).attributes == ("brand", "code", "price", "year", "in_stock")
    assert "attributes of items: brand, code, price, year, in_stock" in str(info(data)).splitlines()
