from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from hafvt.data.ids import id_column, id_text, id_texts, visible_text
from hafvt.errors import HafvtError


@pytest.mark.parametrize("value", [7, np.int64(7), np.uint8(7), "7", np.str_("7"), b"7", np.bytes_(b"7")])
def test_id_text_whole_numbers_and_text_are_one_id(value: object) -> None:
    assert id_text(value) == "7"
    assert type(id_text(value)) is str
    assert id_text("007") == "007"


@pytest.mark.parametrize(
    "value", [True, np.bool_(True), 1.0, None, "", " ", "\u200b", "\u3000", "\ud800", b"\xff", ["a"], {}]
)
def test_id_text_other_values_are_refused(value: object) -> None:
    with pytest.raises(HafvtError, match=r"id.*(give text|write it as UTF-8)"):
        id_text(value)


def test_id_texts_text_in_place_of_a_list_is_refused() -> None:
    assert id_texts(np.array([5, 7])) == ["5", "7"]
    assert id_texts(pl.Series(["a", "b"])) == ["a", "b"]
    for wrong in ("aa01", b"aa01", 5, {"a": 1}):
        with pytest.raises(HafvtError, match=r"exclude is .*not a list of ids"):
            id_texts(wrong, "exclude")


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([1, 22]),
        pl.Series(["1", "22"]),
        pl.Series(["1", "22"], dtype=pl.Categorical),
        pl.Series(["1", "22"], dtype=pl.Enum(["22", "1"])),
        pl.Series([b"1", b"22"]),
        pl.Series([1, 22], dtype=pl.Decimal(20, 0)),
    ],
)
def test_id_column_any_id_type_gives_the_same_text(column: pl.Series) -> None:
    assert id_column(column).to_list() == ["1", "22"]


@pytest.mark.parametrize("values", [[1.5, 2.0], [True, False], [[1], [2]], [b"\xff", b"a"]])
def test_id_column_of_another_type_is_refused(values: list[Any]) -> None:
    with pytest.raises(HafvtError, match=r"(in place of|not Unicode) text: (give text|write it as UTF-8)"):
        id_column(pl.Series(values))


def test_id_column_blank_ids_are_missing() -> None:
    blanks = ["", "  ", "\t", "\u00a0", "\u200b", "\ufeff ", None]
    assert id_column(pl.Series(["a ", *blanks])).to_list() == ["a ", *[None] * 7]
    assert id_column(pl.Series([None, None])).to_list() == [None, None]


def test_visible_text_removes_what_cannot_be_seen() -> None:
    ids = pl.Series(["u1", "u1 ", "\ufeffu1", "u\u200b1", "e\u0301", "a b"])
    assert visible_text(ids).to_list() == ["u1"] * 4 + ["\u00e9", "a b"]
