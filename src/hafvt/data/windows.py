"""Windows of a back-test: what a dataset was at several dates, without anything of the future."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from hafvt.data.cut_times import TimeScale
from hafvt.data.dataset import Bool, Dataset, write_dataset
from hafvt.data.order import count_ties, user_offsets
from hafvt.data.splits import Split, cut_at_times
from hafvt.errors import ArgumentError, HafvtError

MAX_WINDOWS = 1000


@dataclass(frozen=True)
class Window:
    """A date of a back-test; times are in the unit of the dataset.

    Attributes:
        valid_from: where training ends and validation starts.
        test_from: the date: where validation ends and test starts.
        until: where test ends; later interactions are unknown.
    """

    valid_from: int
    test_from: int
    until: int


class WindowPart(NamedTuple):
    """The interactions, users and items of a dataset that are known in a window, with their split.

    Attributes:
        is_known: (interactions,) whether an interaction is before the end of the window.
        has_user: (users,) whether a user has such an interaction.
        has_item: (items,) whether an item is in the catalog, see `known_part`.
        split: of the known interactions.
    """

    is_known: Bool
    has_user: Bool
    has_item: Bool
    split: Split


def plan_windows(scale: TimeScale, start: int, every: str, count: int | None) -> list[Window]:
    """Return windows that follow each other; validation is as long as test.

    Args:
        scale: of the times of the interactions.
        start: where the first test period starts.
        every: length of a period, such as 30d, 2w, 1mo or, for times that are no dates, a number.
        count: number of windows; None for all that end before the last interaction.

    Raises:
        ArgumentError: `every` is no such length, or there is no window.
    """
    match = re.fullmatch(r"([1-9][0-9]{0,11})(h|d|w|mo|y|)", every)
    if not match or (match[2] == "") != (scale.ticks_per_second is None):
        example = "30d; the units are h, d, w, mo and y" if scale.ticks_per_second else "100, in their unit"
        raise ArgumentError(f"--every {every}: give the length of a period of these times, such as {example}")
    length, unit = int(match[1]), match[2]

    def bound(number: int) -> int:
        """Return where the test period of a number starts."""
        if scale.ticks_per_second is None:
            return start + number * length
        seconds, rest = divmod(start, scale.ticks_per_second)
        date = pl.from_epoch(pl.Series([seconds]))
        shifted = date.dt.offset_by(f"{number * length}{unit}").dt.epoch("s")[0]
        return int(shifted) * scale.ticks_per_second + rest

    windows: list[Window] = []
    while len(windows) < (count or MAX_WINDOWS):
        number = len(windows)
        window = Window(bound(number - 1), bound(number), bound(number + 1))
        if count is None and window.until > scale.last + 1:
            break
        windows.append(window)
    if not windows:
        raise ArgumentError(
            f"--from {scale.format(start)} --every {every}: the interactions end at "
            f"{scale.format(scale.last)}, before the first window: choose an earlier date or shorter periods"
        )
    return windows


def known_part(data: Dataset, scale: TimeScale, window: Window) -> WindowPart:
    """Return what is known of a dataset in a window.

    An item whose first interaction is at or after the end of the window is left out of the catalog, as nobody
    knows whether it existed. An item without any interaction stays.

    Raises:
        HafvtError: a part of the split or a domain is empty.
    """
    times, items = np.asarray(data.times), np.asarray(data.items)
    is_known = times < window.until
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))
    has_user = np.bincount(users[is_known], minlength=data.num_users) > 0
    known_counts = np.bincount(items[is_known], minlength=data.num_items)
    has_item = (known_counts > 0) | (np.bincount(items, minlength=data.num_items) == 0)
    name = f"the window from {scale.format(window.test_from)} until {scale.format(window.until)}"
    for domain in data.domains:
        if not known_counts[domain.start : domain.stop].any():
            raise HafvtError(
                f"{name}: domain {domain.name!r} has no interactions yet: start later, or prepare without it"
            )
    offsets = user_offsets(users[is_known].astype(np.int32), data.num_users)
    split = cut_at_times(offsets, times[is_known], window.valid_from, window.test_from)
    sizes = {
        "training interactions": int(split.train_lengths.sum()),
        "validation targets": len(split.valid),
        "test targets": len(split.test),
    }
    for part, size in sizes.items():
        if not size:
            raise HafvtError(
                f"{name} has no {part}; the interactions are from {scale.format(scale.first)} to "
                f"{scale.format(scale.last)}: choose another --from, --every or number of --windows"
            )
    return WindowPart(is_known, has_user, has_item, split)


def write_window(
    data: Dataset, folder: str | Path, window: Window, part: WindowPart, metadata: dict[str, Any]
) -> Dataset:
    """Write what is known of a dataset in a window as a dataset of its own, without feature tables.

    Args:
        data: the whole dataset.
        folder: the folder to write.
        window: is recorded in the manifest.
        part: of `known_part`.
        metadata: more of the manifest.
    """
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))[part.is_known]
    new_users = (np.cumsum(part.has_user) - 1)[users].astype(np.int32)
    items = (np.cumsum(part.has_item) - 1)[np.asarray(data.items)[part.is_known]].astype(np.int32)
    times = np.asarray(data.times)[part.is_known]
    bounds = np.concatenate([[0], part.has_item.cumsum()])
    ties = count_ties(new_users, items, times)
    settings = data.manifest.get("settings", {}) | {"split": "time", "valid_share": None, "test_share": None}
    return write_dataset(
        folder,
        domains=[
            replace(domain, start=int(bounds[domain.start]), stop=int(bounds[domain.stop]))
            for domain in data.domains
        ],
        item_table=data.item_table.filter(part.has_item),
        user_ids=data.user_ids.filter(part.has_user),
        items=items,
        times=times,
        offsets=user_offsets(new_users, int(part.has_user.sum())),
        **part.split._replace(train_lengths=part.split.train_lengths[part.has_user])._asdict(),
        image_root=data.image_root,
        metadata={
            "settings": settings,
            "window": [window.valid_from, window.test_from, window.until],
            "ties": {
                "order": data.manifest.get("ties", {}).get("order", "unknown"),
                "adjacent_pairs": ties.adjacent_pairs,
                "tied_pairs": ties.tied_pairs,
            },
            "duplicates": ties.duplicates,
            **metadata,
        },
    )
