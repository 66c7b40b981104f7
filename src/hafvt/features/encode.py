"""`hafvt encode`: turn the pictures and titles of a dataset into frozen vectors."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encoders.base import ContentError, Encoder, Float32
from hafvt.features.encoders.precomputed import look_up_vectors
from hafvt.features.encoding_checkpoint import EncodingCheckpoint, Problem
from hafvt.features.modalities import MODALITIES, load_content, make_encoder
from hafvt.features.table import NO_DIRECTION, FeatureTable, has_direction
from hafvt.files import sha256
from hafvt.progress import progress
from hafvt.settings import Device, PositiveCount, Seed, check_arguments


@check_arguments
def encode(
    data: str | Path | Dataset,
    *,
    image: str | None = None,
    title: str | None = None,
    encoders: dict[str, str] | None = None,
    precomputed: dict[str, str | Path] | None = None,
    batch_size: PositiveCount = 64,
    device: Device = "auto",
    seed: Seed = 0,
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
    for name in precomputed:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise HafvtError(f"modality {name!r}: use small letters, digits and underscores")
        if name in specs:
            raise HafvtError(f"modality {name!r} has both an encoder and a precomputed file: keep one")
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    # Construct all encoders first, so that a wrong name is reported before hours of work.
    instances = {name: make_encoder(name, spec, device, seed) for name, spec in specs.items()}
    tables = {name: _import_vectors(data, name, Path(path)) for name, path in precomputed.items()}
    for name, encoder in instances.items():
        tables[name] = _encode_modality(data, name, specs[name], encoder, batch_size)
    return tables


class EncodedBatch(NamedTuple):
    """The raw rows of consecutive items.

    Attributes:
        size: number of items of the batch.
        items: (n,) indices of the items that have a raw row.
        rows: (n, d) raw rows, finite and not zero.
        problems: why the other items have none, by index of the item.
    """

    size: int
    items: npt.NDArray[np.int64]
    rows: Float32
    problems: dict[int, str]


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
        loading = pool.map(load, values[start : start + batch_size])
        for first in range(start, len(values), batch_size):
            contents = dict(enumerate(loading, start=first))  # by item
            loading = pool.map(load, values[first + batch_size : first + 2 * batch_size])
            problems = {item: str(c) for item, c in contents.items() if isinstance(c, ContentError)}
            items = np.array([item for item in contents if item not in problems], dtype=np.int64)
            rows = np.empty((0, 0), dtype=np.float32)
            if len(items):
                rows = encoder.encode([contents[item] for item in items.tolist()])
                usable = has_direction(rows)
                problems |= dict.fromkeys(items[~usable].tolist(), NO_DIRECTION)
                items, rows = items[usable], rows[usable]
            yield EncodedBatch(len(contents), items, rows, problems)


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
            checkpoint.append(batch.size, batch.items, batch.rows, problems)
            advance(batch.size)
    raw, present = checkpoint.raw_rows()
    rows = encoder.finish(raw, present)
    checkpoint.save_fitted_arrays(encoder.fitted_arrays)
    return checkpoint.publish(rows, present, item_ids)


def _import_vectors(data: Dataset, name: str, path: Path) -> FeatureTable:
    """Write the vectors that a file has for the items of a dataset."""
    item_ids = data.item_table["item_id"].cast(pl.String)
    rows, is_listed, ids = look_up_vectors(path, item_ids)
    if not is_listed.any():
        raise HafvtError(
            f"{path}: none of its {len(ids)} ids (e.g. {ids[0] if ids else ''!r}) is an item of "
            f"{data.folder} (e.g. {item_ids[0]!r}): write the vectors under the item ids of the input tables"
        )
    metadata = {
        "encoder": "precomputed",
        "settings": {},
        "source": {"file": path.name, "sha256": sha256(path)},
        "versions": {"numpy": np.__version__, "polars": pl.__version__},
        "unknown_ids": len(ids) - int(is_listed.sum()),
    }
    usable = has_direction(rows)
    items, broken = np.flatnonzero(usable), np.flatnonzero(is_listed & ~usable)
    problems = [
        Problem(item_ids[i], "", f"no vector in {path.name}") for i in np.flatnonzero(~is_listed).tolist()
    ]
    problems += [Problem(item_ids[i], path.name, NO_DIRECTION) for i in broken.tolist()]
    checkpoint = EncodingCheckpoint(data.folder / "features" / name, len(item_ids), metadata)
    if not checkpoint.num_done:
        checkpoint.append(len(item_ids), items, rows[items], problems)
    return checkpoint.publish(*checkpoint.raw_rows(), item_ids.to_list())
