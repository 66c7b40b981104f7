"""A feature table that is being written: survives an interruption, is published as a whole."""

from __future__ import annotations

import csv
import json
import os
import shutil
from dataclasses import asdict, dataclass
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from hafvt.data.dataset import Bool
from hafvt.errors import HafvtError
from hafvt.features.encoders.base import Float32
from hafvt.features.table import (
    FITTED_ARRAYS,
    NO_DIRECTION,
    FeatureTable,
    normalize_rows,
    read_fitted_arrays,
)
from hafvt.files import atomic_file, read_json, write_json

CHUNK_ROWS = 8_192  # rows in memory at a time


class Problem(NamedTuple):
    """Why an item has no vector; a row of problems.csv.

    Attributes:
        item_id: id of the item.
        value: the path or title in the item table; empty if there is none.
        problem: what is wrong.
    """

    item_id: str
    value: str
    problem: str


@dataclass
class EncodingState:
    """Contents of state.json.

    Attributes:
        metadata: everything that the raw rows depend on.
        num_done: number of items, from the first on, that are finished.
        width: width of the raw rows; 0 until the first one.
        num_missing: finished items without a picture or title.
        num_broken: finished items whose picture, title or vector cannot be used.
        problems_bytes: valid length of problems.csv.
    """

    metadata: dict[str, Any]
    num_done: int = 0
    width: int = 0
    num_missing: int = 0
    num_broken: int = 0
    problems_bytes: int = 0


class EncodingCheckpoint:
    """The folder `features/.<name>.partial/` with raw.npy, problems.csv and state.json.

    The folder of an interrupted run is continued if its metadata is the same, and discarded otherwise.
    Each batch is on disk before state.json counts its items; bytes beyond that count are overwritten.

    Args:
        target: folder of the finished table, `features/<name>/`.
        num_items: number of items of the dataset.
        metadata: everything that the raw rows depend on; becomes part of about.json.
    """

    def __init__(self, target: Path, num_items: int, metadata: dict[str, Any]) -> None:
        self.target, self.num_items = target, num_items
        self.folder = target.with_name(f".{target.name}.partial")
        self.state = self._read_state(json.loads(json.dumps(metadata)))
        if self.num_done == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._append_problems([Problem(*Problem._fields)])
        self._raw = open_memmap(self.folder / "raw.npy", mode="r+") if self.state.width else None

    @property
    def num_done(self) -> int:
        """Number of items, from the first on, that are finished."""
        return self.state.num_done

    def append(
        self, num_items: int, items: npt.NDArray[np.int64], rows: Float32, problems: list[Problem]
    ) -> None:
        """Finish the next items.

        Args:
            num_items: how many.
            items: (n,) indices of those that have a raw row.
            rows: (n, d) their raw rows, finite and not zero.
            problems: one for each of the others.
        """
        state, stop = self.state, self.num_done + num_items
        if self._raw is None and len(rows):
            shape = (self.num_items, rows.shape[1])
            self._raw = open_memmap(self.folder / "raw.npy", mode="w+", dtype=np.float32, shape=shape)
            state.width = rows.shape[1]
        if self._raw is not None:
            self._raw[state.num_done : stop] = 0
            self._raw[items] = rows
            self._raw.flush()
        self._append_problems(problems)
        num_missing = sum(not problem.value for problem in problems)
        state.num_missing += num_missing
        state.num_broken += len(problems) - num_missing
        state.num_done = stop
        write_json(self.folder / "state.json", asdict(state))

    def save_fitted_arrays(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Save the arrays that an encoder learned, if any; they become part of the table."""
        if arrays:
            with atomic_file(self.folder / FITTED_ARRAYS) as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **arrays)

    def fitted_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return the saved arrays of an interrupted run; empty if there are none."""
        if not (self.folder / FITTED_ARRAYS).exists():
            return {}
        return read_fitted_arrays(self.folder, f"remove {self.folder} and encode anew")

    def raw_rows(self) -> tuple[Float32, Bool]:
        """Return the raw rows (items, d), memory-mapped, and which items have one, (items,).

        Raises:
            HafvtError: no item has one.
        """
        if self._raw is None:
            raise self._nothing_encoded()
        chunks = (self._raw[start : start + CHUNK_ROWS] for start in range(0, self.num_items, CHUNK_ROWS))
        return self._raw, np.concatenate([(chunk != 0).any(axis=1) for chunk in chunks])

    def publish(self, rows: Float32, present: Bool, item_ids: list[str]) -> FeatureTable:
        """Write the finished table in place of an older one, remove this folder and return the table.

        Args:
            rows: (items, e) vectors of any length.
            present: (items,) which items have a vector.
            item_ids: ids of the items.

        Raises:
            HafvtError: no item has a vector.
        """
        table = self.folder / "table"
        shutil.rmtree(table, ignore_errors=True)
        table.mkdir()
        usable = np.empty_like(present)
        unit_rows = open_memmap(table / "rows.npy", mode="w+", dtype=np.float16, shape=rows.shape)
        for start in range(0, len(rows), CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            unit_rows[part], usable[part] = normalize_rows(rows[part], present[part])
        unit_rows.flush()
        del unit_rows
        unusable = np.flatnonzero(present & ~usable).tolist()
        self._append_problems([Problem(item_ids[item], "", NO_DIRECTION) for item in unusable])
        if not usable.any():
            raise self._nothing_encoded()
        np.save(table / "present.npy", usable, allow_pickle=False)
        is_fitted = (self.folder / FITTED_ARRAYS).exists()
        for name in ["problems.csv", *[FITTED_ARRAYS] * is_fitted]:
            shutil.copyfile(self.folder / name, table / name)
        metadata = {
            **self.state.metadata,
            "is_fitted": is_fitted,
            "width": rows.shape[1],
            "counts": {
                "items": self.num_items,
                "encoded": int(usable.sum()),
                "missing": self.state.num_missing,
                "broken": self.state.num_broken + len(unusable),
            },
        }
        write_json(table / "about.json", metadata)
        if self.target.exists():
            self.target.replace(self.folder / "old")
        table.replace(self.target)
        shutil.rmtree(self.folder)
        return FeatureTable.open(self.target)

    def _read_state(self, metadata: dict[str, Any]) -> EncodingState:
        """Return the state of an interrupted run with the same metadata, or else that of a new one."""
        try:
            state = EncodingState(**read_json(self.folder / "state.json"))
        except (HafvtError, TypeError):
            return EncodingState(metadata)
        return state if state.metadata == metadata else EncodingState(metadata)

    def _append_problems(self, problems: list[Problem]) -> None:
        """Write rows behind the valid part of problems.csv, durably."""
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(problems)
        path = self.folder / "problems.csv"
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(self.state.problems_bytes)
            file.seek(0, os.SEEK_END)
            file.write(text.getvalue().encode("utf-8", errors="replace"))
            self.state.problems_bytes = file.tell()
            file.flush()
            os.fsync(file.fileno())

    def _nothing_encoded(self) -> HafvtError:
        """Remove this folder, so that corrected input is read, and return the error."""
        with (self.folder / "problems.csv").open(encoding="utf-8", newline="") as file:
            example = next(map(Problem._make, islice(csv.reader(file), 1, None)))
        shutil.rmtree(self.folder)
        return HafvtError(
            f"{self.target.name}: none of the {self.num_items} items could be encoded, e.g. item "
            f"{example.item_id!r}, value {example.value[:80]!r}: {example.problem}. Correct the "
            "input or leave it out"
        )
