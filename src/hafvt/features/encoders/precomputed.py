"""Vectors from elsewhere: an .npz or Parquet file of ids and embeddings."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.ids import id_column
from hafvt.data.parquet import count_values
from hafvt.errors import HafvtError
from hafvt.features.encoders.base import Float32
from hafvt.features.table import EncodedItems, normalize_rows
from hafvt.files import explained_read_errors
from hafvt.progress import available_bytes


def look_up_vectors(path: Path, item_ids: pl.Series) -> tuple[EncodedItems, pl.Series]:
    """Return the vectors that a file has for items, and all ids of the file; see `read_precomputed`."""
    ids, vectors = read_precomputed(path)
    index = ids.alias("item_id").to_frame().with_row_index("row")
    matches = pl.DataFrame({"item_id": item_ids}).join(index, on="item_id", how="left", maintain_order="left")
    is_listed = matches["row"].is_not_null().to_numpy()
    rows = np.zeros((len(item_ids), vectors.shape[1]), dtype=np.float32)
    rows[is_listed] = vectors[matches["row"].drop_nulls().to_numpy()]
    problems = dict.fromkeys(np.flatnonzero(~is_listed).tolist(), f"no vector in {path.name}")
    return normalize_rows(rows, is_listed, problems), ids


def read_precomputed(path: Path) -> tuple[pl.Series, Float32]:
    """Return the ids of a file as text, each once, and their vectors (n, e). No pickle is loaded.

    Args:
        path: an .npz file with the arrays `ids` (n,) of text or whole numbers and `embeddings` (n, e) of
            numbers, or a Parquet file with a column `id` or `item_id` and a list column `embedding`.

    Raises:
        HafvtError: the file is missing, damaged, of another kind or shape, too large, or repeats an id.
    """
    readers = {".npz": _read_npz, ".parquet": _read_parquet}
    if not path.is_file():
        problem = "is not a file" if path.exists() else "does not exist"
        raise HafvtError(f"{path} {problem}: give an .npz or .parquet file of vectors")
    if path.suffix not in readers:
        raise HafvtError(
            f"{path}: files ending in {path.suffix!r} are not read: give an .npz or .parquet file"
        )
    raw_ids, rows = readers[path.suffix](path)
    try:
        ids = id_column(raw_ids)
    except HafvtError as error:
        raise HafvtError(f"{path}: {error}") from None
    if len(ids) != len(rows):
        raise HafvtError(f"{path} has {len(ids)} ids for {len(rows)} embeddings: give each embedding one id")
    if ids.null_count():
        row = 1 + int(ids.is_null().arg_max() or 0)
        raise HafvtError(f"{path}: ids are blank or nulls, the first in row {row}: give each embedding an id")
    repeated = ids.filter(ids.is_duplicated())
    if len(repeated):
        raise HafvtError(f"{path} has the id {repeated[0]!r} more than once: keep one embedding of each id")
    return ids, rows


def _read_npz(path: Path) -> tuple[pl.Series, Float32]:
    try:
        with zipfile.ZipFile(path) as archive:
            ids, rows = (_read_array(path, archive, name) for name in ("ids", "embeddings"))
    except HafvtError:
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything for broken bytes
        reason = next(iter(str(error).splitlines()), "")[:200] or type(error).__name__
        raise HafvtError(f"{path} is damaged or no .npz file ({reason}): write it with numpy.savez") from None
    if ids.ndim != 1 or ids.dtype.kind not in "USiu":
        raise HafvtError(
            f"{path}: ids have shape {ids.shape} and type {ids.dtype}: give (n,) text or whole numbers"
        )
    if rows.ndim != 2 or rows.dtype.kind not in "fiub" or rows.shape[1] == 0:
        raise HafvtError(
            f"{path}: embeddings have shape {rows.shape} and type {rows.dtype}: give (n, e) numbers"
        )
    try:
        id_series = pl.Series(ids)
    except (UnicodeError, SystemError):  # numpy stores any code point
        raise HafvtError(f"{path}: an id is not Unicode text: write it as UTF-8") from None
    with np.errstate(over="ignore"):  # values beyond float32 become infinite; they are reported per item
        return id_series, rows.astype(np.float32)


def _read_array(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """Return one array, after a check that it fits in memory and that its header is true."""
    try:
        entry = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise HafvtError(
            f"{path} has no array {name!r}: write it with numpy.savez(ids=, embeddings=)"
        ) from None
    with archive.open(entry) as file:
        is_long = np.lib.format.read_magic(file) >= (2, 0)
        read_header = np.lib.format.read_array_header_2_0 if is_long else np.lib.format.read_array_header_1_0
        shape, _, dtype = read_header(file)
        if dtype.hasobject:
            raise HafvtError(f"{path}: array {name!r} holds pickled objects: convert it to text or numbers")
        if prod(shape) * dtype.itemsize != entry.file_size - file.tell():
            raise ValueError(f"array {name!r} is not as long as its header says")
    _check_memory(path, entry.file_size + 4 * prod(shape))
    with archive.open(entry) as file:
        return np.lib.format.read_array(file, allow_pickle=False)


def _read_parquet(path: Path) -> tuple[pl.Series, Float32]:
    with explained_read_errors(path, "write it again"):
        scan = pl.scan_parquet(path, glob=False, hive_partitioning=False)
        columns = scan.collect_schema()
        name = next((name for name in ("item_id", "id") if name in columns), None)
        if name is None or "embedding" not in columns:
            raise HafvtError(f"{path} has the columns {', '.join(columns)}: it needs item_id and embedding")
        if isinstance(columns["embedding"], pl.Array):
            scan = scan.with_columns(pl.col("embedding").arr.to_list())
        dtype = scan.collect_schema()["embedding"]
        if not isinstance(dtype, pl.List) or not (dtype.inner.is_numeric() or dtype.inner == pl.Boolean):
            raise HafvtError(f"{path}: column 'embedding' is {dtype}: give a list of floats for each id")
        # The size of the file tells little, as repeated values take no space.
        _check_memory(path, 12 * count_values(path, "embedding"))
        frame = scan.select(name, "embedding").collect()
    lists, values = frame["embedding"], frame["embedding"].explode()
    widths = lists.list.len().unique()
    if len(widths) != 1 or not widths[0] or values.null_count():
        raise HafvtError(
            f"{path}: column 'embedding' has gaps or lists of different lengths: give all the same"
        )
    return frame[name], values.cast(pl.Float32).to_numpy().reshape(len(frame), -1)


def _check_memory(path: Path, needed: int) -> None:
    """Raise HafvtError if the vectors of a file need more bytes of memory than are free."""
    available = available_bytes()
    if needed > available:
        raise HafvtError(
            f"{path}: its vectors need {needed / 2**30:,.1f} GiB of memory, {available / 2**30:,.1f} GiB are "
            "free: use a larger machine, or vectors of fewer dimensions"
        )
