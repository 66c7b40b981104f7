"""Ids of users, items and domains as text: one rule for tables, JSON and Python values."""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral
from unicodedata import category

import polars as pl

from hafvt.errors import HafvtError

INVISIBLE = r"[\p{Cc}\p{Cf}]"
"""Characters without a shape of their own: control and format characters, such as a zero-width space."""


def id_text(value: object) -> str:
    """Return an id as text; a whole number becomes its digits, so 7 and "7" are one id, "007" is another.

    Args:
        value: text or a whole number, of Python or numpy.

    Raises:
        HafvtError: the value is of another type, blank, or not Unicode text.
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        return str(int(value))
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if not isinstance(value, str):
        raise HafvtError(f"an id cannot be of type {type(value).__name__}: give text or whole numbers")
    if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
        raise HafvtError(f"the id {value[:80]!r} is not Unicode text: write it as UTF-8")
    if all(letter.isspace() or category(letter) in ("Cc", "Cf") for letter in value):
        raise HafvtError("an empty id: give text that is not blank, or whole numbers")
    return str(value)


def id_texts(values: object, name: str = "ids") -> list[str]:
    """Return a list of ids as text, see `id_text`.

    Args:
        values: the ids; text is refused, as its letters would be taken for ids.
        name: name of the list, for the message.

    Raises:
        HafvtError: the values are not a list, or one of them is not an id.
    """
    if isinstance(values, str | bytes | dict) or not isinstance(values, Iterable):
        raise HafvtError(f"{name} is {str(values)[:80]!r}, not a list of ids: write it as ['id', 'id']")
    return [id_text(value) for value in values]


def id_text_lists(values: object, name: str) -> list[list[str]]:
    """Return lists of ids as text, see `id_texts`."""
    if not isinstance(values, Iterable):
        raise HafvtError(f"{name} is {values!r}: give a list of lists of ids, such as [['id', 'id']]")
    return [id_texts(ids, f"{name}[{row}]") for row, ids in enumerate(values)]


def id_column(column: pl.Series) -> pl.Series:
    """Return a column of ids as text, null where an id is missing or blank.

    Raises:
        HafvtError: the type of the column is neither text nor whole numbers.
    """
    is_text = column.dtype in (pl.String, pl.Binary, pl.Categorical, pl.Enum, pl.Null)
    is_whole = column.dtype.is_integer() or (isinstance(column.dtype, pl.Decimal) and not column.dtype.scale)
    if is_text or is_whole:
        try:
            text = column.cast(pl.String)
        except pl.exceptions.ComputeError:
            raise HafvtError("a value is not Unicode text: write it as UTF-8") from None
    elif column.null_count() == len(column) or (column.dtype.is_float() and column.is_nan().all()):
        text = pl.repeat(None, len(column), dtype=pl.String, eager=True).alias(column.name)
    else:
        raise HafvtError(
            f"type {column.dtype} in place of text: give text or whole numbers, without empty cells"
        )
    if is_whole:
        return text
    is_blank = ~text.str.contains(r"[^\s\p{Cc}\p{Cf}]")
    return text.set(is_blank, None) if is_blank.any() else text


def visible_text(column: pl.Series) -> pl.Series:
    """Return text without outer blanks and without invisible characters, in Unicode form NFC."""
    text = column.str.replace_all(INVISIBLE, "").str.strip_chars()
    return text if (text.str.len_bytes() == text.str.len_chars()).all() else text.str.normalize("NFC")
