"""Encode items batch by batch."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from hafvt.errors import HafvtError
from hafvt.features.encoders.base import ContentError, Encoder, Float32
from hafvt.features.modalities import MODALITIES
from hafvt.features.table import NO_DIRECTION


class EncodedBatch(NamedTuple):
    """The raw rows of consecutive items.

    Attributes:
        start: index of the first item.
        size: number of items.
        items: (n,) indices of the items that have a raw row.
        rows: (n, d) raw rows, finite and not zero; d is 0 if there is none.
        problems: what is wrong with some of the items, by index of the item.
    """

    start: int
    size: int
    items: npt.NDArray[np.int64]
    rows: Float32
    problems: dict[int, str]


def iter_encoded_batches(
    name: str,
    encoder: Encoder,
    item_ids: Sequence[str],
    values: Sequence[str | None],
    image_root: Path | None,
    batch_size: int = 64,
) -> Iterator[EncodedBatch]:
    """Yield the encoded batches of items, while the content of the next batch is being loaded.

    Args:
        name: the modality.
        encoder: its encoder.
        item_ids: of the items.
        values: the cells of the modality's column, one for each item.
        image_root: the folder that relative paths start from.
        batch_size: items of a batch.

    Raises:
        HafvtError: the encoder failed; the message names the item.
    """

    def load(value: str | None) -> tuple[Any, str | None]:
        """Return the usable content of an item and what is wrong with it; None for none."""
        if value is None or not value.strip():
            return None, f"no {name} given"
        try:
            return MODALITIES[name].load(value, image_root), None
        except ContentError as error:
            return error.content, str(error)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        loading = pool.map(load, values[:batch_size])
        for first in range(0, len(values), batch_size):
            loaded = dict(enumerate(loading, start=first))  # by item
            loading = pool.map(load, values[first + batch_size : first + 2 * batch_size])
            problems = {item: problem for item, (_, problem) in loaded.items() if problem is not None}
            contents = {item: content for item, (content, _) in loaded.items() if content is not None}
            items = np.array(list(contents), dtype=np.int64)
            rows = np.empty((0, 0), dtype=np.float32)
            if len(items):
                rows = _encode(encoder, {item_ids[item]: content for item, content in contents.items()})
                usable = np.isfinite(rows).all(axis=1) & (rows != 0).any(axis=1)
                problems |= dict.fromkeys(items[~usable].tolist(), NO_DIRECTION)
                items, rows = items[usable], rows[usable]
            yield EncodedBatch(first, len(loaded), items, rows, problems)


def _encode(encoder: Encoder, contents: dict[str, Any]) -> Float32:
    """Return the raw rows of contents by item id; if the encoder fails, find the item and name it."""
    try:
        return encoder.encode(list(contents.values()))
    except (HafvtError, MemoryError):
        raise
    except Exception as failure:  # encoders of any library raise errors of many types
        error, items = failure, f"items {next(iter(contents))!r} to {list(contents)[-1]!r} together"
        for item_id, content in contents.items():
            if not encoder.needs_all_items:
                try:
                    encoder.encode([content])
                except Exception as failure_of_one:
                    error, items = failure_of_one, f"item {item_id!r}"
                    break
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[0][:300]
        raise HafvtError(
            f"the encoder failed at {items} ({reason}): correct it, or if memory lacks, choose a smaller "
            "--batch-size"
        ) from failure
