"""Vectors made elsewhere: an .npz or Parquet file of ids and embeddings."""

from __future__ import annotations

import zipfile
from math import prod
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.errors import HafvtError

Float32 = npt.NDArray[np.float32]

MAX_RATIO = 200  # vectors hardly compress; what shrinks further is a bomb


def read_precomputed(path: Path) -> tuple[list[str], Float32]:
    """Reads the vectors of a file; no pickle is loaded.

    Args:
        path: an .npz file with the arrays `ids` (n,) of text or whole numbers and `embeddings` (n, e), or a
            Parquet file with a column `id` or `item_id` and a list column `embedding`.

    Returns:
        The ids as text, each once, and the rows (n, e) in float32.

    Raises:
        HafvtError: the file is missing, damaged, of another kind or shape, or repeats an id.
    """
    if not path.is_file():
        raise HafvtError(f"{path} does not exist: give an .npz or .parquet file of vectors")
    if path.suffix not in (".npz", ".parquet"):
        raise HafvtError(
            f"{path}: files ending in {path.suffix!r} are not read: give an .npz or .parquet file"
        )
    ids, rows = _read_npz(path) if path.suffix == ".npz" else _read_parquet(path)
    if len(ids) != len(rows):
        raise HafvtError(f"{path} has {len(ids)} ids for {len(rows)} embeddings: give each embedding one id")
    series = pl.Series(ids)
    twice = series.filter(series.is_duplicated())
    if len(twice):
        raise HafvtError(f"{path} has the id {twice[0]!r} more than once: keep one embedding of each id")
    return ids, rows


def _read_npz(path: Path) -> tuple[list[str], Float32]:
    try:
        with zipfile.ZipFile(path) as archive:
            arrays = {name: _read_array(path, archive, name) for name in ("ids", "embeddings")}
    except HafvtError:
        raise
    except Exception as error:  # zipfile and numpy raise nearly anything for broken bytes
        raise HafvtError(f"{path} is damaged or no .npz file ({error}): write it with numpy.savez") from None
    ids, rows = arrays["ids"], arrays["embeddings"]
    if ids.ndim != 1 or ids.dtype.kind not in "Uiu":
        raise HafvtError(
            f"{path}: ids have shape {ids.shape} and type {ids.dtype}: give (n,) text or whole numbers"
        )
    if rows.ndim != 2 or rows.dtype.kind != "f" or rows.shape[1] == 0:
        raise HafvtError(
            f"{path}: embeddings have shape {rows.shape} and type {rows.dtype}: give (n, e) floats"
        )
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is reported by row
        return ids.astype(str).tolist(), rows.astype(np.float32)


def _read_array(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[np.generic]:
    """Reads one array after checking that its header, which is believed when memory is taken, is honest."""
    try:
        info = archive.getinfo(f"{name}.npy")
    except KeyError:
        raise HafvtError(
            f"{path} has no array {name!r}: write it with numpy.savez(ids=, embeddings=)"
        ) from None
    if info.file_size > MAX_RATIO * max(info.compress_size, 1):
        raise HafvtError(f"{path}: array {name!r} unpacks to over {MAX_RATIO} times its size: write it anew")
    with archive.open(info) as file:
        shape, dtype = _read_header(file)
        if dtype.hasobject:
            raise HafvtError(f"{path}: array {name!r} holds pickled objects: convert it to text or numbers")
        if prod(shape) * dtype.itemsize != info.file_size - file.tell():
            raise ValueError(f"array {name!r} is not as long as its header says")
    with archive.open(info) as file:
        array: npt.NDArray[np.generic] = np.lib.format.read_array(file, allow_pickle=False)
    return array


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    elif version == (2, 0):
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    else:
        raise ValueError(f"array format {version}")
    return shape, dtype


def _read_parquet(path: Path) -> tuple[list[str], Float32]:
    try:
        frame = pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise HafvtError(f"{path} is damaged or no Parquet file ({reason}): write it anew") from None
    name = next((name for name in ("item_id", "id") if name in frame.columns), None)
    if name is None or "embedding" not in frame.columns:
        raise HafvtError(f"{path} has the columns {', '.join(frame.columns)}: it needs item_id and embedding")
    ids, lists = frame[name], frame["embedding"]
    if ids.null_count() or not (ids.dtype == pl.String or ids.dtype.is_integer()):
        raise HafvtError(f"{path}: column {name!r} is {ids.dtype} or has nulls: give text or whole numbers")
    if isinstance(lists.dtype, pl.Array):
        lists = lists.arr.to_list()
    if not isinstance(lists.dtype, pl.List) or not lists.dtype.inner.is_numeric():
        raise HafvtError(f"{path}: column 'embedding' is {lists.dtype}: give a list of floats for each id")
    widths = lists.list.len().unique()
    if len(widths) != 1 or not widths[0] or lists.explode().null_count():
        raise HafvtError(
            f"{path}: column 'embedding' has gaps or lists of different lengths: give all the same"
        )
    rows = lists.explode().cast(pl.Float32).to_numpy().reshape(len(ids), -1)
    return ids.cast(pl.String).to_list(), rows
