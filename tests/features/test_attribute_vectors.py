"""Attributes become vectors by statistics of the training items alone; new items are encoded alike."""

from __future__ import annotations

from datetime import date
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from hafvt.cli import main
from hafvt.data.dataset import Dataset, Domain, write_dataset
from hafvt.errors import HafvtError
from hafvt.features.encode import encode
from hafvt.features.encoders.attribute_vectors import (
    choose_columns,
    dump_columns,
    encode_attributes,
    fit_columns,
    load_columns,
)
from hafvt.features.new_items import encode_new_items
from hafvt.features.table import FeatureTable

GENRES = ["Drama|War", "Drama", "Action", "Action|War", None, "Drama", "Anime"]
PRICES = [1.0, 2.0, 3.0, 4.0, None, 100.0, None]


def write_items(folder: Path, columns: dict[str, Any], num_trained: int) -> Dataset:
    """Write items of which the first `num_trained` have training interactions, of one user."""
    count = len(next(iter(columns.values())))
    frame = {"item_id": [f"a{n}" for n in range(count)], "domain": ["d"] * count}
    texts = {name: pl.Series([None] * count, dtype=pl.String) for name in ("title", "image")}
    history = np.arange(num_trained + 2) % num_trained
    return write_dataset(
        folder,
        domains=[Domain("d", 0, count)],
        item_table=pl.DataFrame({**frame, **texts, **columns}),
        user_ids=pl.Series(["u"]),
        items=history.astype(np.int32),
        times=np.arange(len(history)),
        offsets=np.array([0, len(history)]),
        train_lengths=np.array([num_trained]),
        valid=np.array([num_trained]),
        test=np.array([num_trained + 1]),
    )


@pytest.fixture
def films(tmp_path: Path) -> Dataset:
    """Five items with training interactions and two without."""
    return write_items(tmp_path / "films", {"genres": GENRES, "price": PRICES}, 5)


def unit(parts: list[list[float]]) -> np.ndarray:
    """Return parts, each divided by its norm, as one vector of unit length."""
    scaled = [np.array(part) / max(np.linalg.norm(part), 1e-9) for part in parts]
    row = np.concatenate(scaled)
    return row / np.linalg.norm(row)


def test_encode_attributes_are_weighted_categories_and_quantiles(films: Dataset) -> None:
    table = encode(films, attributes=["genres", "price"])["attributes"]
    weight = log(5 / 2)  # Action, Drama and War are genres of two of five training items each
    quantiles = [1 + 3 * n / 7 for n in range(8)]  # of 1, 2, 3, 4
    place = (2 - 1) * 7 / 3
    price = [0.0] * 9
    price[2], price[3] = sqrt(3 - place), sqrt(place - 2)
    expected = {
        0: unit([[0, weight, weight], [1, *[0] * 8]]),
        1: unit([[0, weight, 0], price]),
        5: unit([[0, weight, 0], [*[0] * 7, 1, 0]]),  # beyond the highest price of a training item
    }
    for item, row in expected.items():
        np.testing.assert_allclose(table.rows[item].astype(float), row, atol=1e-3)
    np.testing.assert_allclose(table.fitted_arrays()["knots_1"], quantiles)
    assert table.present.tolist() == [True] * 4 + [False, True, False]
    assert not table.rows[~table.present].any()
    assert pl.read_csv(table.folder / "problems.csv").select("item_id", "problem").rows() == [
        ("a4", "no genres or price given"),
        ("a6", "no value that training items share"),
    ]
    assert table.summary.startswith("attributes: 5 of 7 items, 12 dimensions; 2 missing, see ")


def test_encode_attributes_learns_nothing_of_items_without_training(films: Dataset, tmp_path: Path) -> None:
    columns = {"genres": [*GENRES[:5], "Action|War", "War"], "price": [*PRICES[:5], 7.0, -3.0]}
    others = write_items(tmp_path / "others", columns, 5)
    first, second = (encode(data, attributes=["genres", "price"])["attributes"] for data in (films, others))
    np.testing.assert_array_equal(first.rows[:5], second.rows[:5])
    assert second.present.tolist() == [True] * 4 + [False, True, True]


def test_encode_attributes_does_not_depend_on_the_number_of_an_item(films: Dataset, tmp_path: Path) -> None:
    order = [3, 1, 4, 0, 2]
    columns = {"genres": [GENRES[n] for n in order], "price": [PRICES[n] for n in order]}
    shuffled = write_items(tmp_path / "shuffled", columns, 5)
    first, second = (encode(data, attributes=["genres", "price"])["attributes"] for data in (films, shuffled))
    np.testing.assert_array_equal(first.rows[order], second.rows)


def test_encode_attributes_twice_writes_the_same_bytes(films: Dataset) -> None:
    folder, names = films.folder / "features" / "attributes", ("rows.npy", "fitted_arrays.npz", "about.json")
    encode(films, attributes=["genres", "price"])
    before = [(folder / name).read_bytes() for name in names]
    assert main(["encode", str(films.folder), "--attributes", "genres", "price"]) == 0
    assert [(folder / name).read_bytes() for name in names] == before


def test_encode_new_items_attributes_equal_those_of_the_dataset(films: Dataset) -> None:
    table = encode(films, attributes=["genres", "price"])["attributes"]
    encoded = encode_new_items(films, "attributes", films.item_table[[5, 4, 0]], None)
    np.testing.assert_array_equal(encoded.rows, table.rows[[5, 4, 0]])
    without_price = encode_new_items(films, "attributes", films.item_table[:2].drop("price"), None)
    assert without_price.present.all()
    assert without_price.rows[0] @ without_price.rows[1] > 0.5


def test_encode_like_attributes_of_a_larger_dataset_stay_equal(films: Dataset, tmp_path: Path) -> None:
    encode(films, attributes=["genres", "price"])
    columns = {"genres": [*GENRES, "Drama"], "price": [*PRICES, 2.0]}
    larger = write_items(tmp_path / "larger", columns, 8)  # with more training items and other statistics
    table = encode(larger, like=films.folder)["attributes"]
    old = FeatureTable.open(films.folder / "features" / "attributes")
    np.testing.assert_array_equal(table.rows[:7], old.rows)
    np.testing.assert_array_equal(table.rows[7], old.rows[1])
    encode_new_items(larger, "attributes", larger.item_table, None)


def fitted_rows(table: pl.DataFrame, specs: list[str]) -> np.ndarray:
    """Return the vectors of a table whose items are all trained, by columns that were saved and loaded."""
    columns = fit_columns(table, choose_columns(table, specs), np.ones(len(table), dtype=np.bool_))
    encoded = encode_attributes(table, load_columns(*dump_columns(columns)))
    np.testing.assert_array_equal(encoded.rows, encode_attributes(table, columns).rows)
    return encoded.rows.astype(np.float32)


def test_encode_attributes_of_many_values_are_hashed() -> None:
    count = 20_000
    table = pl.DataFrame({"brand": [f"b{n % 10_000}" for n in range(count)], "new": [True, False] * 10_000})
    rows = fitted_rows(table, ["brand", "new"])
    assert rows.shape == (count, 256 + 2)
    np.testing.assert_allclose((rows[:10_000] * rows[10_000:]).sum(1), 1, atol=1e-2)
    brands = rows[:2000, :256] * sqrt(2)
    cosines = brands[:1000] @ brands[1000:].T
    assert abs(cosines.mean()) < 0.01
    assert cosines.std() < 0.1


def test_encode_attributes_takes_lists_dates_whole_numbers_as_categories_and_mixed_texts(capsys) -> None:
    table = pl.DataFrame(
        {
            "tags": [["a", "b"], ["b"], [], ["a"], ["c"], ["c"]],
            "since": [date(2020, 1, 1), date(2020, 1, 2), None, date(2024, 1, 1), None, None],
            "shelf": [7, 7, 8, 8, None, 9],
            "size": ["1", "2", "n/a", "3", "4", None],
        }
    )
    rows = fitted_rows(table, ["tags", "since", "shelf:category", "size:number"])
    assert rows.shape == (6, 3 + 9 + 2 + 9)
    assert rows[0] @ rows[1] > rows[0] @ rows[3]
    assert (
        "attributes: size: 1 values are no numbers, such as 'n/a': they count as missing"
        in capsys.readouterr().err
    )
    with pytest.raises(HafvtError, match=r"^--attributes: size: no value of 5 is that of two training items"):
        fitted_rows(table, ["size"])
    assert (
        "size: 1 of 5 values are no numbers, such as 'n/a', so all are categories; size:number"
        in capsys.readouterr().err
    )


USELESS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["x", "y", "z"],
        "empty": pl.Series([None] * 3, dtype=pl.String),
        "sku": ["s1", "s2", "s3"],
        "same": ["s", "s", "s"],
        "one": [1, 1, 1],
        "color": ["red", "red", "blue"],
    }
)


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        (["colour"], "'colour' is no attribute of the items: they have empty, sku, same, one, color"),
        (["item_id"], "'item_id' is no attribute of the items: they have empty"),
        (["title"], "'title' is no attribute of the items"),
        (["color:text"], "'color:text' is no attribute of the items"),
        (["color", "color:number"], "color is there twice: keep one kind"),
        (["empty"], "empty: no training item has a value: choose other columns"),
        (["sku"], "sku: no value of 3 is that of two training items or more, but not of all"),
        (["same", "one"], "one: all training items have the same number: choose other columns"),
        (["color:number"], "color: no training item has a number: choose other columns"),
    ],
)
def test_encode_attributes_without_use_are_refused_in_one_line(specs: list[str], message: str) -> None:
    with pytest.raises(HafvtError) as error:
        fitted_rows(USELESS, specs)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_encode_attributes_leaves_out_columns_of_no_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert fitted_rows(USELESS, ["sku", "color", "empty"]).shape == (3, 1)
    assert "attributes: empty: no training item has a value: left out" in capsys.readouterr().err


def test_encode_attributes_conflicts_are_refused(films: Dataset, tmp_path: Path) -> None:
    with pytest.raises(HafvtError, match="'attributes' has both an encoder and a precomputed file"):
        encode(films, attributes=["genres"], precomputed={"attributes": tmp_path / "x.npz"})
    with pytest.raises(HafvtError, match="--like takes the encoders of an earlier dataset"):
        encode(films, attributes=["genres"], like=films.folder)
