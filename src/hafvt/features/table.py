"""Frozen vectors of items on disk: memory-mapped float16 rows with a mask of the items that have one."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool, load_array
from hafvt.files import atomic_file, explained_read_errors, read_manifest, write_manifest
from hafvt.folders import FolderKind

Float16 = npt.NDArray[np.float16]

FORMAT = 2
"""Number of the format, in about.json; changes when older tables cannot be read."""
FITTED_ARRAYS = "fitted_arrays.npz"
FEATURE_TABLE = FolderKind(
    "a feature table", "", ("about.json", "rows.npy", "present.npy", "problems.csv", FITTED_ARRAYS)
)
NO_DIRECTION = "its vector is zero or not finite"
CHUNK_ROWS = 8_192  # rows that are computed at a time


@dataclass(frozen=True)
class FeatureTable:
    """One vector per item in one modality, the folder `features/<name>/` of a dataset.

    Attributes:
        folder: rows.npy, present.npy, about.json, problems.csv and, of fitted encoders, fitted_arrays.npz.
        rows: (items, e) float16, memory-mapped if large; unit length where present, zero elsewhere.
        present: (items,) whether the item has a vector.
        metadata: contents of about.json: encoder, settings, source, package versions and counts.
    """

    folder: Path
    rows: Float16
    present: Bool
    metadata: dict[str, Any]

    @property
    def name(self) -> str:
        """The modality, e.g. "image" or "title"."""
        return self.folder.name

    @property
    def summary(self) -> str:
        """A line on the number of vectors, their dimension, and the items without one."""
        counts, width = self.metadata["counts"], self.rows.shape[1]
        line = f"{self.name}: {counts['encoded']:,} of {counts['items']:,} items, {width} dimensions"
        kinds = [kind for kind in ("missing", "broken", "incomplete") if counts[kind]]
        problems = ", ".join(f"{counts[kind]:,} {kind}" for kind in kinds)
        return line + (f"; {problems}, see {self.folder / 'problems.csv'}" if problems else "")

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a table.

        Raises:
            HafvtError: the folder is incomplete or damaged.
        """
        folder = Path(folder)
        metadata = read_manifest(folder / "about.json", FORMAT, _remedy(folder))
        with explained_read_errors(folder, _remedy(folder)):
            rows = load_array(folder / "rows.npy")
            present = np.load(folder / "present.npy", allow_pickle=False)
        return cls(folder, rows, present, metadata)

    def fitted_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the encoder learned from the dataset, by name; empty if nothing."""
        return read_fitted_arrays(self.folder, _remedy(self.folder))


def _remedy(folder: Path) -> str:
    return f"run hafvt encode for {folder.name} again"


def write_table(folder: Path, rows: Float16, present: Bool, metadata: dict[str, Any]) -> None:
    """Write the files of a `FeatureTable` into a folder, which is created if it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "rows.npy", rows, allow_pickle=False)
    np.save(folder / "present.npy", present, allow_pickle=False)
    write_manifest(folder / "about.json", FORMAT, metadata)


def write_fitted_arrays(folder: Path, arrays: dict[str, npt.NDArray[Any]]) -> None:
    """Write what an encoder learned from a dataset, if anything, into a folder."""
    if arrays:
        with atomic_file(folder / FITTED_ARRAYS) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def read_fitted_arrays(folder: Path, remedy: str) -> dict[str, npt.NDArray[Any]]:
    """Return what an encoder learned from a dataset, by name; empty if the folder has no such file.

    Raises:
        HafvtError: the file is damaged; `remedy` is the end of the message.
    """
    path = folder / FITTED_ARRAYS
    if not path.exists():
        return {}
    with explained_read_errors(path, remedy), np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def pack_texts(texts: list[str]) -> npt.NDArray[np.uint8]:
    """Return texts as JSON bytes, as an array of text takes the space of its longest for each."""
    return np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)


def unpack_texts(packed: npt.NDArray[np.uint8]) -> list[str]:
    """Return the texts that `pack_texts` packed."""
    texts: list[str] = json.loads(packed.tobytes())
    return texts


class EncodedItems(NamedTuple):
    """The vectors of items in one modality.

    Attributes:
        rows: (items, e) float16, unit length where present, zero elsewhere.
        present: (items,) whether the item has a vector.
        problems: by index of the item, why it has no vector, or what its vector lacks.
    """

    rows: Float16
    present: Bool
    problems: dict[int, str]


def normalize_rows(rows: npt.NDArray[np.floating], present: Bool, problems: dict[int, str]) -> EncodedItems:
    """Return rows of unit length.

    Args:
        rows: (items, e) vectors of any length.
        present: (items,) which rows count. Those that are zero or not finite no longer do.
        problems: by index of the item. Items that have neither a vector nor a problem get `NO_DIRECTION`.
    """
    unit_rows, usable = np.zeros(rows.shape, dtype=np.float16), np.zeros_like(present)
    for start in range(0, len(rows), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        precise = rows[part].astype(np.float64)
        norms = np.linalg.norm(precise, axis=1)
        usable[part] = has_norm = present[part] & np.isfinite(norms) & (norms > 0)
        unit_rows[part][has_norm] = precise[has_norm] / norms[has_norm, None]
    others = (item for item in np.flatnonzero(~usable).tolist() if item not in problems)
    return EncodedItems(unit_rows, usable, problems | dict.fromkeys(others, NO_DIRECTION))
