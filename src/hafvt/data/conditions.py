"""Rows of a table that meet a condition over its columns, such as "qty > 0"."""

from __future__ import annotations

import re

import polars as pl

from hafvt.data.raw_frames import RawTable
from hafvt.data.table_options import QUOTED, TableOptions, parse_condition, parse_numbers, wrong_numbers
from hafvt.data.times import LOCAL_DATE
from hafvt.errors import ArgumentError, HafvtError, InputError
from hafvt.progress import report

WORDS = ("and", "between", "in", "not", "or", "then", "when", "else")  # of SQL, before a parenthesis
FUNCTIONS = (
    "abs",
    "array_contains",
    "coalesce",
    "ends_with",
    "length",
    "lower",
    "round",
    "starts_with",
    "upper",
)
"""Functions of SQL in conditions on items, which may come from strangers: none needs much memory."""


def condition_columns(condition: str | None) -> list[str]:
    """Return the names of the columns in a condition; none without one."""
    return list(dict.fromkeys(parse_condition(condition).meta.root_names())) if condition else []


def rows_that_meet(raw: RawTable, condition: str, options: TableOptions) -> pl.Series:
    """Return a mask of the rows of a table that meet a condition; an empty cell meets none but "is null".

    Columns of text are numbers if all their values are.

    Raises:
        InputError: the table lacks a column, or a value that is compared with a number is none.
        ArgumentError: the condition is not true or false for each row.
    """
    names, file = condition_columns(condition), raw.origin.file
    if missing := [name for name in names if name not in raw.frame.columns]:
        problem = f"no column {missing[0]!r} among {', '.join(raw.columns[:50])}"
        raise InputError(problem, "Correct --keep; texts are in single quotes", file=file)
    typed = [_typed(raw.frame[name], options) for name in names]
    try:
        mask = pl.DataFrame(typed).select(parse_condition(condition)).to_series()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        if "compare string" in str(error):
            wrong = {c.name: wrong_numbers(c, options.decimal) for c in typed if c.dtype == pl.String}
            name = min(wrong, key=lambda name: wrong[name].sum())  # others may well be text
            row, value = wrong[name].arg_true()[0], raw.frame[name].filter(wrong[name])[0]
            remedy = "Correct the value or --keep; texts are in single quotes"
            place = {"file": file, "row": raw.origin.row(row), "column": name, "value": value}
            raise InputError(f"not a number, as --keep {condition!r} needs", remedy, **place) from None
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"--keep {condition}: {reason}: compare columns with values") from None
    if mask.dtype != pl.Boolean or len(mask) != len(raw.frame):
        raise ArgumentError(f"--keep {condition}: it is not true or false for a row: write qty > 0") from None
    return mask.fill_null(False)


def _typed(column: pl.Series, options: TableOptions) -> pl.Series:
    """Return a column of text as numbers, if all its values are, or else with null for empty cells."""
    if column.dtype.is_float():
        return column.fill_nan(None)
    if column.dtype != pl.String:
        return column
    numbers = parse_numbers(column, options.decimal)
    if numbers is None:
        if 2 * column.str.contains(LOCAL_DATE).sum() > len(column):
            report(f"column {column.name!r}: --keep compares dates such as {column[0]!r} as text")
        return column.replace("", None)
    has_comma = column.str.contains(",", literal=True).fill_null(False)
    if has_comma.any():
        text, number = column.filter(has_comma)[0], numbers.filter(has_comma)[0]
        report(f"column {column.name!r}: {text!r} is read as {number:,}: if it is another, give --decimal")
    return numbers.fill_nan(None)


def check_item_condition(condition: str) -> None:
    """Check a condition on items, which may be untrusted input.

    Raises:
        HafvtError: it is no condition in SQL, names no column, or uses other functions than `FUNCTIONS`.
    """
    unquoted = re.sub(QUOTED, "''", condition).lower()
    names = re.findall(r"(\w+)\s*\(", unquoted)
    other = next((name for name in names if name not in (*WORDS, *FUNCTIONS)), None)
    if other or re.search(r"\bselect\b|\|\||\bover\b|::", unquoted):
        raise HafvtError(f"where {condition[:200]!r}: use no functions but {', '.join(FUNCTIONS)}")
    try:
        names = condition_columns(condition)
    except ValueError as error:
        raise HafvtError(f"where {condition[:200]!r}: {str(error)[:300]}: correct it") from None
    if not names:
        raise HafvtError(f"where {condition[:200]!r}: no column in it: write one such as price < 20")


def items_that_meet(table: pl.DataFrame, condition: str) -> pl.Series:
    """Return a mask of the items of a table that meet a condition; an unknown value meets none but "is null".

    Raises:
        HafvtError: the condition is wrong, or the table lacks a column.
    """
    check_item_condition(condition)
    if missing := [name for name in condition_columns(condition) if name not in table.columns]:
        columns = ", ".join(table.columns[:50])
        raise HafvtError(f"where {condition[:200]!r}: no column {missing[0]!r}: the items have {columns}")
    try:
        mask = table.select(parse_condition(condition)).to_series()
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        reason = str(error).splitlines()[0][:300]
        raise HafvtError(
            f"where {condition[:200]!r}: {reason}: compare numbers with numbers, texts with texts in single "
            "quotes, and lists by array_contains(column, 'value')"
        ) from None
    if mask.dtype != pl.Boolean or len(mask) != len(table):
        raise HafvtError(f"where {condition[:200]!r}: not true or false for an item: write price < 20")
    return mask.fill_null(False)
