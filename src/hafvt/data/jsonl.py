"""JSONL files: by Polars, or by Python's json module where Polars reads a line differently."""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Container, Iterator, Sequence
from pathlib import Path

import polars as pl

from hafvt.data.lines import SURROGATE, check_text, read_jsonl, scan_lines
from hafvt.data.origin import Origin
from hafvt.data.raw_frames import (
    RawBatches,
    UnreadableRecord,
    collect,
    first_that_reads,
    row_frames,
    text_batches,
)
from hafvt.errors import InputError

SURROGATE_PAIR = r"\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}"  # an escaped character of JSON
ODD_ESCAPE = r"\\u(?:[dD][89a-fA-F]|00[4-7])"  # half a surrogate pair, or a letter that needs no escape
JSON_TYPES = {bool: "true or false", float: "a fraction", list: "a list", dict: "an object"}


def open_jsonl(
    path: Path, names: Sequence[str], numeric: Container[str], with_others: bool, batch_rows: int | None
) -> RawBatches:
    """Open columns of a JSONL file, see `open_columns`; its first line has all others."""
    check_text(path, is_whole=batch_rows is None)
    _, first = next(read_jsonl(path), (1, {}))
    if with_others:
        others = [name for name in first if name and name not in names]
        numeric = {*others, *(name for name in names if name in numeric)}
        names = [*names, *others]

    def read() -> Iterator[pl.DataFrame]:
        readers = [
            lambda: _plain_lines(path, names, numeric, batch_rows),
            lambda: row_frames(_json_rows(path, names, numeric), names),
        ]
        return text_batches(first_that_reads(readers), names, batch_rows)

    has_value = {name for name in names if name in first}
    frames, later = read(), [name for name in names if name not in has_value]
    if batch_rows is None:
        frame = next(frames)
        has_value |= {name for name in later if frame[name].null_count() < len(frame)}
        frames = iter([frame])
    elif _any_line_contains(path, "|".join(map(_key, later))) if later else False:
        for frame in read():
            has_value |= {name for name in later if frame[name].null_count() < len(frame)}
    columns = [name for name in names if name in has_value]
    return RawBatches((frame.select(columns) for frame in frames), list(first), Origin(path, "jsonl"))


def _any_line_contains(path: Path, pattern: str) -> bool:
    """Return whether a line of a text file matches a regular expression."""
    matching = scan_lines(path).filter(pl.col("line").str.contains(pattern))
    return not matching.head(1).collect(engine="streaming").is_empty()


def _plain_lines(
    path: Path, names: Sequence[str], numeric: Container[str], batch_rows: int | None
) -> Iterator[pl.DataFrame]:
    """Yield columns of a JSONL file that Polars reads.

    Raises:
        UnreadableRecord: it cannot, or it may read a line otherwise than Python's json module.
    """
    pattern = _pattern_misread_by_polars(names, numeric)
    is_misread = pl.col("line").str.contains(pattern)
    is_misread_without_pairs = pl.col("line").str.replace_all(SURROGATE_PAIR, "").str.contains(pattern)
    misread_lines = scan_lines(path).filter(is_misread).filter(is_misread_without_pairs)
    try:
        has_misread_lines = not misread_lines.head(1).collect(engine="streaming").is_empty()
    except pl.exceptions.PolarsError:
        has_misread_lines = True
    if has_misread_lines:
        raise UnreadableRecord
    scan = pl.scan_ndjson(glob.escape(str(path)), schema=dict.fromkeys(names, pl.String))
    yield from collect(scan, batch_rows)


def _key(name: str) -> str:
    """Return the pattern of a field's name in a line."""
    return f"(?:{'|'.join(re.escape(json.dumps(name, ensure_ascii=a)) for a in (True, False))})"


def _pattern_misread_by_polars(names: Sequence[str], numeric: Container[str]) -> str:
    """Return a regular expression for JSON lines that Polars may read otherwise than Python's json module.

    Polars makes text of lists, objects, booleans and fractions; it changes long numbers and lone surrogates
    (pairs of surrogates are fine); of a repeated field it takes the first.
    """
    keys = {name: _key(name) for name in names}
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
