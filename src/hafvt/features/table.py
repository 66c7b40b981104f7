"""Frozen vectors of items on disk: memory-mapped float16 rows with a mask of the items that have one."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool
from hafvt.errors import HafvtError
from hafvt.files import read_json

Float16 = npt.NDArray[np.float16]

FITTED_ARRAYS = "fitted_arrays.npz"
NO_DIRECTION = "its vector is zero or not finite"


@dataclass(frozen=True)
class FeatureTable:
    """One vector per item in one modality, the folder `features/<name>/` of a dataset.

    Attributes:
        folder: rows.npy, present.npy, about.json, problems.csv and, of fitted encoders, fitted_arrays.npz.
        rows: (items, e) float16, memory-mapped; unit length where present, zero elsewhere.
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

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Open a table.

        Raises:
            HafvtError: the folder is incomplete or damaged.
        """
        folder = Path(folder)
        metadata = read_json(folder / "about.json")
        try:
            rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
            present = np.load(folder / "present.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise HafvtError(f"{folder} is damaged ({error}): encode it anew") from None
        if rows.ndim != 2 or present.shape != rows.shape[:1]:
            raise HafvtError(
                f"{folder}: rows {rows.shape} and mask {present.shape} do not fit together: encode it anew"
            )
        return cls(folder, rows, present, metadata)


def read_fitted_arrays(folder: Path, remedy: str) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that an encoder learned from a dataset, by name.

    Args:
        folder: folder with fitted_arrays.npz.
        remedy: what the user can do if the file is missing or damaged.

    Raises:
        HafvtError: the file is missing or damaged.
    """
    path = folder / FITTED_ARRAYS
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise HafvtError(f"{path} is missing or damaged ({error}): {remedy}") from None


def has_direction(rows: npt.NDArray[np.floating]) -> Bool:
    """Return which rows (items, d) are finite and not zero, (items,)."""
    usable: Bool = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
    return usable


def normalize_rows(rows: npt.NDArray[np.floating], present: Bool) -> tuple[Float16, Bool]:
    """Return rows of unit length in float16 and which items still have one, (items, e) and (items,).

    Args:
        rows: (items, e) vectors of any length.
        present: (items,) which rows count. Those that are zero or not finite no longer do.
    """
    precise = rows.astype(np.float64)
    norms = np.linalg.norm(precise, axis=1)
    present = present & np.isfinite(norms) & (norms > 0)
    unit = np.where(present[:, None], precise / np.where(present, norms, 1)[:, None], 0)
    return unit.astype(np.float16), present
