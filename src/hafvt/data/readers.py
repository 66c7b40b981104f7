"""Tables from CSV, JSONL, Parquet and data frames; the only reader of text lines in the package.

Polars reads whole columns. Lines are read one by one only where a file is too large or malformed for that.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import narwhals as nw
import polars as pl

from hafvt.errors import HafvtError, InputError

KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
COMPRESSED = (".gz", ".zst")
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1": ".parquet", b"PK\x03\x04": ".zip or .xlsx"}
BOM = b"\xef\xbb\xbf"
CHUNK_BYTES = 2**20
MAX_LINE_BYTES = 2**24
READ_ERRORS = (pl.exceptions.PolarsError, OSError, EOFError, zlib.error)
NOT_UTF8 = ("not UTF-8 text", "Save it as UTF-8")  # problem and remedy


def read_lines(
    path: Path, *, max_bytes: int = MAX_LINE_BYTES, advance: Callable[[int], None] | None = None
) -> Iterator[tuple[int, bytes]]:
    """Yield row number (from 1) and bytes of each line of a text file: plain, gzip or zstd.

    Line ends and a byte order mark are removed. Only a chunk of the file is in memory at a time.

    Args:
        path: the file; its first bytes decide whether it is compressed.
        max_bytes: a longer line is cut, but stays longer than `max_bytes`, so that callers can refuse it.
        advance: receives how many MiB of the file, as stored, have been read since its last call.

    Raises:
        InputError: the file is damaged.
    """
    row = 0
    try:
        for row, line in enumerate(_raw_lines(path, max_bytes, advance), start=1):
            yield row, line.removesuffix(b"\r")
    except READ_ERRORS as error:
        raise unreadable(path, error, row + 1) from None


def _raw_lines(path: Path, max_bytes: int, advance: Callable[[int], None] | None) -> Iterator[bytes]:
    """Yield the lines of a file, see `read_lines`."""
    with path.open("rb") as stored:
        magic = stored.read(4)
        stored.seek(0)
        if MAGIC.get(magic) == ".zst":
            yield from _zstd_lines(path)
            return
        text = gzip.GzipFile(fileobj=stored) if MAGIC.get(magic[:2]) == ".gz" else stored
        rest, mib, is_first = b"", 0, True
        while chunk := text.read(CHUNK_BYTES):
            if advance:
                advance((stored.tell() >> 20) - mib)
                mib = stored.tell() >> 20
            *lines, rest = (rest + (chunk.removeprefix(BOM) if is_first else chunk)).split(b"\n")
            is_first = False
            yield from lines
            rest = rest[: max_bytes + 1]
        if rest:
            yield rest


def _zstd_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a zstd file."""
    lines = pl.scan_csv(
        path,
        has_header=False,
        schema={"line": pl.String},
        separator="\x1f",
        quote_char=None,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
    )
    for batch in lines.collect_batches(chunk_size=1024):
        for line in batch["line"].fill_null(""):
            yield line.encode().replace(
                "\ufffd".encode(), b"\xff"
            )  # Polars replaces bytes that are not UTF-8


def read_jsonl(path: Path, *, max_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield row number (from 1) and object of each line of a JSONL file that is not blank.

    Args:
        path: the file: plain, gzip or zstd.
        max_bytes: longer lines are refused, so that one line cannot fill the memory.

    Raises:
        InputError: the file is damaged, or a line is too long, not UTF-8 text or not a JSON object.
    """
    for row, line in read_lines(path, max_bytes=max_bytes):
        problem, remedy, fields = "not a JSON object", "Write one object per line", None
        if len(line) > max_bytes:
            problem, remedy = f"a line of more than {max_bytes:,} bytes", "Shorten the line"
        else:
            try:
                text = line.decode()
                if not text.strip():
                    continue
                fields = json.loads(text)
            except UnicodeDecodeError:
                problem, remedy = NOT_UTF8
            except (ValueError, RecursionError):
                pass
        if not isinstance(fields, dict):
            raise InputError(problem, remedy, file=path, row=row, value=line[:400].decode(errors="replace"))
        yield row, fields


@dataclass(frozen=True)
class Origin:
    """The file or data frame that a table was read from.

    Attributes:
        file: the file; None for a data frame.
        kind: "csv", "jsonl", "parquet" or "frame".
        delimiter: delimiter of the fields of a CSV file.
    """

    file: Path | None
    kind: str
    delimiter: str = ","

    def row(self, index: int) -> int | None:
        """Return the row number in the file of the data row with this index.

        Row numbers start at 1. In a CSV file the header is row 1, blank rows count, and a record that spans
        several lines counts once. Blank lines of a JSONL file count. The result is None if the row cannot be
        located, which happens in files with stray quotes or control characters.

        Args:
            index: index of the data row, from 0.
        """
        if self.kind not in ("csv", "jsonl"):
            return index + 1
        header = self.kind == "csv"
        return next((number for number, _ in islice(self.records(), index + header, None)), None)

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield row number and fields of each record of a CSV or JSONL file that is not blank.

        The header is a record, too. Stops before a CSV field of more than 128 KiB, the limit of Python's
        reader.
        """
        assert self.file is not None
        lines = (line.decode(errors="replace") for _, line in read_lines(self.file))
        if self.kind == "csv":
            rows: Iterator[list[str]] = csv.reader((f"{line}\n" for line in lines), delimiter=self.delimiter)
        else:
            rows = ([line.strip()] for line in lines)
        with suppress(csv.Error):
            for number, fields in enumerate(rows, start=1):
                if any(fields):
                    yield number, fields


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


def read_columns(source: Any, names: Sequence[str]) -> RawTable:
    """Read columns of a file or a data frame.

    Args:
        source: a path to CSV (delimiter `,`, `;` or tab), JSONL (both also as .gz or .zst) or Parquet, or
            any data frame that narwhals supports.
        names: names of columns in the input; those that the table lacks are left out.

    Raises:
        InputError: the file is missing, misnamed, damaged or malformed; names the row if it is known.
        HafvtError: `source` is neither a path nor a data frame.
    """
    if not isinstance(source, str | Path):
        return _read_frame(source, names)
    path = Path(source)
    kind = file_kind(path)
    try:
        if kind == "csv":
            return _read_csv(path, names)
        if kind == "jsonl":
            return _read_jsonl(path, names)
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        columns = scan.collect_schema().names()
        frame = scan.select(name for name in names if name in columns).collect(engine="streaming")
        return RawTable(frame, columns, Origin(path, kind))
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
    content = next((name for magic, name in MAGIC.items() if head.startswith(magic)), "text")
    if content != (suffix if is_compressed or kind == "parquet" else "text"):
        problem = f"its name says {suffix} but its content is {content}"
        raise InputError(problem, "Rename it by its content", file=path)
    if content == "text" and b"\0" in head:
        row = head[: head.index(b"\0")].count(b"\n") + 1
        raise InputError(*NOT_UTF8, file=path, row=row)
    return kind


def unreadable(path: Path, error: Exception, row: int | None = None) -> InputError:
    """Return the error for a file that raised one of `READ_ERRORS`, at `row` if that is known."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    remedy = "Check it, or download or write it again"
    return InputError(f"it cannot be read ({reason})", remedy, file=path, row=row)


def _read_csv(path: Path, names: Sequence[str]) -> RawTable:
    _, first_line = next(read_lines(path), (1, b""))
    first = first_line.decode(errors="replace")
    unquoted = "".join(first.split('"')[::2])
    if first.startswith("{"):
        raise InputError("its name says CSV but its content is JSON", "Rename it to .jsonl", file=path, row=1)
    origin = Origin(path, "csv", max(",;\t", key=unquoted.count))
    header = _header(first, origin)
    names = [name for name in names if name in header]
    repeated = [name for name in names if header.count(name) > 1]
    if repeated:
        problem = "the header has this column twice"
        raise InputError(problem, "Rename one", file=path, row=1, column=repeated[0])
    # Polars fills a short row with nulls and accepts a long row unless it reads every column. So the query
    # looks at all columns, and returns the requested ones.
    scan = pl.scan_csv(path, separator=origin.delimiter, infer_schema=False, glob=False).select(
        *names,
        pl.last().is_null().alias("\0short"),
        pl.all_horizontal(pl.all().is_null()).alias("\0blank"),
    )
    try:
        frame = scan.collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        raise _malformed_csv(origin, header, error) or unreadable(path, error) from None
    blank = frame.drop_in_place("\0blank")
    if (frame.drop_in_place("\0short") & ~blank).any() and (wrong_row := _malformed_csv(origin, header)):
        raise wrong_row
    return RawTable(frame.filter(~blank) if blank.any() else frame, header, origin)


def _header(line: str, origin: Origin) -> list[str]:
    """Return the column names in the first line of a CSV file."""
    try:
        return next(csv.reader([line], delimiter=origin.delimiter), [])
    except csv.Error as error:
        remedy = "Write a line of column names that ends in a line feed"
        raise InputError(f"not a header ({error})", remedy, file=origin.file, row=1, value=line) from None


def _malformed_csv(origin: Origin, header: list[str], error: Exception | None = None) -> InputError | None:
    """Return the error of the first malformed record; None if there is none.

    Args:
        origin: the CSV file.
        header: its column names.
        error: the error of Polars, which decides whether the records' encoding is checked.
    """
    check_encoding = "utf" in str(error).lower()
    for row, fields in origin.records():
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            remedy = "Fix the row; quote fields that contain the delimiter"
            return InputError(problem, remedy, file=origin.file, row=row)
        for column, value in zip(header, fields, strict=True):
            if check_encoding and "\ufffd" in value:
                return InputError(*NOT_UTF8, file=origin.file, row=row, column=column, value=value)
    return None


def _read_jsonl(path: Path, names: Sequence[str]) -> RawTable:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        source: Any = io.BytesIO(file.read()) if file.read(3) == BOM else glob.escape(str(path))
    try:
        frame = pl.scan_ndjson(source, schema=dict.fromkeys(names, pl.String)).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        deque(read_jsonl(path), maxlen=0)  # raises the error of the first malformed line
        raise unreadable(path, error) from None
    _, first = next(read_jsonl(path), (1, {}))
    columns = [name for name in names if name in first or frame[name].null_count() < len(frame)]
    return RawTable(frame.select(columns), list(first), Origin(path, "jsonl"))


def _read_frame(source: Any, names: Sequence[str]) -> RawTable:
    try:
        frame: Any = nw.from_native(source)
    except TypeError:
        raise HafvtError(
            f"{type(source).__name__} is neither a path nor a data frame: pass one of these"
        ) from None
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect("polars")
    columns = list(frame.columns)
    series = []
    for name in names:
        if name not in columns:
            continue
        try:
            series.append(frame.select(name).to_polars()[name])
        except (TypeError, ValueError) as error:  # errors of pyarrow for a column of mixed types
            raise InputError(
                f"cannot be read ({error})", "Give all its values one type", column=name
            ) from None
    return RawTable(pl.DataFrame(series), columns, Origin(None, "frame"))
