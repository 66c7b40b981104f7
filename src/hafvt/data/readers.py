"""Files and data frames as columns; what is wrong with a file is looked for only once something failed."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import narwhals as nw
import polars as pl

from hafvt.errors import HafvtError, InputError

KINDS = {".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}
PACKED = (".gz", ".zst")
MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"PAR1": ".parquet", b"PK\x03\x04": ".zip or .xlsx"}
BOM = b"\xef\xbb\xbf"
UNREADABLE = (pl.exceptions.PolarsError, OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Origin:
    """Where rows came from.

    Attributes:
        file: the file; None for a data frame.
        kind: "csv", "jsonl", "parquet" or "frame".
        delimiter: between the fields of a CSV file.
    """

    file: Path | None
    kind: str
    delimiter: str = ","

    def row(self, index: int) -> int | None:
        """Returns the row number, as a person counts, of the value row with this index (from 0).

        Rows count from 1; in a CSV file the header is row 1, blank rows count, and a record that spans
        several lines counts once. Blank lines of a JSONL file count, too. None where the row is not found
        again: in files with stray quotes or control characters.
        """
        if self.kind not in ("csv", "jsonl"):
            return index + 1
        header = self.kind == "csv"
        return next((number for number, _ in islice(self.records(), index + header, None)), None)

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """Yields row number and fields of a text file's records, header included, blank ones left out.

        Ends early where Python's reader cannot follow (a field of more than 128 KiB).
        """
        assert self.file is not None
        lines = _lines(self.file)
        if self.kind == "csv":
            rows: Iterator[list[str]] = csv.reader((f"{line}\n" for line in lines), delimiter=self.delimiter)
        else:
            rows = ([line.strip()] for line in lines)
        with suppress(csv.Error):
            for number, fields in enumerate(rows, start=1):
                if any(fields):
                    yield number, fields


class Raw(NamedTuple):
    """Columns as they were read.

    Attributes:
        frame: the wanted columns that are there, under the input's names; text is not parsed.
        columns: the names of all columns found; of a JSONL file the keys of its first line.
        origin: where the rows came from.
    """

    frame: pl.DataFrame
    columns: list[str]
    origin: Origin


def read(source: Any, wanted: Sequence[str]) -> Raw:
    """Reads columns of a file or a data frame.

    Args:
        source: a path to CSV (`,` `;` or tab), JSONL (both also as .gz or .zst) or Parquet, or any data
            frame that narwhals knows.
        wanted: names of columns in the input; those that are not there are left out.

    Raises:
        InputError: the file is missing, misnamed, damaged or malformed, naming the row where it can.
        HafvtError: `source` is neither a path nor a data frame.
    """
    if not isinstance(source, str | Path):
        return _read_frame(source, wanted)
    path = Path(source)
    origin = Origin(path, kind_of(path))
    try:
        if origin.kind == "csv":
            return _read_csv(path, wanted)
        if origin.kind == "jsonl":
            return _read_jsonl(origin, path, wanted)
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        columns = scan.collect_schema().names()
        return Raw(
            scan.select(n for n in wanted if n in columns).collect(engine="streaming"), columns, origin
        )
    except UNREADABLE as error:
        raise unreadable(path, error) from None


def kind_of(path: Path) -> str:
    """Returns "csv", "jsonl" or "parquet", after a look at the first bytes."""
    if not path.is_file():
        problem = "is a folder, not a file" if path.is_dir() else "no such file"
        raise InputError(problem, "Check the path", file=path)
    suffix = path.suffix.lower()
    packed = suffix in PACKED
    kind = KINDS.get(Path(path.stem).suffix.lower() if packed else suffix)
    if kind is None or (packed and kind == "parquet"):
        known = "name it .csv, .tsv, .jsonl or .ndjson (also with .gz or .zst after it) or .parquet"
        raise InputError("a type of file that is not known", f"By what it holds, {known}", file=path)
    try:
        with path.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise unreadable(path, error) from None
    if not head:
        raise InputError("the file is empty", "Write it again", file=path)
    found = next((name for magic, name in MAGIC.items() if head.startswith(magic)), "text")
    if found != (suffix if packed or kind == "parquet" else "text"):
        raise InputError(
            f"its name says {suffix} but it holds {found}", "Rename it by what it holds", file=path
        )
    if found == "text" and b"\0" in head:
        row = head[: head.index(b"\0")].count(b"\n") + 1
        raise InputError("it is not UTF-8 text", "Save it as UTF-8", file=path, row=row)
    return kind


def scan_lines(path: Path, count: int | None = None) -> pl.LazyFrame:
    """Returns the lines of a text file as a column "line", unpacked, null where blank.

    What is not UTF-8 becomes U+FFFD.
    """
    return pl.scan_csv(
        path,
        has_header=False,
        schema={"line": pl.String},
        separator="\x1f",
        quote_char=None,
        encoding="utf8-lossy",
        truncate_ragged_lines=True,
        glob=False,
        n_rows=count,
    )


def _lines(path: Path, count: int | None = None) -> Iterator[str]:
    yield from scan_lines(path, count).collect(engine="streaming")["line"].fill_null("")


def _read_csv(path: Path, wanted: Sequence[str]) -> Raw:
    first = next(_lines(path, 1), "")
    unquoted = "".join(first.split('"')[::2])
    if first.startswith("{"):
        raise InputError("its name says CSV but it holds JSON", "Rename it to .jsonl", file=path, row=1)
    origin = Origin(path, "csv", max(",;\t", key=unquoted.count))
    header = _header(first, origin)
    names = [name for name in wanted if name in header]
    twice = [name for name in names if header.count(name) > 1]
    if twice:
        raise InputError(
            "the header names this column twice", "Rename one", file=path, row=1, column=twice[0]
        )
    # Polars fills a short row with nulls and says nothing, and sees a long one only where it reads every
    # column: so all columns are looked at, and only the wanted ones kept.
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
    if (frame.drop_in_place("\0short") & ~blank).any() and (wrong := _malformed_csv(origin, header)):
        raise wrong
    return Raw(frame.filter(~blank) if blank.any() else frame, header, origin)


def _header(line: str, origin: Origin) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=origin.delimiter), [])
    except csv.Error as error:
        remedy = "Write a line of column names that ends in a line feed"
        raise InputError(f"not a header ({error})", remedy, file=origin.file, row=1, value=line) from None


def _malformed_csv(origin: Origin, header: list[str], error: Exception | None = None) -> InputError | None:
    """Returns what is wrong with the first malformed record, if there is one."""
    bad_text = "utf" in str(error).lower()
    for row, fields in origin.records():
        if len(fields) != len(header):
            problem = f"{len(fields)} fields where the header has {len(header)}"
            remedy = "Mend the row; quote fields that hold the delimiter"
            return InputError(problem, remedy, file=origin.file, row=row)
        for column, value in zip(header, fields, strict=True):
            if bad_text and "\ufffd" in value:
                return _not_utf8(origin, row, column, value)
    return None


def _read_jsonl(origin: Origin, path: Path, wanted: Sequence[str]) -> Raw:
    with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
        source: Any = io.BytesIO(file.read()) if file.read(3) == BOM else glob.escape(str(path))
    try:
        frame = pl.scan_ndjson(source, schema=dict.fromkeys(wanted, pl.String)).collect(engine="streaming")
        first = json.loads(next(origin.records())[1][0]) if len(frame) else {}
    except (pl.exceptions.PolarsError, ValueError, RecursionError) as error:
        raise _malformed_jsonl(origin, error) or unreadable(path, error) from None
    found = [name for name in wanted if name in first or frame[name].null_count() < len(frame)]
    return Raw(frame.select(found), list(first), origin)


def _malformed_jsonl(origin: Origin, error: Exception) -> InputError | None:
    """Returns what is wrong with the first malformed line, if there is one."""
    bad_text = "utf" in str(error).lower()
    for row, (line,) in origin.records():
        if bad_text and "\ufffd" in line:
            return _not_utf8(origin, row, None, line)
        try:
            whole = isinstance(json.loads(line), dict)
        except (ValueError, RecursionError):
            whole = False
        if not whole:
            return InputError(
                "not a JSON object", "Write one object per line", file=origin.file, row=row, value=line
            )
    return None


def _not_utf8(origin: Origin, row: int, column: str | None, value: str) -> InputError:
    return InputError(
        "not UTF-8 text", "Save it as UTF-8", file=origin.file, row=row, column=column, value=value
    )


def unreadable(path: Path, error: Exception) -> InputError:
    """Returns the error for a file that one of `UNREADABLE` came of."""
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return InputError(f"it cannot be read ({reason})", "Check it, or fetch or write it again", file=path)


def _read_frame(source: Any, wanted: Sequence[str]) -> Raw:
    try:
        frame: Any = nw.from_native(source)
    except TypeError:
        raise HafvtError(
            f"{type(source).__name__} is neither a path nor a data frame: give one of these"
        ) from None
    if isinstance(frame, nw.LazyFrame):
        frame = frame.collect("polars")
    columns = list(frame.columns)
    names = [name for name in wanted if name in columns]
    series = []
    for name in names:
        try:
            series.append(frame.select(name).to_polars()[name])
        except (TypeError, ValueError) as error:  # pyarrow's errors are both; a column of mixed types
            raise InputError(
                f"cannot be read ({error})", "Give all its values one type", column=name
            ) from None
    return Raw(pl.DataFrame(series), columns, Origin(None, "frame"))
