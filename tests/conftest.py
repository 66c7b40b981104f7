"""Small datasets that every part of the suite may stand on."""

from __future__ import annotations

import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from hafvt.data.batches import Batch
from hafvt.data.dataset import Dataset, Domain, write_dataset
from hafvt.features.table import write_table

pytest_plugins = ["tests.served"]
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell starts its background jobs so
    signal.signal(signal.SIGINT, signal.default_int_handler)

SMALL_PARAMS = {
    "hafvt": {"id_width": 8},
    "gru4rec": {"width": 8},
    "sasrec": {"width": 8},
    "srgnn": {"width": 8},
    "pinet": {"width": 8},
    "psjnet": {"width": 8},
    "mifn": {"width": 8},
    "tricdr": {"width": 8, "pretrain_steps": 2},
    "c2dsr": {"width": 8},
    "item-knn": {},
    "popularity": {},
    "recent-popularity": {"days": 10},
    "seasonal-popularity": {},
}
"""Hyperparameters of small models for quick tests, by model."""


torch.set_num_threads(2)  # for fixtures of the session, which come before those of a test


@pytest.fixture(autouse=True)
def two_torch_threads() -> None:
    """Give every test the same number of threads, on which sums depend; some tests change it."""
    torch.set_num_threads(2)


SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture
def shared_data() -> Path:
    """The real data beside the project; a test that needs it is skipped where it is missing."""
    if not SHARED.exists():
        pytest.skip(f"the real data are not at {SHARED}")
    return SHARED


def as_batch(histories: list[list[int]], pad: int = 44, width: int = 0) -> Batch:
    """Returns histories as a batch whose padding holds an item's number, which must not matter."""
    width = max(width, *map(len, histories))
    rows = [history + [pad] * (width - len(history)) for history in histories]
    return Batch(torch.tensor(rows), torch.tensor([len(history) for history in histories]))


def write_small(
    folder: Path,
    *,
    users: int = 40,
    sizes: tuple[int, ...] = (30, 20),
    seed: int = 0,
    with_features: bool = True,
) -> Dataset:
    """Writes random histories in which each item tends to follow its predecessor, with frozen vectors."""
    random = np.random.default_rng(seed)
    stops = np.cumsum(sizes)
    domains = [
        Domain(f"d{n}", int(stop - size), int(stop))
        for n, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    ]
    total = int(stops[-1])
    lengths = random.integers(4, 12, users)
    offsets = np.concatenate([[0], lengths.cumsum()])
    items = np.empty(offsets[-1], dtype=np.int32)
    for start, stop in pairwise(offsets):
        items[start] = random.integers(total)
        for slot in range(start + 1, stop):
            items[slot] = (items[slot - 1] + 7) % total if random.random() < 0.8 else random.integers(total)
    table = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(total)],
            "domain": [d.name for d in domains for _ in range(len(d))],
            "title": [f"title {n}" for n in range(total)],
            "image": [None] * total,
        },
        schema_overrides={"image": pl.String},
    )
    data = write_dataset(
        folder,
        domains=domains,
        item_table=table,
        user_ids=pl.Series([f"u{n}" for n in range(users)]),
        items=items,
        times=1_500_000_000 + 40_000 * np.arange(len(items)),
        offsets=offsets,
        train_lengths=lengths - 2,
        valid=offsets[1:] - 2,
        test=offsets[1:] - 1,
    )
    if with_features:
        for name, width in (("image", 12), ("title", 8)):
            rows = random.normal(size=(total, width)).astype(np.float32)
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            present = random.random(total) > 0.1
            rows[~present] = 0
            target = folder / "features" / name
            write_table(target, rows.astype(np.float16), present, {"encoder": "test"})
    return data


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    """Two domains, forty users, pictures and titles."""
    return write_small(tmp_path / "small")


@pytest.fixture
def make_small(tmp_path: Path) -> Callable[..., Dataset]:
    """Returns a maker of such datasets, each in a folder of its own."""
    count = 0

    def make(**changes: object) -> Dataset:
        nonlocal count
        count += 1
        return write_small(tmp_path / f"small{count}", **changes)  # type: ignore[arg-type]

    return make
