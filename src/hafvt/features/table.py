"""Frozen vectors of items: fp16 rows on disk, memory-mapped, with a presence mask."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from hafvt.errors import HafvtError
from hafvt.files import read_json


@dataclass(frozen=True)
class FeatureTable:
    """One vector per item of one modality.

    Attributes:
        name: the modality, e.g. "image" or "title"; the folder is `features/<name>/` of the dataset.
        rows: (items, e) fp16, each present row of unit length, absent rows zero.
        present: (items,) whether the item has a vector.
        about: encoder, settings, provenance and counts.
    """

    name: str
    rows: npt.NDArray[np.float16]
    present: npt.NDArray[np.bool_]
    about: dict[str, Any]

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Opens `features/<name>/`: rows.npy, present.npy, about.json.

        Raises:
            HafvtError: the folder is incomplete or damaged.
        """
        folder = Path(folder)
        about = read_json(folder / "about.json")
        try:
            rows = np.load(folder / "rows.npy", mmap_mode="r", allow_pickle=False)
            present = np.load(folder / "present.npy", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise HafvtError(f"{folder} is damaged ({error}): encode it anew") from None
        if rows.ndim != 2 or present.shape != rows.shape[:1]:
            raise HafvtError(f"{folder}: rows {rows.shape} and mask {present.shape} disagree: encode it anew")
        return cls(name=folder.name, rows=rows, present=present, about=about)
