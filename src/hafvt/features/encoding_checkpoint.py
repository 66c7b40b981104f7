"""A feature table in the making: survives a kill after any batch, appears whole or not at all."""

from __future__ import annotations

import csv
import json
import os
import shutil
from io import StringIO
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from numpy.lib.format import open_memmap

from hafvt.errors import HafvtError
from hafvt.features.table import FeatureTable
from hafvt.files import atomic_file, read_json, write_json

Float32 = npt.NDArray[np.float32]
Bool = npt.NDArray[np.bool_]

CHUNK = 8_192  # rows held in memory at a time


class Problem(NamedTuple):
    """Why an item has no vector; a row of problems.csv.

    Attributes:
        item_id: the item's own id.
        value: the path or the title as the item table has it, empty where it has none.
        problem: what is wrong.
    """

    item_id: str
    value: str
    problem: str


class EncodingCheckpoint:
    """The folder `features/.<name>.partial/`: raw.npy, problems.csv and state.json, how far they are good.

    A folder left by a killed run is taken up where it stopped if its `about` is the same, else discarded.
    Each batch is flushed before state.json counts it; what a kill left beyond that count is overwritten.

    Args:
        target: the folder of the finished table, `features/<name>/`.
        items: number of items of the dataset.
        about: everything that the rows depend on; becomes part of about.json.
    """

    def __init__(self, target: Path, items: int, about: dict[str, Any]) -> None:
        self.target, self.items = target, items
        self.folder = target.with_name(f".{target.name}.partial")
        self.about: dict[str, Any] = json.loads(json.dumps(about))
        self.state = self._stored()
        if self.state["done"] == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._append_problems([Problem(*Problem._fields)])
        self.raw = open_memmap(self.folder / "raw.npy", mode="r+") if self.state["width"] else None

    @property
    def done(self) -> int:
        """How many items, from the first on, are settled."""
        return int(self.state["done"])

    def append(
        self, stop: int, index: npt.NDArray[np.int64], rows: Float32, problems: list[Problem], seconds: float
    ) -> None:
        """Settles the items from `done` up to `stop`.

        Args:
            stop: the first item that is not settled yet.
            index: (n,) the items that have a vector.
            rows: (n, d) their raw rows, finite and not zero.
            problems: the other items.
            seconds: how long the batch took.
        """
        if self.raw is None and len(rows):
            shape = (self.items, rows.shape[1])
            self.raw = open_memmap(self.folder / "raw.npy", mode="w+", dtype=np.float32, shape=shape)
            self.state["width"] = rows.shape[1]
        if self.raw is not None:
            self.raw[self.done : stop] = 0
            self.raw[index] = rows
            self.raw.flush()
        self._append_problems(problems)
        missing = sum(not problem.value for problem in problems)
        self.state["missing"] += missing
        self.state["broken"] += len(problems) - missing
        self.state["seconds"] += seconds
        self.state["done"] = stop
        write_json(self.folder / "state.json", self.state)

    def keep(self, fit: dict[str, npt.NDArray[Any]]) -> None:
        """Keeps what an encoder was fitted to; it becomes fit.npz of the table."""
        if fit:
            with atomic_file(self.folder / "fit.npz") as temporary, temporary.open("wb") as file:
                np.savez(file, allow_pickle=False, **fit)

    def rows(self) -> tuple[Float32, Bool]:
        """Returns the raw rows (items, d), memory-mapped, and which items have one, (items,).

        Raises:
            HafvtError: no item has one.
        """
        if self.raw is None:
            raise self._empty()
        chunks = (self.raw[start : start + CHUNK] for start in range(0, self.items, CHUNK))
        return self.raw, np.concatenate([(chunk != 0).any(axis=1) for chunk in chunks])

    def publish(self, rows: Float32, present: Bool, item_ids: list[str]) -> FeatureTable:
        """Writes the finished table in place of an older one and removes this folder.

        Args:
            rows: (items, e) vectors of any length.
            present: (items,) which of them count.
            item_ids: the items' own ids.

        Raises:
            HafvtError: no item has a vector.
        """
        table = self.folder / "table"
        shutil.rmtree(table, ignore_errors=True)
        table.mkdir()
        kept = present.copy()
        out = open_memmap(table / "rows.npy", mode="w+", dtype=np.float16, shape=rows.shape)
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            chunk = rows[part].astype(np.float64)
            norms = np.linalg.norm(chunk, axis=1)
            kept[part] &= np.isfinite(norms) & (norms > 0)
            out[part] = np.where(kept[part, None], chunk / np.where(kept[part], norms, 1)[:, None], 0)
        out.flush()
        del out
        lost = np.flatnonzero(present & ~kept)
        self._append_problems([Problem(item_ids[i], "", "its vector has no direction") for i in lost])
        if not kept.any():
            raise self._empty()
        np.save(table / "present.npy", kept, allow_pickle=False)
        shutil.copyfile(self.folder / "problems.csv", table / "problems.csv")
        if (self.folder / "fit.npz").exists():
            shutil.copyfile(self.folder / "fit.npz", table / "fit.npz")
        counts = {
            "items": self.items,
            "encoded": int(kept.sum()),
            "missing": self.state["missing"],
            "broken": self.state["broken"] + len(lost),
        }
        seconds = round(self.state["seconds"], 1)
        about = {**self.about, "counts": counts, "width": rows.shape[1], "seconds": seconds}
        write_json(table / "about.json", about)
        if self.target.exists():
            self.target.replace(self.folder / "old")
        table.replace(self.target)
        shutil.rmtree(self.folder)
        return FeatureTable.open(self.target)

    def _stored(self) -> dict[str, Any]:
        """Returns the state that a killed run left, if it goes on from there; else that of a start."""
        fresh = {
            "about": self.about,
            "done": 0,
            "width": 0,
            "missing": 0,
            "broken": 0,
            "problems_bytes": 0,
            "seconds": 0.0,
        }
        if not (self.folder / "state.json").exists():
            return fresh
        try:
            stored = read_json(self.folder / "state.json")
        except HafvtError:
            return fresh
        same = isinstance(stored, dict) and stored.keys() == fresh.keys() and stored["about"] == self.about
        return stored if same else fresh

    def _append_problems(self, problems: list[Problem]) -> None:
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(problems)
        path = self.folder / "problems.csv"
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(self.state["problems_bytes"])
            file.seek(0, os.SEEK_END)
            file.write(text.getvalue().encode("utf-8", errors="replace"))
            self.state["problems_bytes"] = file.tell()
            file.flush()
            os.fsync(file.fileno())

    def _empty(self) -> HafvtError:
        """Returns the error for a table without a vector; the folder goes, so that a mended input is read."""
        with (self.folder / "problems.csv").open(encoding="utf-8", newline="") as file:
            first = next(map(Problem._make, islice(csv.reader(file), 1, None)))
        shutil.rmtree(self.folder)
        return HafvtError(
            f"{self.target.name}: none of the {self.items} items could be encoded, e.g. item "
            f"{first.item_id!r}, value {first.value[:80]!r}: {first.problem}. Mend the input or leave it out"
        )
