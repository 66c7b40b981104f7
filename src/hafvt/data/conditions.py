"""Interactions that meet a condition over columns of their table, such as "qty > 0"."""

from __future__ import annotations

import polars as pl

from hafvt.data.readers import RawTable
from hafvt.data.table_options import TableOptions, parse_condition, parse_numbers
from hafvt.errors import ArgumentError, InputError
from hafvt.progress import report


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
        for column in typed:
            if column.dtype == pl.String:
                is_wrong = column.cast(pl.Float64, strict=False).is_null() & column.is_not_null()
                row, value = is_wrong.arg_true()[0], column.filter(is_wrong)[0]
                remedy = "Correct the value or --keep; texts are in single quotes"
                place = {"file": file, "row": raw.origin.row(row), "column": column.name, "value": value}
                raise InputError(f"not a number, as --keep {condition!r} needs", remedy, **place) from None
        reason = str(error).splitlines()[0]
        raise ArgumentError(f"--keep {condition}: {reason}: compare columns with values") from None
    if mask.dtype != pl.Boolean or len(mask) != len(raw.frame):
        raise ArgumentError(f"--keep {condition}: it is not true or false for a row: write qty > 0") from None
    return mask.fill_null(False)


def _typed(column: pl.Series, options: TableOptions) -> pl.Series:
    """Return a column of text as numbers, if all its values are, or else with null for empty cells."""
    if column.dtype != pl.String:
        return column
    numbers = parse_numbers(column, options.decimal)
    if numbers is None:
        return column.replace("", None)
    has_comma = column.str.contains(",", literal=True).fill_null(False)
    if has_comma.any():
        text, number = column.filter(has_comma)[0], numbers.filter(has_comma)[0]
        report(f"column {column.name!r}: {text!r} is read as {number:,}: if it is another, give --decimal")
    return numbers
