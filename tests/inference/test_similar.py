"""Similar items are those with the highest cosines, by id, picture, title or all of these."""

from __future__ import annotations

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import hafvt
from hafvt.cli import main
from hafvt.errors import HafvtError
from hafvt.features.table import FeatureTable
from hafvt.inference.recommender import Recommender
from hafvt.training.run import open_run


@pytest.fixture(scope="module")
def recommender(served_run):
    return Recommender.open(served_run)


def cosines(data, name, item):
    rows = FeatureTable.open(data.folder / "features" / name).rows.astype(np.float32)
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return rows @ rows[item]


def test_similar_items_by_each_modality_are_those_of_highest_cosine(recommender, served_data, served_run):
    ids = open_run(served_run).model.items.ids.weight.detach().numpy()
    ids = ids / np.linalg.norm(ids, axis=1, keepdims=True)
    ids[served_data.train_counts() == 0] = 0
    by_name = {name: cosines(served_data, name, 12) for name in ("image", "title")} | {"id": ids @ ids[12]}
    for by, expected in (by_name | {"all": sum(by_name.values()) / 3}).items():
        expected[12] = -1
        (result,) = recommender.similar_items(["i12"], k=4, by=by)
        order = np.argsort(-expected)[:4]
        assert [one.item.item_id for one in result.items] == [
            served_data.item_table["item_id"][int(n)] for n in order
        ]
        assert [one.score for one in result.items] == pytest.approx(expected[order].tolist(), abs=1e-4)
        assert (result.item.item_id, result.by) == ("i12", by)


def test_similar_items_of_a_domain_are_of_that_domain_only(recommender):
    for result in recommender.similar_items(["i12", "i41"], k=50, domain="d1"):
        assert {one.item.domain for one in result.items} == {"d1"}
        assert result.item.item_id not in {one.item.item_id for one in result.items}


def test_similar_items_without_a_vector_has_no_items(recommender, served_data):
    present = FeatureTable.open(served_data.folder / "features" / "image").present
    item_id = served_data.item_table["item_id"][int(np.flatnonzero(~present)[0])]
    (result,) = recommender.similar_items([item_id], by="image")
    assert result.items == ()


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table, lambda c: pl.LazyFrame(c)])
def test_similar_items_of_a_data_frame_is_a_data_frame_of_its_kind(recommender, kind):
    frame = kind({"item_id": ["i12", "i41"]})
    result = recommender.similar_items(frame, k=2)
    assert type(result) is (pl.DataFrame if isinstance(frame, pl.LazyFrame) else type(frame))
    table = pl.DataFrame(result) if isinstance(result, pl.DataFrame) else pl.from_dataframe(result)
    assert table["item_id"].to_list() == ["i12", "i12", "i41", "i41"]
    expected = [one.item.item_id for r in recommender.similar_items(["i12", "i41"], k=2) for one in r.items]
    assert table["similar_item_id"].to_list() == expected


@pytest.mark.parametrize("kind", [pd.DataFrame, pl.DataFrame, pa.table])
def test_recommend_data_frame_returns_a_data_frame_of_its_kind(recommender, served_run, kind):
    frame = kind({"customer": [2, 2, 1], "item_id": ["i3", "i41", "i8"], "timestamp": [2, 1, 3]})
    result = recommender.recommend(frame, "d1", k=2, columns={"user_id": "customer"})
    by_function = hafvt.recommend(
        served_run, histories=frame, domain="d1", k=2, columns={"user_id": "customer"}
    )
    assert type(result) is type(by_function) is type(frame)
    table = result if isinstance(result, pl.DataFrame) else pl.from_dataframe(result)
    assert table["user_id"].to_list() == ["2", "2", "1", "1"]
    expected = recommender.recommend([["i41", "i3"], ["i8"]], "d1", k=2)
    assert table["item_id"].to_list() == [one.item.item_id for r in expected for one in r.items]
    if kind is pd.DataFrame:
        assert result.index.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.table])
def test_recommend_data_frame_with_unused_repeated_columns_ignores_them(recommender, kind):
    names = ["user_id", "item_id", "timestamp", "note", "note"]
    if kind is pd.DataFrame:
        frame = pd.DataFrame([["u", "i3", 1, 2, 3]], columns=names)
    else:
        frame = pa.Table.from_arrays([pa.array([value]) for value in ("u", "i3", 1, 2, 3)], names=names)
    assert len(recommender.recommend(frame, "d0", 2)) == 2


@pytest.mark.parametrize("histories", [None, 5])
def test_recommend_histories_that_are_no_list_are_refused(recommender, histories):
    with pytest.raises(HafvtError, match=f"^histories is {histories}: give a list of lists of ids"):
        recommender.recommend(histories, "d0")


def test_recommend_data_frame_with_exclude_or_without_domain_raises(recommender):
    frame = pl.DataFrame({"user_id": [1], "item_id": ["i3"], "timestamp": [1]})
    with pytest.raises(HafvtError, match="exclude is for lists of histories"):
        recommender.recommend(frame, "d0", exclude=[[]])
    with pytest.raises(HafvtError, match="no domain: choose one of d0, d1"):
        recommender.recommend(frame)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"items": ["i3", "x"]}, "no item 'x' in the catalog: give ids"),
        ({"items": "i3"}, "items is 'i3', not a list of ids"),
        ({"items": ["i3"], "domain": "d9"}, "no domain 'd9': choose one of d0, d1"),
        ({"items": ["i3"], "by": "sound"}, "by is 'sound': choose all or id or image or title"),
        ({"items": ["i3"], "k": 0}, "k is 0: give 1 or more"),
    ],
)
def test_similar_items_wrong_arguments_raises(recommender, arguments, message):
    with pytest.raises(HafvtError, match=message):
        recommender.similar_items(**arguments)


def test_results_are_shown_in_notebooks_with_pictures_and_escaped_titles(recommender):
    recommendations = recommender.recommend([["i3"], ["?"]], "d0", k=30, exclude_seen=False)
    html = recommendations._repr_html_()
    assert html.count("data:image/jpeg;base64,") == 4  # i0 and i5, twice
    assert "&lt;script&gt;" in html
    assert "<script>" not in html
    assert "by popularity" in html
    similar = recommender.similar_items(["i0"], k=50)._repr_html_()
    assert similar.count("data:image/jpeg") == 2
    explanation = recommender.explain(["i3", "i5"], "i0")._repr_html_()
    assert explanation.count("data:image/jpeg") == 2
    assert "share of the score in %" in explanation


def test_similar_items_command_prints_and_writes_tables(served_run, tmp_path, capsys):
    assert main(["similar-items", str(served_run), "i12", "i41", "--k", "2", "--by", "title"]) == 0
    printed = capsys.readouterr().out
    assert "similar to i12  title 12, by title" in printed
    for name in ("a.csv", "a.jsonl", "a.parquet"):
        assert main(["similar-items", str(served_run), "--k", "2", "--out", str(tmp_path / name)]) == 0
    tables = [
        pl.read_csv(tmp_path / "a.csv"),
        pl.read_ndjson(tmp_path / "a.jsonl"),
        pl.read_parquet(tmp_path / "a.parquet"),
    ]
    assert [len(table) for table in tables] == [len(tables[0])] * 3
    assert tables[2].columns == ["item_id", "rank", "similar_item_id", "domain", "title", "similarity"]
    with pytest.raises(HafvtError, match="no items: give ids of items, or --out FILE"):
        hafvt.similar_items(served_run)
