"""The state of an encoding that is under way, on disk, so that an interrupted one can continue."""

from __future__ import annotations

import errno
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from hafvt.data.dataset import Bool
from hafvt.errors import HafvtError
from hafvt.features.encoded_batches import EncodedBatch
from hafvt.features.encoders.base import Float32
from hafvt.features.table import CHUNK_ROWS, read_fitted_arrays, write_fitted_arrays
from hafvt.files import explained_write_errors, read_json, write_json

ROWS, PROBLEMS, STATE = "rows.f32", "problems.jsonl", "state.json"


@dataclass
class EncodingState:
    """Contents of state.json.

    Attributes:
        metadata: everything that the raw rows depend on.
        num_done: number of items, from the first on, that are finished.
        width: width of the raw rows; 0 until the first one.
        problems_bytes: length of the part of problems.jsonl that is about finished items.
    """

    metadata: dict[str, Any]
    num_done: int = 0
    width: int = 0
    problems_bytes: int = 0


class EncodingCheckpoint:
    """Raw rows and problems of the finished items, in a hidden folder.

    A batch counts once state.json, which is written last, includes it; what a kill leaves beyond that is
    overwritten. A folder of other metadata, or one with a file that is too short, is emptied.

    Args:
        folder: the hidden folder.
        num_items: number of items of the dataset.
        metadata: see `EncodingState`.
    """

    def __init__(self, folder: Path, num_items: int, metadata: dict[str, Any]) -> None:
        self.folder, self.num_items = folder, num_items
        self.state = self._read_state(json.loads(json.dumps(metadata)))
        if self.state.num_done == 0:
            self.remove()
            folder.mkdir(parents=True)

    def append(self, batch: EncodedBatch, fitted_arrays: dict[str, npt.NDArray[Any]]) -> None:
        """Finish the next items, together with what the encoder has learned so far."""
        state = self.state
        write_fitted_arrays(self.folder, fitted_arrays)
        state.width = state.width or batch.rows.shape[1]
        if state.width:
            block = np.zeros((batch.size, state.width), dtype=np.float32)
            if len(batch.items):
                block[batch.items - batch.start] = batch.rows
            total = 4 * state.width * self.num_items
            self._write(ROWS, 4 * state.width * batch.start, block.tobytes(), total)
        lines = "".join(f"{json.dumps(problem)}\n" for problem in sorted(batch.problems.items())).encode()
        self._write(PROBLEMS, state.problems_bytes, lines)
        state.problems_bytes += len(lines)
        state.num_done += batch.size
        write_json(self.folder / STATE, asdict(state))

    def fitted_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return what the encoder had learned before the interruption; empty if nothing."""
        return read_fitted_arrays(self.folder, f"remove {self.folder} and encode anew")

    def problems(self) -> dict[int, str]:
        """Return the problems of the finished items, by index of the item."""
        lines = (self.folder / PROBLEMS).read_bytes()[: self.state.problems_bytes].splitlines()
        return dict(json.loads(line) for line in lines)

    def raw_rows(self) -> tuple[Float32, Bool]:
        """Return the raw rows of all items, (items, d) memory-mapped, and which items have one, (items,).

        The width d is 0 if no item has one.
        """
        shape = self.num_items, self.state.width
        if not self.state.width:
            return np.empty(shape, dtype=np.float32), np.zeros(self.num_items, dtype=np.bool_)
        rows = np.memmap(self.folder / ROWS, np.float32, "r", shape=shape)
        chunks = (rows[start : start + CHUNK_ROWS] for start in range(0, self.num_items, CHUNK_ROWS))
        return rows, np.concatenate([(chunk != 0).any(axis=1) for chunk in chunks])

    def remove(self) -> None:
        """Remove the folder, first the state, without which no other file counts."""
        (self.folder / STATE).unlink(missing_ok=True)
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def _read_state(self, metadata: dict[str, Any]) -> EncodingState:
        """Return the state of an interrupted run with the same metadata, or else that of a new one."""
        try:
            state = EncodingState(**read_json(self.folder / STATE))
            sizes = {PROBLEMS: state.problems_bytes, ROWS: 4 * state.width * state.num_done}
            is_whole = all(
                (self.folder / name).stat().st_size >= size for name, size in sizes.items() if size
            )
        except (HafvtError, OSError, TypeError):  # none, or that of another version
            return EncodingState(metadata)
        return state if is_whole and state.metadata == metadata else EncodingState(metadata)

    def _write(self, name: str, offset: int, content: bytes, total: int = 0) -> None:
        """Write to a file from an offset on, durably; reserve `total` bytes on the disk first."""
        path = self.folder / name
        with (
            explained_write_errors(path, num_bytes=total, preserved="all finished items are kept"),
            path.open("r+b" if path.exists() else "wb") as file,
        ):
            if total > os.fstat(file.fileno()).st_size and hasattr(os, "posix_fallocate"):
                try:
                    os.posix_fallocate(file.fileno(), 0, total)
                except OSError as error:
                    if error.errno not in (
                        errno.EINVAL,
                        errno.EOPNOTSUPP,
                    ):  # some file systems cannot reserve
                        raise
            file.seek(offset)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
