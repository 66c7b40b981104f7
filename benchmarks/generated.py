"""Generated histories as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset, Domain, write_dataset


def write_histories(folder: Path, domains: list[Domain], items: np.ndarray) -> Dataset:
    """Writes histories of one length, (users, T), the last two items being the targets."""
    users, length = items.shape
    count = domains[-1].stop
    table = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "domain": [domain.name for domain in domains for _ in range(len(domain))],
            "title": [f"title {n}" for n in range(count)],
            "image": [None] * count,
        },
        schema_overrides={"image": pl.String},
    )
    offsets = np.arange(users + 1) * length
    return write_dataset(
        folder,
        domains=domains,
        item_table=table,
        user_ids=pl.Series([f"u{n}" for n in range(users)]),
        items=items.ravel().astype(np.int32),
        times=np.arange(items.size),
        offsets=offsets,
        train_lengths=np.full(users, length - 2),
        valid=offsets[1:] - 2,
        test=offsets[1:] - 1,
    )
