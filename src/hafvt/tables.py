"""Rows of cells as text: aligned columns for the terminal, Markdown for documents, safe cells for CSV."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import polars as pl

ABSENT = "–"
FORMULA = r"^[=+\-@\t\r＝＋－＠]"  # how a cell begins that a spreadsheet may run as a formula
NUMBER = r"^[+-]?[0-9]*[.,]?[0-9]*$"


def percent(fraction: float | None) -> str:
    """Return 0.1234 as "12.34", without the sign; None, NaN and infinity as a dash."""
    return f"{100 * fraction:.2f}" if fraction is not None and math.isfinite(fraction) else ABSENT


def align_columns(rows: Sequence[Sequence[str]], text_columns: int = 1) -> list[str]:
    """Return one line per row, with columns of equal width.

    Args:
        rows: the cells of each row; all rows have the same number of cells.
        text_columns: number of leading columns that are aligned left; the others are aligned right.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        "  ".join(
            cell.ljust(width) if column < text_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        for cells in rows
    )
    return [line.rstrip() for line in lines]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> str:
    """Return a Markdown table.

    Args:
        header: names of the columns.
        rows: the cells; pipes are escaped, line breaks become spaces.
        text_columns: number of leading columns that are aligned left; the others are aligned right.
    """

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(" ".join(cell.split()).replace("|", "\\|") for cell in cells) + " |"

    rule = ["---" if column < text_columns else "---:" for column in range(len(header))]
    return "\n".join(line(cells) for cells in [header, rule, *rows]) + "\n"


def without_formulas(table: pl.DataFrame) -> pl.DataFrame:
    """Return a table with an apostrophe before each text that a spreadsheet would run as a formula."""
    text = pl.col(pl.String)
    is_formula = text.str.contains(FORMULA) & ~text.str.contains(NUMBER)
    return table.with_columns(pl.when(is_formula).then("'" + text).otherwise(text).name.keep())
