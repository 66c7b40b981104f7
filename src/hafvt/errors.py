"""What goes wrong through no fault of ours, said in one line that names the remedy."""

from __future__ import annotations

from pathlib import Path


class HafvtError(Exception):
    """An error a user can mend. The command line prints its message alone, without a traceback."""


class InputError(HafvtError):
    """A wrong value in an input table.

    Args:
        problem: what is wrong, in a few words.
        remedy: how to mend it.
        file: the table the value stands in; None for a data frame.
        row: row number as a person counts in the file, header included: the first row of values of a CSV
            file is row 2, the first line of a JSONL file row 1.
        column: the column's name in the input.
        value: the offending value.
    """

    def __init__(
        self,
        problem: str,
        remedy: str,
        *,
        file: str | Path | None = None,
        row: int | None = None,
        column: str | None = None,
        value: object = None,
    ) -> None:
        place = [str(file) if file is not None else "data frame"]
        if row is not None:
            place.append(f"row {row}")
        if column is not None:
            place.append(f"column {column!r}")
        if value is not None:
            place.append(f"value {str(value)[:80]!r}")
        super().__init__(f"{', '.join(place)}: {problem}. {remedy}")
        self.file, self.row, self.column, self.value = file, row, column, value


def need(extra: str, package: str) -> HafvtError:
    """Returns the error for a missing optional package."""
    return HafvtError(f"this needs the package {package!r}: pip install 'hafvt[{extra}]'")
