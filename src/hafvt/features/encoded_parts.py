"""The parts of an encoding that is under way, on disk, so that an interrupted one continues.

A part has whole batches, so that vectors do not depend on where and in which order parts are encoded.
"""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool
from hafvt.errors import HafvtError
from hafvt.features.encoded_batches import iter_encoded_batches
from hafvt.features.encoders.base import Encoder, Float32
from hafvt.features.modalities import MODALITIES, Modality, make_encoder
from hafvt.files import atomic_file, explained_read_errors, read_json, write_json
from hafvt.parts import Part

MIN_BATCHES, MAX_BATCHES = 4, 16  # of a part: while one batch is encoded, the next of its part is loaded
NUM_PARTS = 64  # of a modality, unless parts would have fewer or more batches
JOB, ROWS, FITTED = "job.json", "rows.f32", "fitted_"


class EncodeInput(NamedTuple):
    """The items of a part.

    Attributes:
        start: index of the first item.
        item_ids: of the items.
        values: the cells of the modality's column.
    """

    start: int
    item_ids: list[str]
    values: list[str | None]


class RawItems(NamedTuple):
    """What an encoder returned for all items.

    Attributes:
        rows: (items, d) memory-mapped; zero where there is none; d is 0 if no item has one.
        present: (items,) whether an item has a row.
        problems: by index of the item.
        fitted_arrays: what the encoder learned.
    """

    rows: Float32
    present: Bool
    problems: dict[int, str]
    fitted_arrays: dict[str, npt.NDArray[Any]]


class PartEncoder:
    """Encodes parts, as a function for `map_parts`.

    Args:
        name: the modality.
        encoder: its encoder.
        image_root: the folder that relative paths start from.
        batch_size: items of a batch.
    """

    def __init__(self, name: str, encoder: Encoder, image_root: Path | None, batch_size: int) -> None:
        self.name, self.encoder, self.image_root, self.batch_size = name, encoder, image_root, batch_size

    def __call__(self, items: EncodeInput, path: Path) -> None:
        """Write raw rows, problems and what the encoder learned to a .npz file."""
        step = len(items.values) if self.encoder.needs_all_items else self.batch_size
        batches = [
            *iter_encoded_batches(
                self.name, self.encoder, items.item_ids, items.values, self.image_root, batch_size=step
            )
        ]
        problems = {items.start + item: text for batch in batches for item, text in batch.problems.items()}
        rows = [batch.rows for batch in batches if len(batch.items)]
        arrays = {f"{FITTED}{name}": array for name, array in self.encoder.fitted_arrays.items()}
        with path.open("wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                items=items.start + np.concatenate([batch.items for batch in batches]),
                rows=np.concatenate(rows) if rows else np.empty((0, 0), np.float32),
                problems=np.frombuffer(json.dumps(sorted(problems.items())).encode(), np.uint8),
                **arrays,
            )


def open_part_encoder(
    name: str,
    modality: Modality,
    options: tuple[str, str, int],
    image_root: Path | None,
    batch_size: int,
) -> PartEncoder:
    """Return a new `PartEncoder`, in a worker; `options` are encoder with argument, device and seed.

    Raises:
        HafvtError: the encoder cannot be opened, or its machine lacks the folder of the pictures.
    """
    MODALITIES[name] = modality  # it may be one that the program has added
    if image_root is not None and not image_root.is_dir():
        raise HafvtError(
            f"{image_root} is missing on {socket.gethostname()}: use a folder that all machines share, or "
            "addresses with s3://, gs:// or https://"
        )
    return PartEncoder(name, make_encoder(name, *options), image_root, batch_size)


def split_items(
    folder: Path, item_ids: Sequence[str], values: Sequence[str | None], batch_size: int, *, as_one: bool
) -> list[Part]:
    """Return the parts of all items, or one part if `as_one`, whose files are in a folder."""
    num_batches = -(-len(values) // batch_size)
    size = batch_size * min(max(num_batches // NUM_PARTS, MIN_BATCHES), MAX_BATCHES)
    size = len(values) if as_one else size
    parts = []
    for number, start in enumerate(range(0, len(values), size)):
        ids, cells = list(item_ids[start : start + size]), list(values[start : start + size])
        name = f"items {ids[0]!r} to {ids[-1]!r}"
        parts.append(Part(name, EncodeInput(start, ids, cells), folder / f"{number:06}.npz", len(ids)))
    return parts


def start_encoding(folder: Path, metadata: dict[str, Any]) -> None:
    """Create the folder of an encoding; empty it unless it is of one with the same metadata."""
    job = json.loads(json.dumps(metadata))
    try:
        is_same = read_json(folder / JOB) == job
    except HafvtError:  # none, or of another version
        is_same = False
    if not is_same:
        remove_encoding(folder)
        folder.mkdir(parents=True)
        write_json(folder / JOB, job)


def remove_encoding(folder: Path) -> None:
    """Remove the folder of an encoding, first the job, without which no other file counts."""
    (folder / JOB).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def read_parts(folder: Path, parts: Sequence[Part]) -> RawItems:
    """Return what the encoder returned for all items.

    Raises:
        HafvtError: a file is damaged, or the disk is full.
    """
    num_items, width, problems = sum(part.size for part in parts), 0, dict[int, str]()
    present, fitted_arrays = np.zeros(num_items, np.bool_), dict[str, npt.NDArray[Any]]()
    for part in parts:
        with explained_read_errors(part.out, f"remove {folder} and encode anew"), np.load(part.out) as arrays:
            width = width or arrays["rows"].shape[1]
            present[arrays["items"]] = True
            problems.update(json.loads(arrays["problems"].tobytes()))
            fitted_arrays |= {
                name.removeprefix(FITTED): arrays[name] for name in arrays.files if name.startswith(FITTED)
            }
    if not width:
        return RawItems(np.empty((num_items, 0), np.float32), present, problems, fitted_arrays)
    with atomic_file(folder / ROWS, 4 * width * num_items) as temporary, temporary.open("wb") as file:
        for part in parts:
            rows = np.zeros((part.size, width), np.float32)
            with np.load(part.out) as arrays:
                if len(arrays["items"]):
                    rows[arrays["items"] - part.value.start] = arrays["rows"]
            file.write(rows.tobytes())
    rows = np.memmap(folder / ROWS, np.float32, "r", shape=(num_items, width))
    return RawItems(rows, present, problems, fitted_arrays)
