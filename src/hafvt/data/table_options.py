"""How tables are read: separator, encoding, numbers, times, conditions."""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from typing import Annotated, Literal
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import AfterValidator

from hafvt.errors import ArgumentError
from hafvt.settings import check_fields

UTF8 = "utf-8"
MAX_CONDITION_LENGTH = 100_000  # characters
OPERATOR = r"(?i)\b(?:and|or|not|when|between|like)\b|[+*/%<>=~|]|(?<![(,])(?<![(,] )-"
MAX_OPERATORS = 300  # of a condition; Polars needs the cube of their number in time


def _check_separator(text: str) -> str:
    separator = {"tab": "\t", "\\t": "\t"}.get(text, text)
    if len(separator) != 1 or not separator.isascii() or separator.isalnum() or separator in '\r\n"':
        raise ValueError("name one sign, such as ; or | or tab")
    return separator


def _check_encoding(name: str) -> str:
    try:
        codec = codecs.lookup(name)
        is_text = codec._is_text_encoding  # what open() checks
    except LookupError:
        is_text = False
    if not is_text:
        raise ValueError("name an encoding such as utf-8, cp1252 or utf-16")
    return UTF8 if codec.name in ("utf-8", "utf-8-sig", "ascii") else codec.name


def _check_time_format(text: str) -> str:
    if not re.search("%[-_0]?[DFcdejsuvx]", text):  # a field with the day
        raise ValueError("it has no day: write it as %d.%m.%Y %H:%M")
    if "%Z" in text:
        raise ValueError("names of zones are not read: write the name in place of %Z, and give --time-zone")
    return text


def _check_time_zone(name: str) -> str:
    if name == "UTC":  # the default: an import must not start Polars' threads, which a fork does not copy
        return name
    try:
        ZoneInfo(name)
        pl.Series([0]).cast(pl.Datetime("us")).dt.replace_time_zone(name)
    except (ValueError, OSError, LookupError, pl.exceptions.PolarsError):
        raise ValueError("name a time zone such as Europe/Berlin or UTC") from None
    return name


QUOTED = r"""'(?:[^']|'')*'|"(?:[^"]|"")*\""""
BRACKETED_LIST = r"(?i)\b(in)\s*\[([^\[\]]*)\]"


def _check_condition(text: str) -> str:
    parse_condition(text)
    return text


def parse_condition(text: str) -> pl.Expr:
    """Return a condition over columns, such as "qty > 0 and status = 'paid'", as an expression of Polars.

    A list may be in brackets, too: "status in ['paid', 'sent']".

    Raises:
        ValueError: it is not a condition in SQL.
    """
    if "\0" in text:
        raise ValueError("not a condition: it has a null character")
    quoted = re.findall(QUOTED, text)
    unquoted = re.sub(BRACKETED_LIST, r"\1 (\2)", re.sub(QUOTED, "\0", text))
    if len(text) > MAX_CONDITION_LENGTH or len(re.findall(OPERATOR, unquoted)) > MAX_OPERATORS:
        raise ValueError("it is too long: write qty in (1, 2, 3) in place of many conditions")
    try:
        return pl.sql_expr(re.sub("\0", lambda _: quoted.pop(0), unquoted))
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"not a condition such as \"qty > 0 and status = 'paid'\" ({reason[:200]})"
        ) from None


Separator = Annotated[str, AfterValidator(_check_separator)]
Encoding = Annotated[str, AfterValidator(_check_encoding)]
Decimal = Literal["auto", ".", ","]
TimeFormat = Annotated[str, AfterValidator(_check_time_format)]
TimeZone = Annotated[str, AfterValidator(_check_time_zone)]
Condition = Annotated[str, AfterValidator(_check_condition)]
Quoting = Literal["auto", "standard", "none"]


@dataclass(frozen=True)
class TableOptions:
    """How tables of interactions and items are read; by default, what is plain is guessed and reported.

    Attributes:
        keep: keep the interactions that meet this condition in SQL over columns of their table, such as
            "qty > 0 and status = 'paid'"; default: all.
        separator: sign between the fields of CSV files, such as ; or tab; default: comma, semicolon, tab or
            bar, as in the header.
        encoding: encoding of CSV files, such as cp1252; default: UTF-8, UTF-16 or cp1252, as the bytes show.
        decimal: decimal sign of numbers, "." or ","; "auto" takes the comma where numbers need it.
        time_format: form of dates, such as "%d.%m.%Y %H:%M"; default: numbers, ISO 8601 or a plain guess.
        time_zone: zone of dates that name none, such as Europe/Berlin.
        quoting: whether fields of a CSV file may be in quotes: "standard", or "none", where quotes are part
            of the text; "auto" is "none" for a tab-separated file whose header has no quotes.
        strip: remove outer blanks and invisible characters from ids and domains.

    Raises:
        HafvtError: a value is wrong.
    """

    keep: Condition | None = None
    separator: Separator | None = None
    encoding: Encoding | None = None
    decimal: Decimal = "auto"
    time_format: TimeFormat | None = None
    time_zone: TimeZone = "UTC"
    quoting: Quoting = "auto"
    strip: bool = False

    def __post_init__(self) -> None:
        check_fields(self)


DEFAULT_OPTIONS = TableOptions()


GERMAN_NUMBER = r"^[+-]?(\d+|\d{1,3}(\.\d{3})+)(,\d*)?$"


def wrong_numbers(column: pl.Series, decimal: Decimal = "auto") -> pl.Series:
    """Return a mask of the values that are no numbers, see `parse_numbers`."""
    text = column.str.strip_chars().replace("", None)
    is_number = text.cast(pl.Float64, strict=False).is_not_null()
    is_german = text.str.contains(GERMAN_NUMBER)
    has_commas = decimal == "," or (
        decimal == "auto" and bool(2 * is_german.sum() > len(text) - text.null_count())
    )
    return text.is_not_null() & ~(is_german if has_commas else is_number)


def parse_numbers(column: pl.Series, decimal: Decimal = "auto") -> pl.Series | None:
    """Return text as numbers, null where it is empty; None if a value is no number.

    A comma is the decimal sign, and a point between thousands, if `decimal` says so or, by default, if the
    numbers are none otherwise, such as "1.234,50".

    Raises:
        ArgumentError: with `decimal` "auto", the commas may stand between thousands, as in "1,234".
    """
    text = column.str.strip_chars().replace("", None)
    if decimal != ",":
        numbers = text.cast(pl.Float64, strict=False)
        if numbers.null_count() == text.null_count():
            return numbers
    is_english = text.str.contains(r"^[+-]?\d{1,3}(,\d{3})*(\.\d+)?$").all()
    is_german = text.str.contains(GERMAN_NUMBER).all()
    if decimal == "auto" and is_english and is_german:
        value = text.filter(text.str.contains(",").fill_null(False))[0]
        raise ArgumentError(
            f"column {column.name!r}: {value!r} has thousands or a decimal comma: choose --decimal . or ,"
        )
    if is_german and decimal != ".":
        text = text.str.replace_all(".", "", literal=True).str.replace(",", ".", literal=True)
    elif is_english and decimal != ",":
        text = text.str.replace_all(",", "", literal=True)
    else:
        return None
    return text.cast(pl.Float64, strict=False)
