"""Tables from CSV, JSONL, Parquet and data frames.

Polars reads them, at once or in batches. What it cannot read, or would read differently, Python's csv and
json modules read row by row; they also locate errors.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from io import BytesIO, StringIO
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl

from hafvt.data.frames import read_frame_columns
from hafvt.data.jsonl import open_jsonl
from hafvt.data.lines import (
    GZIP,
    NOT_UTF8,
    READ_ERRORS,
    SKIPPABLE,
    SURROGATE,
    ZSTD,
    check_text,
    has_utf16_mark,
    read_lines,
    scan_lines,
    unreadable,
    utf8_file,
)
from hafvt.data.origin import Origin
from hafvt.data.parquet import open_parquet
from hafvt.data.raw_frames import (
    ROWS_PER_CHUNK,
    RawBatches,
    RawTable,
    UnreadableRecord,
    collect,
    first_that_reads,
    row_frames,
    slices,
    text_batches,
)
from hafvt.data.table_options import DEFAULT_OPTIONS, UTF8, TableOptions
from hafvt.errors import InputError, warn
from hafvt.progress import report

KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
UTF16, WESTERN_ENCODING = "utf-16", "cp1252"
COMPRESSED = (".gz", ".zst")
MAGIC = {GZIP: ".gz", ZSTD: ".zst", b"PAR1": ".parquet", b"PK\x03\x04": ".zip or .xlsx"}
IS_BLANK = pl.all_horizontal(pl.all().fill_null("") == "")


def read_columns(
    source: Any,
    names: Sequence[str],
    *,
    numeric: Container[str] = (),
    options: TableOptions = DEFAULT_OPTIONS,
    with_others: bool = False,
) -> RawTable:
    """Read columns of a file or a data frame, see `open_columns`.

    Raises:
        InputError: see `open_columns`; or the table is too large for the memory.
    """
    raw = open_columns(source, names, numeric=numeric, options=options, with_others=with_others)
    return RawTable(next(raw.frames), raw.columns, raw.origin)


def open_columns(
    source: Any,
    names: Sequence[str],
    *,
    numeric: Container[str] = (),
    options: TableOptions = DEFAULT_OPTIONS,
    with_others: bool = False,
    batch_rows: int | None = None,
) -> RawBatches:
    """Open columns of a file or a data frame.

    Args:
        source: a path to CSV, JSONL (both also as .gz or .zst) or Parquet, or
            any data frame that narwhals supports.
        names: names of columns in the input; those that the table lacks are left out.
        numeric: names among them whose values may be fractions; those of others are text or whole numbers.
        options: separator, encoding and quoting of a CSV file.
        with_others: read all other columns, too, with values of any type.
        batch_rows: about how many rows each batch has; None for all rows in one.

    Raises:
        InputError: the file is missing, misnamed, damaged, malformed or too large; names the row if known.
            Some errors are raised while the batches are read.
        HafvtError: `source` is neither a path nor a data frame.
    """
    if not isinstance(source, str | Path):
        frame, columns = read_frame_columns(source, names, with_others=with_others)
        return RawBatches(slices(frame, batch_rows), columns, Origin(None, "frame"))
    path = Path(source)
    kind = file_kind(path)
    try:
        if kind == "csv":
            raw = _open_csv(path, names, options, with_others, batch_rows)
        elif kind == "jsonl":
            raw = open_jsonl(path, names, numeric, with_others, batch_rows)
        else:
            raw = RawBatches(
                *open_parquet(path, names, with_others=with_others, batch_rows=batch_rows),
                Origin(path, "parquet"),
            )
    except READ_ERRORS as error:
        raise unreadable(path, error) from None
    return raw._replace(frames=_explained(path, raw.frames))


def _explained(path: Path, frames: Iterator[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the batches of a file; raise InputError if the file cannot be read."""
    try:
        yield from frames
    except READ_ERRORS as error:
        raise unreadable(path, error) from None


def file_kind(path: Path) -> str:
    """Return "csv", "jsonl" or "parquet", by the file's name.

    Raises:
        InputError: the file is missing or empty, its name has another ending, or its first bytes are not of
            the kind that its name says.
    """
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(problem, "Check the path", file=path)
    suffix = path.suffix.lower()
    is_compressed = suffix in COMPRESSED
    kind = KINDS.get(Path(path.stem).suffix.lower() if is_compressed else suffix)
    if kind is None or (is_compressed and kind == "parquet"):
        names = ".csv, .tsv, .jsonl or .ndjson (also with .gz or .zst after it) or .parquet"
        raise InputError("unknown type of file", f"Name it, by its content, {names}", file=path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from None
    if not head:
        raise InputError("the file is empty", "Write it again", file=path)
    if suffix == ".zst" and head[1:4] == SKIPPABLE:
        raise InputError("it starts with a frame without text", "Compress it with zstd", file=path)
    content = next((name for magic, name in MAGIC.items() if head.startswith(magic)), "text")
    if content != (suffix if is_compressed or kind == "parquet" else "text"):
        problem = f"its name says {suffix} but its content is {content}"
        raise InputError(problem, "Rename it by its content", file=path)
    return kind


def _open_csv(
    path: Path, names: Sequence[str], options: TableOptions, with_others: bool, batch_rows: int | None
) -> RawBatches:
    """Open columns of a CSV file, see `open_columns`."""
    quoting, encoding = options.quoting, options.encoding or (UTF16 if has_utf16_mark(path) else UTF8)
    has_quotes, has_returns, is_western = check_text(path, encoding, is_whole=batch_rows is None)
    if is_western and options.encoding is None:
        encoding = WESTERN_ENCODING
        report(f"{path}: not UTF-8, read as {encoding}: if its titles look wrong, name it by --encoding")
    first = next(read_lines(path, encoding=encoding), (1, b""))[1].decode(errors="replace")
    if first.startswith("{"):
        raise InputError("its name says CSV but its content is JSON", "Rename it to .jsonl", file=path, row=1)
    delimiter = options.separator or max(",;\t|", key="".join(first.split('"')[::2]).count)
    if options.separator is None and delimiter in ";|":
        report(f"{path}: the separator is {delimiter}")
    is_quoted = quoting == "standard" or (quoting == "auto" and (delimiter != "\t" or '"' in first))
    origin = Origin(path, "csv", delimiter, is_quoted, encoding)
    _, header = next(origin.records(), (1, [])) if first.strip() else (1, [])
    names = [name for name in names if name in header]
    if repeated := [name for name in names if header.count(name) > 1]:
        problem = "the header has this column twice"
        raise InputError(problem, "Rename one", file=path, row=1, column=repeated[0])
    if not names:
        return RawBatches(iter([pl.DataFrame()]), header, origin)
    if with_others:
        names += [name for name in header if name and name not in names and header.count(name) == 1]
    frames = _csv_frames(origin, header, names, batch_rows, has_quotes, has_returns)
    return RawBatches(text_batches(frames, names, batch_rows), header, origin)


def _csv_frames(
    origin: Origin,
    header: list[str],
    names: Sequence[str],
    batch_rows: int | None,
    has_quotes: bool,
    has_returns: bool,
) -> Iterator[pl.DataFrame]:
    """Yield columns of a CSV file, see `open_columns`, by the fastest reader; warn of quotes in the text."""
    path, num_quoted = origin.file, dict.fromkeys(names, 0)
    assert path is not None
    with nullcontext(path) if has_returns else utf8_file(path, origin.encoding) as file:  # Polars reads UTF-8
        copy = replace(origin, file=file, encoding=UTF8)
        readers: list[Callable[[], Iterator[pl.DataFrame]]] = []
        if not has_returns:
            readers.append(lambda: _read_plain_records(copy, len(header), names, batch_rows, has_quotes))
            if has_quotes and origin.is_quoted:
                readers.append(lambda: _read_one_line_records(copy, header, names))
        readers.append(lambda: row_frames(_csv_rows(origin, header, names), names))
        for frame in first_that_reads(readers):
            for name in names if has_quotes and not origin.is_quoted else []:
                num_quoted[name] += int(frame[name].str.contains('^".*"$').sum())
            yield frame
    for name, count in num_quoted.items():
        if count:
            warn(
                f"{path}, column {name!r}: {count:,} values are in quotes, which are kept as text: remove "
                "them (or use --quoting standard)"
            )


def _read_plain_records(
    origin: Origin, num_fields: int, names: Sequence[str], batch_rows: int | None, has_quotes: bool
) -> Iterator[pl.DataFrame]:
    """Yield columns of a CSV file, read by Polars.

    A plain record is one line with all fields; a quote only encloses a field or stands doubled in one.

    Raises:
        UnreadableRecord: a record is not plain.
    """
    path = origin.file
    assert path is not None

    def is_plain() -> bool:
        is_odd = ~pl.col("line").fill_null("").str.contains(_plain_record(origin, num_fields))
        return all(frame.is_empty() for frame in collect(scan_lines(path).filter(is_odd).head(1), None))

    # Polars fills a short row with nulls, and accepts a long row unless the query looks at all columns.
    scan = pl.scan_csv(
        path,
        separator=origin.delimiter,
        quote_char='"' if has_quotes and origin.is_quoted else None,
        infer_schema=False,
        glob=False,
    )
    scan = scan.select(*names, pl.last().is_null().alias("\0short"), IS_BLANK.alias("\0blank"))
    is_checked = has_quotes
    if has_quotes and not is_plain():
        raise UnreadableRecord
    for frame in collect(scan, batch_rows):
        blank = frame.drop_in_place("\0blank")
        if (frame.drop_in_place("\0short") & ~blank).any() and not is_checked:
            if not is_plain():
                raise UnreadableRecord
            is_checked = True
        yield frame.filter(~blank) if blank.any() else frame


def _plain_record(origin: Origin, num_fields: int) -> str:
    """Return the pattern of a plain record of a CSV file, see `_read_plain_records`."""
    end = re.escape(origin.delimiter)
    field = f'(?:"(?:[^"]|"")*"|[^"{end}]*)' if origin.is_quoted else f"[^{end}]*"
    return f"^(?:{field}(?:{end}{field}){{{num_fields - 1}}}|{end}*)\r?$"


def _read_one_line_records(
    origin: Origin, header: Sequence[str], names: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """Yield columns of a CSV file with stray quotes.

    Python's csv module rewrites the records that are not plain, then Polars reads all.

    Raises:
        UnreadableRecord: a record is wrong or spans lines.
    """
    assert origin.file is not None
    pattern, delimiter = _plain_record(origin, len(header)), origin.delimiter
    numbers = list(map(str, range(len(header))))  # in place of names, which may be repeated
    columns, num_header_rows = {str(header.index(name)): name for name in names}, 1
    try:
        for batch in scan_lines(origin.file).collect_batches(chunk_size=ROWS_PER_CHUNK, maintain_order=True):
            lines = batch["line"].drop_nulls()
            lines = lines.filter(~lines.str.contains(f"^{re.escape(delimiter)}*\r?$"))
            odd_rows = (~lines.str.contains(pattern)).arg_true()
            # An open quote would take the blank line at the end into its record.
            reader = csv.reader((*(line + "\n" for line in lines[odd_rows]), "\n"), delimiter=delimiter)
            *records, _ = reader
            is_wrong = any(len(record) != len(header) for record in records)
            if is_wrong or len(records) < len(odd_rows) or lines.str.contains("\ufffd").any():
                raise UnreadableRecord
            rewritten, text = StringIO(), BytesIO()
            csv.writer(rewritten, delimiter=delimiter, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(
                records
            )
            lines = lines.scatter(odd_rows, rewritten.getvalue().split("\n")[:-1]) if records else lines
            lines.to_frame().write_csv(text, include_header=False, quote_style="never")
            text.seek(0)
            table = pl.read_csv(
                text, separator=delimiter, has_header=False, infer_schema=False, new_columns=numbers
            )
            filled = table.filter(~IS_BLANK).select(columns.keys()).rename(columns)
            yield filled[num_header_rows:]
            num_header_rows -= min(len(filled), num_header_rows)
    except (pl.exceptions.PolarsError, csv.Error):
        raise UnreadableRecord from None


def _csv_rows(origin: Origin, header: list[str], names: Sequence[str]) -> Iterator[list[str | None]]:
    """Yield columns of the records of a CSV file, read by Python's csv module.

    Raises:
        InputError: a record has too few or too many fields, or is not UTF-8 text.
    """
    positions, spanning_rows = [header.index(name) for name in names], []
    for row, fields in islice(origin.records(), 1, None):
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            remedy = "Fix the row; quote fields that contain the delimiter"
            raise InputError(problem, remedy, file=origin.file, row=row)
        text = "".join(fields)
        if not text.isascii() and SURROGATE.search(text):
            column, value = next(
                pair for pair in zip(header, fields, strict=True) if SURROGATE.search(pair[1])
            )
            value = value.encode(errors="surrogateescape").decode(errors="replace")
            raise InputError(*NOT_UTF8, file=origin.file, row=row, column=column, value=value)
        if "\n" in text and any("\n" in field and origin.delimiter in field for field in fields):
            spanning_rows.append(row)
        yield [fields[position] for position in positions]
    if spanning_rows:
        warn(
            f"{origin.file}: {len(spanning_rows):,} quoted fields hold both delimiters and line breaks, the "
            f"first in row {spanning_rows[0]}: if its quotes are part of the text, double them (or "
            "use --quoting none)"
        )
