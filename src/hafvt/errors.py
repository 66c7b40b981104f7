"""Errors that a user can fix; their message is one line that names the remedy."""

from __future__ import annotations

import warnings
from pathlib import Path


class HafvtError(Exception):
    """An error that the user can fix. The command line prints its message without a traceback."""


class ArgumentError(HafvtError):
    """A wrong argument, whatever the files hold. The command line ends with status 2, else with 1."""


class HafvtWarning(UserWarning):
    """A likely mistake in the input, which the command accepts. The command line prints it as one line."""


def warn(message: str) -> None:
    """Warn of a likely mistake in the input: "problem: remedy"."""
    warnings.warn(message, HafvtWarning, stacklevel=3)


class InputError(HafvtError):
    """A wrong value in an input table.

    Args:
        problem: what is wrong, in a few words.
        remedy: how to fix it.
        file: the file of the table; None for a data frame.
        row: row number in the file, header included: the first data row of a CSV file is row 2, the first
            line of a JSONL file row 1.
        column: the column's name in the input.
        value: the wrong value.
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


def missing_package(extra: str, package: str) -> HafvtError:
    """Return the error for an optional package that is not installed.

    Args:
        extra: the extra of hafvt that installs the package.
        package: name of the package.
    """
    return HafvtError(f"this needs the package {package!r}: pip install 'hafvt[{extra}]'")
