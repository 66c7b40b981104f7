"""Writes recommendations batch by batch to a JSONL, CSV or Parquet file, or to stdout."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from hafvt.files import atomic_file
from hafvt.inference.histories import HistoryRequest
from hafvt.inference.recommendations import Recommendations, SimilarItems
from hafvt.tables import without_formulas

SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
SCHEMA = {
    "history_number": pl.Int64,
    "user_id": pl.String,
    "domain": pl.String,
    "rank": pl.Int64,
    "item_id": pl.String,
    "title": pl.String,
    "score": pl.Float64,
    "ranked_by": pl.String,
    "num_unknown_ids": pl.Int64,
}
SIMILAR_SCHEMA = {
    "item_id": pl.String,
    "rank": pl.Int64,
    "similar_item_id": pl.String,
    "domain": pl.String,
    "title": pl.String,
    "similarity": pl.Float64,
}
CONTROL = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069]")  # can control a terminal or end a line

Rows = list[dict[str, Any]]  # JSON objects, one per history


@contextmanager
def open_writer(out: Path | None) -> Iterator[Callable[[Rows], object]]:
    """Yield a function that writes JSON objects to a file, in the format of its suffix, or to stdout.

    Raises:
        HafvtError: the file cannot be written.
    """
    if out is None:
        yield lambda rows: sys.stdout.writelines(map(_line, rows))
        return
    with atomic_file(out) as temporary, write_rows(temporary, out.suffix.lower()) as write:
        yield write


@contextmanager
def write_rows(temporary: Path, suffix: str) -> Iterator[Callable[[Rows], object]]:
    """Yield a function that writes JSON objects to a new file in the format of a suffix."""
    if suffix == ".parquet":
        # Polars cannot append to a Parquet file: each batch becomes a file, and these are joined.
        folder, parts = temporary.with_suffix(".parts.tmp"), list[Path]()

        def write(rows: Rows) -> None:
            parts.append(folder / f"{len(parts)}.parquet")
            result_table(rows).write_parquet(parts[-1])

        folder.mkdir()
        try:
            yield write
            pl.scan_parquet(parts, glob=False).sink_parquet(temporary)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    elif suffix == ".csv":
        with temporary.open("wb") as file:
            pl.DataFrame(schema=SCHEMA).write_csv(file)
            yield lambda rows: without_formulas(result_table(rows)).write_csv(file, include_header=False)
    else:
        with temporary.open("w", encoding="utf-8") as lines:
            yield lambda rows: lines.writelines(map(_line, rows))


def _line(row: dict[str, Any]) -> str:
    """Return an object as a line of JSON, without characters that control a terminal."""
    text = json.dumps(row, ensure_ascii=False)
    return CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def result_table(rows: Rows) -> pl.DataFrame:
    """Return objects as a table with one row per recommended item."""
    return pl.DataFrame(
        [
            {**row, "num_unknown_ids": len(row["unknown_ids"]), **item}
            for row in rows
            for item in row["items"]
        ],
        schema=SCHEMA,
    )


def similar_table(results: Iterable[SimilarItems]) -> pl.DataFrame:
    """Return results as a table with one row per pair of items."""
    rows = [
        (result.item.item_id, rank, one.item.item_id, one.item.domain, one.item.title, one.score)
        for result in results
        for rank, one in enumerate(result.items, start=1)
    ]
    return pl.DataFrame(rows, schema=SIMILAR_SCHEMA, orient="row")


def to_json(history_number: int, request: HistoryRequest, recommendations: Recommendations) -> dict[str, Any]:
    """Return the JSON object of the recommendations for one history."""
    items = [
        {"rank": rank, "item_id": one.item.item_id, "title": one.item.title, "score": one.score}
        for rank, one in enumerate(recommendations.items, start=1)
    ]
    return {
        "history_number": history_number,
        "user_id": request.user_id,
        "domain": request.domain,
        "ranked_by": recommendations.ranked_by,
        "items": items,
        "unknown_ids": list(recommendations.unknown_ids),
        "unknown_excluded_ids": list(recommendations.unknown_excluded_ids),
    }
