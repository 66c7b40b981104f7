"""Tables from CSV, JSONL, Parquet and data frames.

Polars reads whole files. What it cannot read, or would read differently, Python's csv and json modules read
row by row; they also locate errors.
"""

from __future__ import annotations

import csv
import glob
import json
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from io import BytesIO, StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hafvt.data.frames import read_frame_columns
from hafvt.data.lines import (
    GZIP,
    NOT_UTF8,
    READ_ERRORS,
    SKIPPABLE,
    SURROGATE,
    ZSTD,
    check_text,
    has_utf16_mark,
    read_jsonl,
    read_lines,
    scan_lines,
    unreadable,
    utf8_file,
)
from hafvt.data.origin import Origin
from hafvt.data.parquet import read_parquet_columns
from hafvt.data.table_options import DEFAULT_OPTIONS, UTF8, TableOptions
from hafvt.errors import InputError, warn
from hafvt.progress import report

KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
UTF16, WESTERN_ENCODING = "utf-16", "cp1252"
COMPRESSED = (".gz", ".zst")
MAGIC = {GZIP: ".gz", ZSTD: ".zst", b"PAR1": ".parquet", b"PK\x03\x04": ".zip or .xlsx"}
ROWS_PER_CHUNK = 100_000
IS_BLANK = pl.all_horizontal(pl.all().fill_null("") == "")
SURROGATE_PAIR = r"\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"  # an escaped character of JSON
ODD_ESCAPE = r"\\u(?:[dD][89a-fA-F]|00[4-7])"  # half a surrogate pair, or a letter that needs no escape
JSON_TYPES = {bool: "true or false", float: "a fraction", list: "a list", dict: "an object"}


class RawTable(NamedTuple):
    """Columns of a table before any check.

    Attributes:
        frame: the requested columns that the table has, under the input's names; text is not parsed.
        columns: the names of all columns of the table; of a JSONL file the keys of its first line.
        origin: the file or data frame.
    """

    frame: pl.DataFrame
    columns: list[str]
    origin: Origin


def read_columns(
    source: Any,
    names: Sequence[str],
    *,
    numeric: Container[str] = (),
    options: TableOptions = DEFAULT_OPTIONS,
    with_others: bool = False,
) -> RawTable:
    """Read columns of a file or a data frame.

    Args:
        source: a path to CSV, JSONL (both also as .gz or .zst) or Parquet, or
            any data frame that narwhals supports.
        names: names of columns in the input; those that the table lacks are left out.
        numeric: names among them whose values may be fractions; those of others are text or whole numbers.
        options: separator, encoding and quoting of a CSV file.
        with_others: read all other columns, too, with values of any type.

    Raises:
        InputError: the file is missing, misnamed, damaged, malformed or too large; names the row if known.
        HafvtError: `source` is neither a path nor a data frame.
    """
    if not isinstance(source, str | Path):
        return RawTable(*read_frame_columns(source, names, with_others=with_others), Origin(None, "frame"))
    path = Path(source)
    kind = file_kind(path)
    try:
        if kind == "csv":
            return _read_csv(path, names, options, with_others)
        if kind == "jsonl":
            return _read_jsonl(path, names, numeric, with_others)
        return RawTable(*read_parquet_columns(path, names, with_others=with_others), Origin(path, "parquet"))
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


def _read_csv(path: Path, names: Sequence[str], options: TableOptions, with_others: bool) -> RawTable:
    """Read columns of a CSV file, see `read_columns`."""
    quoting, encoding = options.quoting, options.encoding or (UTF16 if has_utf16_mark(path) else UTF8)
    has_quotes, has_returns, is_western = check_text(path, encoding)
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
        return RawTable(pl.DataFrame(), header, origin)
    if with_others:
        names += [name for name in header if name and name not in names and header.count(name) == 1]
    frame = None
    if not has_returns:
        with utf8_file(path, encoding) as file:  # Polars reads UTF-8
            copy = replace(origin, file=file, encoding=UTF8)
            frame = _read_plain_records(copy, len(header), names, has_quotes=has_quotes)
            if frame is None and has_quotes and is_quoted:
                frame = _read_one_line_records(copy, header, names)
    if frame is None:
        frame = _rows_frame(_csv_rows(origin, header, names), names)
    for name in names if has_quotes and not is_quoted else []:
        if count := frame[name].str.contains('^".*"$').sum():
            warn(
                f"{path}, column {name!r}: {count:,} values are in quotes, which are kept as text: remove "
                "them (or use --quoting standard)"
            )
    return RawTable(frame, header, origin)


def _read_plain_records(
    origin: Origin, num_fields: int, names: Sequence[str], *, has_quotes: bool
) -> pl.DataFrame | None:
    """Read columns of a CSV file by Polars; return None if one of its records is not plain.

    A plain record is one line with all fields; a quote only encloses a field or stands doubled in one.
    """
    path = origin.file
    assert path is not None

    def is_plain() -> bool:
        is_odd = ~pl.col("line").fill_null("").str.contains(_plain_record(origin, num_fields))
        return scan_lines(path).filter(is_odd).head(1).collect(engine="streaming").is_empty()

    # Polars fills a short row with nulls, and accepts a long row unless the query looks at all columns.
    scan = pl.scan_csv(
        path,
        separator=origin.delimiter,
        quote_char='"' if has_quotes and origin.is_quoted else None,
        infer_schema=False,
        glob=False,
    ).select(
        *names,
        pl.last().is_null().alias("\0short"),
        IS_BLANK.alias("\0blank"),
    )
    try:
        if has_quotes and not is_plain():
            return None
        frame = scan.collect(engine="streaming")
        blank = frame.drop_in_place("\0blank")
        has_short_rows = (frame.drop_in_place("\0short") & ~blank).any()
        if has_short_rows and not has_quotes and not is_plain():
            return None
    except pl.exceptions.PolarsError:
        return None
    return frame.filter(~blank) if blank.any() else frame


def _plain_record(origin: Origin, num_fields: int) -> str:
    """Return the pattern of a plain record of a CSV file, see `_read_plain_records`."""
    end = re.escape(origin.delimiter)
    field = f'(?:"(?:[^"]|"")*"|[^"{end}]*)' if origin.is_quoted else f"[^{end}]*"
    return f"^(?:{field}(?:{end}{field}){{{num_fields - 1}}}|{end}*)\r?$"


def _read_one_line_records(
    origin: Origin, header: Sequence[str], names: Sequence[str]
) -> pl.DataFrame | None:
    """Read columns of a CSV file with stray quotes; return None if a record is wrong or spans lines.

    Python's csv module rewrites the records that are not plain, then Polars reads all.
    """
    assert origin.file is not None
    pattern, delimiter = _plain_record(origin, len(header)), origin.delimiter
    numbers = list(map(str, range(len(header))))  # in place of names, which may be repeated
    columns = {str(header.index(name)): name for name in names}
    parts = [pl.DataFrame(schema=dict.fromkeys(names, pl.String))]
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
                return None
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
            parts.append(table.filter(~IS_BLANK).select(columns.keys()).rename(columns))
    except (pl.exceptions.PolarsError, csv.Error):
        return None
    return pl.concat(parts)[1:]


def _rows_frame(rows: Iterator[list[str | None]], names: Sequence[str]) -> pl.DataFrame:
    """Return rows of text as a data frame, built from chunks to save memory."""
    schema = dict.fromkeys(names, pl.String)
    parts = [pl.DataFrame(schema=schema)]
    while chunk := list(islice(rows, ROWS_PER_CHUNK)):
        parts.append(pl.DataFrame(chunk, schema=schema, orient="row"))
    return pl.concat(parts)


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


def _read_jsonl(path: Path, names: Sequence[str], numeric: Container[str], with_others: bool) -> RawTable:
    """Read columns of a JSONL file, see `read_columns`; its first line has all others."""
    check_text(path)
    _, first = next(read_jsonl(path), (1, {}))
    if with_others:
        others = [name for name in first if name and name not in names]
        numeric = {*others, *(name for name in names if name in numeric)}
        names = [*names, *others]
    pattern = _pattern_misread_by_polars(names, numeric)
    is_misread = pl.col("line").str.contains(pattern)
    is_misread_without_pairs = pl.col("line").str.replace_all(SURROGATE_PAIR, "").str.contains(pattern)
    misread_lines = scan_lines(path).filter(is_misread).filter(is_misread_without_pairs)
    frame = None
    try:
        if misread_lines.head(1).collect(engine="streaming").is_empty():
            scan = pl.scan_ndjson(glob.escape(str(path)), schema=dict.fromkeys(names, pl.String))
            frame = scan.collect(engine="streaming")
    except pl.exceptions.PolarsError:
        pass
    if frame is None:
        frame = _rows_frame(_json_rows(path, names, numeric), names)
    columns = [name for name in names if name in first or frame[name].null_count() < len(frame)]
    return RawTable(frame.select(columns), list(first), Origin(path, "jsonl"))


def _pattern_misread_by_polars(names: Sequence[str], numeric: Container[str]) -> str:
    """Return a regular expression for JSON lines that Polars may read otherwise than Python's json module.

    Polars makes text of lists, objects, booleans and fractions; it changes long numbers and lone surrogates
    (pairs of surrogates are fine); of a repeated field it takes the first.
    """
    keys = {
        name: f"(?:{'|'.join(re.escape(json.dumps(name, ensure_ascii=a)) for a in (True, False))})"
        for name in names
    }
    text_keys = "|".join(keys[name] for name in names if name not in numeric)
    list_or_boolean, fraction = r'[^"\s\dn-]', r"-?\d+[.eE]"
    return "|".join(
        [
            rf"(?:{text_keys})\s*:\s*(?:{list_or_boolean}|{fraction})",  # as a value of a text column
            r"\d{16}\.",  # digits that are lost
            r"\d[eE]\+?1",  # 1e10 and above
            *(rf"{key}\s*:.*{key}\s*:" for key in keys.values()),  # a repeated field
            ODD_ESCAPE,
        ]
    )


def _json_rows(path: Path, names: Sequence[str], numeric: Container[str]) -> Iterator[list[str | None]]:
    """Yield columns of the lines of a JSONL file, read by Python's json module.

    Raises:
        InputError: a line is not a JSON object, or a value of a column of text is of another type.
    """
    for row, fields in read_jsonl(path, names):
        values = {name: value for name in names if (value := fields.get(name)) == value}  # without NaN
        for name, value in values.items():
            problem, remedy = "", "Give text or a whole number"
            if name not in numeric and type(value) in JSON_TYPES:
                problem = f"{JSON_TYPES[type(value)]} in place of text"
            elif isinstance(value, str) and SURROGATE.search(value):
                problem, remedy = "half a surrogate pair, which is not text", "Write it as UTF-8"
            if problem:
                raise InputError(problem, remedy, file=path, row=row, column=name, value=json.dumps(value))
            if not isinstance(value, str | None):
                values[name] = json.dumps(value)
        yield [values.get(name) for name in names]
