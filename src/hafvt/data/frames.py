"""Columns of data frames of any kind that narwhals supports."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import narwhals as nw
import polars as pl

from hafvt.data.lines import hidden_panics
from hafvt.errors import HafvtError, InputError


def read_frame_columns(
    source: Any, names: Sequence[str], *, with_others: bool = False
) -> tuple[pl.DataFrame, list[str]]:
    """Return those of the named columns that a data frame has, and the names of all its columns.

    With `with_others` its other columns follow.

    Raises:
        InputError: a column cannot be read or is there twice, or a lazy query fails.
        HafvtError: `source` is not a data frame.
    """
    try:
        frame: Any = nw.from_native(source)
        columns = list(frame.collect_schema().names())
    except TypeError:
        raise HafvtError(
            f"{type(source).__name__} is neither a path nor a data frame: pass one of these"
        ) from None
    except nw.exceptions.DuplicateError:
        columns = list(getattr(source, "column_names", None) or source.columns)
        if repeated := [name for name in names if columns.count(name) > 1]:
            raise InputError(
                "the data frame has this column twice", "Rename one", column=repeated[0]
            ) from None
        with_others = False
        wanted = [name for name in columns if name in names]
        frame = nw.from_native(source.select(wanted) if hasattr(source, "column_names") else source[wanted])
    except Exception as error:  # of a lazy query
        raise _query_error(error) from None
    if with_others:
        names = [*names, *(str(name) for name in columns if str(name) not in names)]
    if isinstance(frame, nw.LazyFrame):
        try:
            frame = frame.select(name for name in columns if name in names).collect("polars")
        except Exception as error:
            raise _query_error(error) from None
    native_names = {str(name): name for name in columns}
    series = []
    for name in names:
        if name not in native_names:
            continue
        try:
            with hidden_panics():
                series.append(frame.get_column(native_names[name]).to_polars().alias(name))
        except (Exception, pl.exceptions.PanicException) as error:  # many types, for a column of mixed types
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            problem = f"cannot be read ({reason})"
            raise InputError(problem, "Give all its values one type", column=name) from None
    return pl.DataFrame(series), list(native_names)


def _query_error(error: Exception) -> InputError:
    """Return the error for a lazy query that raised any type of error, as its engine does."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"cannot be read ({reason})", "Correct the query")
