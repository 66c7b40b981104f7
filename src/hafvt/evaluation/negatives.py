"""Sampled negatives: the items that a target is ranked among, drawn once and stored in the dataset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np

from hafvt.data.dataset import Dataset, Int32, Int64
from hafvt.errors import HafvtError
from hafvt.files import atomic_file, explained_read_errors, read_json, sha256, verify_files, write_json

NUM_NEGATIVES = 999
SEED = 2040  # of C2DSR's published code


def load_negatives(
    data: Dataset, split: Literal["valid", "test"], name: str, draw: Callable[[Dataset, Int64], Int32]
) -> Int32:
    """Return the negatives of a split's targets by a protocol's `draw`, see `Protocol.draw_negatives`.

    The first call stores them for all models in `negatives/NAME-SPLIT.npy` of the dataset's folder.

    Raises:
        HafvtError: the stored file is damaged, or a domain has a single item.
    """
    path = data.folder / "negatives" / f"{name}-{split}.npy"
    manifest_path = path.with_suffix(".json")
    if not manifest_path.exists():
        negatives = draw(data, data.valid if split == "valid" else data.test)
        path.parent.mkdir(exist_ok=True)
        with atomic_file(path) as temporary, temporary.open("wb") as file:
            np.save(file, negatives)
        targets, each = negatives.shape
        write_json(manifest_path, {"sha256": sha256(path), "seed": SEED, "targets": targets, "each": each})
    remedy = f"remove {path.parent}, and the next evaluation draws it again"
    with explained_read_errors(manifest_path, remedy):
        verify_files(path.parent, {path.name: read_json(manifest_path, remedy)["sha256"]}, remedy)
    with explained_read_errors(path, remedy):
        stored: Int32 = np.load(path, mmap_mode="r", allow_pickle=False)
    return stored


def draw_with_replacement(data: Dataset, positions: Int64) -> Int32:
    """Draw items of each target's domain uniformly, with replacement, (n, 999), as C2DSR's code does.

    Only the target itself is excluded: repetitions and items of the user's history are among the negatives.
    """
    random = np.random.default_rng(SEED)
    negatives = np.empty((len(positions), NUM_NEGATIVES), dtype=np.int32)
    starts, sizes = _target_slices(data, positions)
    if (sizes < 2).any():
        raise HafvtError(f"{data.folder}: a domain of a single item has no negatives: use --protocol full")
    columns = np.asarray(data.items)[positions] - starts
    for row, (start, size, target) in enumerate(zip(starts, sizes, columns, strict=True)):
        draws = random.integers(size - 1, size=NUM_NEGATIVES)
        negatives[row] = start + draws + (draws >= target)
    return negatives


def draw_unseen(data: Dataset, positions: Int64) -> Int32:
    """Draw distinct items of each target's domain, except the target and the user's history, (n, 999)."""
    random = np.random.default_rng(SEED)
    negatives = np.full((len(positions), NUM_NEGATIVES), -1, dtype=np.int32)
    starts, sizes = _target_slices(data, positions)
    firsts = data.offsets[data.users_at(positions)]
    for row, (start, size, first, position) in enumerate(zip(starts, sizes, firsts, positions, strict=True)):
        excluded = np.unique(np.asarray(data.items[first : position + 1])) - start  # history and target
        excluded = excluded[(excluded >= 0) & (excluded < size)]
        count = min(NUM_NEGATIVES, size - len(excluded))
        draws = random.choice(size - len(excluded), count, replace=False)
        # The k-th allowed item is item k plus the number of excluded items before it.
        skipped = np.searchsorted(excluded - np.arange(len(excluded)), draws, side="right")
        negatives[row, :count] = start + draws + skipped
    return negatives


def _target_slices(data: Dataset, positions: Int64) -> tuple[Int64, Int64]:
    """Return the first item and the number of items of each target's domain, (n,) each."""
    numbers = data.domains_of(np.asarray(data.items)[positions])
    starts, sizes = np.array([(domain.start, len(domain)) for domain in data.domains]).T
    return starts[numbers], sizes[numbers]
