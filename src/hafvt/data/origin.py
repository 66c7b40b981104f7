"""Where a table comes from: locates its rows in the file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from hafvt.data.lines import read_lines
from hafvt.data.table_options import UTF8
from hafvt.errors import InputError

OPEN_QUOTE = "Close the quote, or double it if it is part of the text (or use --quoting none)"


@dataclass(frozen=True)
class Origin:
    """The file or data frame that a table was read from.

    Attributes:
        file: None for a data frame.
        kind: "csv", "jsonl", "parquet" or "frame".
        delimiter: between the fields of a CSV file.
        is_quoted: whether quotes around a field of a CSV file are not part of its text.
        encoding: of a CSV file.
    """

    file: Path | None
    kind: str
    delimiter: str = ","
    is_quoted: bool = True
    encoding: str = UTF8

    def row(self, index: int) -> int | None:
        """Return the row number in the file of the data row with this index, None if it cannot be located.

        Row numbers start at 1. In a CSV file the header is row 1, blank rows count, and a record that spans
        several lines counts once. Blank lines of a JSONL file count.
        """
        if self.kind not in ("csv", "jsonl"):
            return index + 1
        try:
            return next((row for row, _ in islice(self.records(), index + (self.kind == "csv"), None)), None)
        except InputError:
            return None

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield row number and fields of each record of a CSV or JSONL file that is not blank.

        The header is a record, too. Bytes that are not UTF-8 become lone surrogates.

        Raises:
            InputError: a quote is never closed, or a record is not CSV.
        """
        file, is_at_end = self.file, False
        assert file is not None

        def lines() -> Iterator[str]:
            nonlocal is_at_end
            for _, line in read_lines(file, encoding=self.encoding):
                text = line.decode(errors="surrogateescape") + "\n"
                # A carriage return alone ends a line, too, unless it is in quotes.
                yield from re.split("(?<=\r)(?!\n)", text) if "\r" in text else (text,)
            is_at_end = True

        if self.kind == "jsonl":
            yield from ((row, [line]) for row, line in enumerate(lines(), start=1) if line.strip())
            return
        row, first_line, header = 0, 0, list[str]()
        quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if self.is_quoted else csv.QUOTE_NONE
        reader = csv.reader(lines(), delimiter=self.delimiter, quoting=quoting)
        while True:
            row, first_line = row + 1, reader.line_num
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                is_open = reader.line_num > first_line + 1
                remedy = OPEN_QUOTE if is_open else "Fix the row"
                raise InputError(f"not a row of CSV ({error})", remedy, file=file, row=row) from None
            if is_at_end:
                problem = "a quote opens in this row and never closes"
                column = header[len(fields) - 1] if len(fields) <= len(header) else None
                raise InputError(problem, OPEN_QUOTE, file=file, row=row, column=column)
            if any(fields):
                header = header or fields
                yield row, fields
