"""`hafvt encode`: the pictures and titles of a dataset become frozen vectors, batch by batch, resumably."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encoders import Encoder, make_encoder
from hafvt.features.encoders.precomputed import read_precomputed
from hafvt.features.encoding_checkpoint import EncodingCheckpoint, Problem
from hafvt.features.images import PictureError, open_picture
from hafvt.features.table import FeatureTable
from hafvt.files import sha256
from hafvt.progress import progress


class Loaded(NamedTuple):
    """A picture or a title ready for an encoder, or the problem that it has."""

    content: Any
    problem: str


def encode(
    data: str | Path | Dataset,
    *,
    image: str | None = None,
    title: str | None = None,
    precomputed: dict[str, str | Path] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, FeatureTable]:
    """Writes `features/<name>/` of a dataset: rows.npy, present.npy, about.json and problems.csv.

    A run that was killed goes on where it stopped when it is repeated with the same settings, and ends with
    the same bits. A missing or broken picture or title stops nothing: it is listed in problems.csv.

    Example: hafvt encode data/movies --image classic --title classic

    Args:
        data: the dataset or its folder.
        image: encoder of the pictures: "classic" or "clip:CHECKPOINT".
        title: encoder of the titles: "classic", "clip:CHECKPOINT" or "sentence:CHECKPOINT".
        precomputed: files of vectors made elsewhere, by modality (small letters, digits, underscores).
        batch_size: pictures or titles that an encoder sees at a time.
        device: where checkpoints run: "auto", "cpu", "cuda", ...
        seed: of the encoders that are fitted.

    Returns:
        The tables by modality.

    Raises:
        HafvtError: nothing is to be encoded; a name, checkpoint or file is wrong; or no item at all could be
            encoded.
    """
    precomputed = precomputed or {}
    specs = {name: spec for name, spec in (("image", image), ("title", title)) if spec is not None}
    if not specs and not precomputed:
        raise HafvtError("nothing to encode: name an encoder for image or title, or a precomputed file")
    if batch_size < 1:
        raise HafvtError(f"batch_size is {batch_size}: give 1 or more")
    for name in precomputed:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise HafvtError(f"modality {name!r}: use small letters, digits and underscores")
        if name in specs:
            raise HafvtError(f"modality {name!r} has both an encoder and a precomputed file: keep one")
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    # all are made before any works, so that a wrong name is told at once and not after hours
    encoders = {name: make_encoder(name, spec, device, seed) for name, spec in specs.items()}
    tables = {name: _take(data, name, Path(path)) for name, path in precomputed.items()}
    for name, encoder in encoders.items():
        tables[name] = _encode(data, name, specs[name], encoder, batch_size)
    return tables


def _encode(data: Dataset, name: str, spec: str, encoder: Encoder, batch_size: int) -> FeatureTable:
    """Encodes the column `name` of the item table."""
    item_ids, values = data.item_table["item_id"].cast(pl.String).to_list(), data.item_table[name].to_list()
    items = len(values)
    about = {
        "encoder": spec,
        "settings": encoder.settings,
        "batch_size": batch_size,
        "source": {
            "file": "items.parquet",
            "sha256": sha256(data.folder / "items.parquet"),
            "image_root": str(data.image_root) if name == "image" and data.image_root else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in encoder.packages},
        },
    }
    partial = EncodingCheckpoint(data.folder / "features" / name, items, about)
    step = items if encoder.whole else batch_size
    load = loader(name, data.image_root)
    with (
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool,
        progress(f"{name} {spec}", items, "items", done=partial.done) as advance,
    ):
        for start, loaded in load_ahead(pool, load, values, partial.done, step):
            begin = time.monotonic()
            good = np.array([i for i, one in enumerate(loaded) if not one.problem], dtype=np.int64)
            problems = {i: one.problem for i, one in enumerate(loaded) if one.problem}
            rows = np.empty((0, 0), dtype=np.float32)
            if len(good):
                rows = encoder.encode([loaded[i].content for i in good])
                partial.keep(encoder.fit)  # before the rows count as done
                usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
                problems |= {int(i): "its vector is zero or not finite" for i in good[~usable]}
                good, rows = good[usable], rows[usable]
            listed = [
                Problem(item_ids[start + i], values[start + i] or "", problems[i]) for i in sorted(problems)
            ]
            stop = min(start + step, items)
            partial.append(stop, start + good, rows, listed, time.monotonic() - begin)
            advance(stop - start)
    raw, present = partial.rows()
    finished = encoder.finish(raw, present)
    partial.keep(encoder.fit)
    return partial.publish(finished, present, item_ids)


def _take(data: Dataset, name: str, path: Path) -> FeatureTable:
    """Takes the vectors of the dataset's items out of a file."""
    ids, vectors = read_precomputed(path)
    item_ids = data.item_table["item_id"].cast(pl.String)
    found = item_ids.to_frame().join(
        pl.DataFrame({"item_id": ids}).with_row_index("row"), on="item_id", how="left", maintain_order="left"
    )["row"]
    known = found.drop_nulls().n_unique()
    if not known:
        raise HafvtError(
            f"{path}: none of its {len(ids)} ids (e.g. {ids[0] if ids else ''!r}) is an item of "
            f"{data.folder} (e.g. {item_ids[0]!r}): write the vectors under the item ids of the input tables"
        )
    about = {
        "encoder": "precomputed",
        "settings": {},
        "source": {"file": path.name, "sha256": sha256(path)},
        "versions": {"numpy": np.__version__, "polars": pl.__version__},
        "unknown_ids": len(ids) - known,
    }
    begin = time.monotonic()
    index = np.flatnonzero(found.is_not_null().to_numpy())
    rows = vectors[found.drop_nulls().to_numpy()]
    usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
    problems = [
        Problem(item_ids[int(i)], "", f"no vector in {path.name}") for i in np.flatnonzero(found.is_null())
    ]
    problems += [
        Problem(item_ids[int(i)], path.name, "its vector is zero or not finite") for i in index[~usable]
    ]
    partial = EncodingCheckpoint(data.folder / "features" / name, len(item_ids), about)
    if not partial.done:
        partial.append(len(item_ids), index[usable], rows[usable], problems, time.monotonic() - begin)
    return partial.publish(*partial.rows(), item_ids.to_list())


def load_ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[str | None], Loaded],
    values: list[str | None],
    first: int,
    step: int,
) -> Iterator[tuple[int, list[Loaded]]]:
    """Yields the start of each batch and what it holds, while the next one is already being read."""
    ahead: deque[tuple[int, Iterator[Loaded]]] = deque()
    for start in range(first, len(values), step):
        ahead.append((start, pool.map(load, values[start : start + step])))
        if len(ahead) > 1:
            start, loaded = ahead.popleft()
            yield start, list(loaded)
    for start, loaded in ahead:
        yield start, list(loaded)


def loader(name: str, root: Path | None) -> Callable[[str | None], Loaded]:
    """Returns what reads a picture, whose path starts from `root`, or a title, of a row of the item table."""

    def picture(value: str | None) -> Loaded:
        if value is None or not value.strip():
            return Loaded(None, "no picture given")
        try:
            return Loaded(open_picture(root, value), "")
        except PictureError as error:
            return Loaded(None, str(error))

    def title(value: str | None) -> Loaded:
        if value is None or not value.strip():
            return Loaded(None, "no title given")
        return Loaded(value.strip(), "")

    return picture if name == "image" else title
