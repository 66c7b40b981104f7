"""The items that a target is ranked among where not all are: drawn once, stored, shared by all models."""

from __future__ import annotations

from typing import Literal

import numpy as np

from hafvt.data.dataset import Dataset, Int32, Int64
from hafvt.errors import HafvtError
from hafvt.files import atomic_file, read_json, sha256, write_json

COUNT = 999
SEED = 2040  # C2DSR's


def negatives(
    data: Dataset, split: Literal["valid", "test"], protocol: Literal["c2dsr", "sampled-unseen"]
) -> Int32:
    """Returns the negatives of a split's targets, drawn at the first call and kept in the dataset's folder.

    Under "c2dsr" they are uniform over the target's domain, with replacement, and only the target itself is
    left out: items of the history and repetitions are among them, as in C2DSR's code. Under "sampled-unseen" they are
    distinct and neither the target nor in its history. The file lies in `negatives/`, its hash beside it.

    Args:
        data: the dataset.
        split: whose targets.
        protocol: how they are drawn.

    Returns:
        (targets, 999) item indices; rows of fewer distinct items, under "sampled-unseen", are filled with -1.

    Raises:
        HafvtError: what is stored is damaged, or a domain has no item but the target.
    """
    path = data.folder / "negatives" / f"{protocol}-{split}.npy"
    about = path.with_suffix(".json")
    positions = data.valid if split == "valid" else data.test
    if not about.exists():
        drawn = with_replacement(data, positions) if protocol == "c2dsr" else distinct(data, positions)
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, drawn)
        targets = len(positions)
        write_json(about, {"sha256": sha256(path), "seed": SEED, "targets": targets, "each": COUNT})
    if not path.exists() or read_json(about)["sha256"] != sha256(path):
        raise HafvtError(f"{path} is damaged: remove {path.parent}, it is made again")
    stored: Int32 = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored


def with_replacement(data: Dataset, positions: Int64) -> Int32:
    """Draws uniformly from the domain of each target, the target left out, (n, 999)."""
    random = np.random.default_rng(SEED)
    drawn = np.empty((len(positions), COUNT), dtype=np.int32)
    starts, sizes = _domains(data, positions)
    if (sizes < 2).any():
        raise HafvtError(f"{data.folder}: a domain has a single item: nothing to rank its targets among")
    columns = np.asarray(data.items)[positions] - starts
    for row, (start, size, target) in enumerate(zip(starts, sizes, columns, strict=True)):
        found = random.integers(size - 1, size=COUNT)
        drawn[row] = start + found + (found >= target)
    return drawn


def distinct(data: Dataset, positions: Int64) -> Int32:
    """Draws distinct items from the domain of each target, its history and itself left out, (n, 999)."""
    random = np.random.default_rng(SEED)
    drawn = np.full((len(positions), COUNT), -1, dtype=np.int32)
    starts, sizes = _domains(data, positions)
    firsts = data.offsets[data.users_at(positions)]
    for row, (start, size, first, position) in enumerate(zip(starts, sizes, firsts, positions, strict=True)):
        out = np.unique(np.asarray(data.items[first : position + 1])) - start  # the history and the target
        out = out[(out >= 0) & (out < size)]
        count = min(COUNT, size - len(out))
        found = random.choice(size - len(out), count, replace=False)
        # The k-th item that is not left out: as many are skipped as left-out ones stand before it.
        drawn[row, :count] = start + found + np.searchsorted(out - np.arange(len(out)), found, side="right")
    return drawn


def _domains(data: Dataset, positions: Int64) -> tuple[Int64, Int64]:
    """Returns first item and size of each target's domain."""
    starts = np.array([d.start for d in data.domains])
    number = np.searchsorted(starts, np.asarray(data.items)[positions], side="right") - 1
    return starts[number], np.array([len(d) for d in data.domains])[number]
