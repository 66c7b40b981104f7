"""`hafvt encode`: turn the pictures and titles of a dataset into frozen vectors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encoders.base import Encoder, Float32
from hafvt.features.encoders.precomputed import look_up_vectors
from hafvt.features.encoding_checkpoint import EncodingCheckpoint, Problem
from hafvt.features.modalities import MODALITIES, LoadedContent, load_content, make_encoder
from hafvt.features.table import NO_DIRECTION, FeatureTable
from hafvt.files import sha256
from hafvt.progress import progress


def encode(
    data: str | Path | Dataset,
    *,
    image: str | None = None,
    title: str | None = None,
    encoders: dict[str, str] | None = None,
    precomputed: dict[str, str | Path] | None = None,
    batch_size: int = 64,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, FeatureTable]:
    """Write the vectors of pictures and titles to the folder `features` of a dataset.

    Repeat an interrupted call with the same options: it continues where it stopped and gives the same
    result. Items with a missing or broken picture or title get no vector; `features/<name>/problems.csv`
    lists them.

    Example: hafvt encode data/movies --image classic --title classic

    Args:
        data: the dataset or its folder.
        image: encoder of the pictures: "classic" or "clip:CHECKPOINT".
        title: encoder of the titles: "classic", "clip:CHECKPOINT" or "sentence:CHECKPOINT".
        encoders: encoders of other modalities, by name of the modality.
        precomputed: files of vectors from elsewhere, by modality (small letters, digits, underscores).
        batch_size: pictures or titles that an encoder gets at a time.
        device: where checkpoints run: "auto", "cpu", "cuda", ...
        seed: random seed of encoders that are fitted on the dataset.

    Returns:
        The tables of vectors by modality.

    Raises:
        HafvtError: there is nothing to encode; a name, checkpoint or file is wrong; or no item could be
            encoded.
    """
    precomputed = precomputed or {}
    named = {"image": image, "title": title} | (encoders or {})
    specs = {name: spec for name, spec in named.items() if spec is not None}
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
    # Construct all encoders first, so that a wrong name is reported before hours of work.
    made = {name: make_encoder(name, spec, device, seed) for name, spec in specs.items()}
    tables = {name: _import_vectors(data, name, Path(path)) for name, path in precomputed.items()}
    for name, encoder in made.items():
        tables[name] = _encode_modality(data, name, specs[name], encoder, batch_size)
    return tables


class EncodedBatch(NamedTuple):
    """The raw rows of consecutive items.

    Attributes:
        size: number of items of the batch.
        items: (n,) indices of the items that have a raw row.
        rows: (n, d) raw rows, finite and not zero.
        problems: why the other items have none, by index of the item.
        seconds: time that the encoder took.
    """

    size: int
    items: npt.NDArray[np.int64]
    rows: Float32
    problems: dict[int, str]
    seconds: float


def iter_encoded_batches(
    name: str,
    encoder: Encoder,
    values: list[str | None],
    image_root: Path | None,
    start: int = 0,
    batch_size: int = 64,
) -> Iterator[EncodedBatch]:
    """Yield the encoded batches of items, while the content of the next batch is being loaded.

    Args:
        name: the modality.
        encoder: its encoder.
        values: the cells of the modality's column, one for each item.
        image_root: the folder that relative paths start from.
        start: the first item to encode.
        batch_size: items of a batch.
    """
    load = partial(load_content, name, image_root=image_root)
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        for first, contents in _load_ahead(pool, load, values, start, batch_size):
            begin = time.monotonic()
            problems = {first + i: loaded.problem for i, loaded in enumerate(contents) if loaded.problem}
            items = np.array([i for i in range(first, first + len(contents)) if i not in problems], dtype=int)
            rows = np.empty((0, 0), dtype=np.float32)
            if len(items):
                rows = encoder.encode([loaded.content for loaded in contents if not loaded.problem])
                usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
                problems |= dict.fromkeys(items[~usable].tolist(), NO_DIRECTION)
                items, rows = items[usable], rows[usable]
            yield EncodedBatch(len(contents), items, rows, problems, time.monotonic() - begin)


def _load_ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[str | None], LoadedContent],
    values: list[str | None],
    start: int,
    batch_size: int,
) -> Iterator[tuple[int, list[LoadedContent]]]:
    """Yield the first item and the contents of each batch; the next batch is loaded in the background."""
    pending: list[tuple[int, Iterator[LoadedContent]]] = []
    for first in range(start, len(values), batch_size):
        pending.append((first, pool.map(load, values[first : first + batch_size])))
        if len(pending) > 1:
            index, contents = pending.pop(0)
            yield index, list(contents)
    for index, contents in pending:
        yield index, list(contents)


def _encode_modality(data: Dataset, name: str, spec: str, encoder: Encoder, batch_size: int) -> FeatureTable:
    """Encode the items of a dataset in one modality."""
    column, table = MODALITIES[name].column, data.item_table
    if column not in table.columns:
        raise HafvtError(
            f"{data.folder} has no item column {column!r} for {name}: prepare it with this column"
        )
    item_ids, values = table["item_id"].cast(pl.String).to_list(), table[column].to_list()
    metadata = {
        "encoder": spec,
        "settings": encoder.settings,
        "batch_size": batch_size,
        "source": {
            "file": "items.parquet",
            "sha256": sha256(data.folder / "items.parquet"),
            "image_root": str(data.image_root) if data.image_root else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in encoder.packages},
        },
    }
    checkpoint = EncodingCheckpoint(data.folder / "features" / name, len(values), metadata)
    encoder.fitted_arrays = checkpoint.fitted_arrays()
    start, step = checkpoint.num_done, len(values) if encoder.needs_all_items else batch_size
    batches = iter_encoded_batches(name, encoder, values, data.image_root, start, step)
    with progress(f"{name} {spec}", len(values), "items", done=start) as advance:
        for batch in batches:
            checkpoint.save_fitted_arrays(encoder.fitted_arrays)  # before the items count as done
            problems = [
                Problem(item_ids[i], values[i] or "", problem)
                for i, problem in sorted(batch.problems.items())
            ]
            checkpoint.append(batch.size, batch.items, batch.rows, problems, batch.seconds)
            advance(batch.size)
    raw, present = checkpoint.raw_rows()
    rows = encoder.finish(raw, present)
    checkpoint.save_fitted_arrays(encoder.fitted_arrays)
    return checkpoint.publish(rows, present, item_ids)


def _import_vectors(data: Dataset, name: str, path: Path) -> FeatureTable:
    """Write the vectors that a file has for the items of a dataset."""
    item_ids = data.item_table["item_id"].cast(pl.String)
    begin = time.monotonic()
    vectors = look_up_vectors(path, item_ids)
    if not vectors.is_listed.any():
        raise HafvtError(
            f"{path}: none of its {vectors.num_ids} ids (e.g. {vectors.first_id!r}) is an item of "
            f"{data.folder} (e.g. {item_ids[0]!r}): write the vectors under the item ids of the input tables"
        )
    metadata = {
        "encoder": "precomputed",
        "settings": {},
        "source": {"file": path.name, "sha256": sha256(path)},
        "versions": {"numpy": np.__version__, "polars": pl.__version__},
        "unknown_ids": vectors.num_ids - int(vectors.is_listed.sum()),
    }
    usable = np.isfinite(vectors.rows).all(axis=1) & (vectors.rows != 0).any(axis=1)
    problems = [
        Problem(item_ids[i], "", vectors.problem) for i in np.flatnonzero(~vectors.is_listed).tolist()
    ]
    problems += [
        Problem(item_ids[i], path.name, NO_DIRECTION)
        for i in np.flatnonzero(vectors.is_listed & ~usable).tolist()
    ]
    checkpoint = EncodingCheckpoint(data.folder / "features" / name, len(item_ids), metadata)
    if not checkpoint.num_done:
        items = np.flatnonzero(usable)
        checkpoint.append(len(item_ids), items, vectors.rows[items], problems, time.monotonic() - begin)
    return checkpoint.publish(*checkpoint.raw_rows(), item_ids.to_list())
