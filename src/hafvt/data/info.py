"""`hafvt info`: what a dataset holds."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Dataset, Domain
from hafvt.data.order import Ties, count_ties
from hafvt.features.table import FeatureTable

UNIX_SECONDS = (10**8, 4 * 10**9)  # 1973 to 2096; times outside are taken for another unit


@dataclass(frozen=True)
class Lengths:
    """How long histories are, over the users that have any."""

    least: int
    median: float
    mean: float
    most: int

    @classmethod
    def of(cls, lengths: npt.NDArray[np.int64]) -> Lengths:
        """Summarizes (users,) lengths; those of 0 do not count."""
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return cls(0, 0.0, 0.0, 0)
        return cls(int(lengths.min()), float(np.median(lengths)), float(lengths.mean()), int(lengths.max()))


@dataclass(frozen=True)
class DomainInfo:
    """What a domain holds.

    Attributes:
        name: of the domain.
        items: in the catalog.
        interactions: with these items.
        users: with an interaction in this domain.
        lengths: interactions of such a user in this domain.
        never_met: items without any interaction.
        titled: items with a title.
        pictured: items with the path of a picture.
        features: items with a vector, by modality.
        valid_targets: validation targets in this domain.
        test_targets: test targets in this domain.
    """

    name: str
    items: int
    interactions: int
    users: int
    lengths: Lengths
    never_met: int
    titled: int
    pictured: int
    features: dict[str, int]
    valid_targets: int
    test_targets: int


@dataclass(frozen=True)
class Info:
    """What a dataset holds; as text, a table.

    Attributes:
        users: number of users.
        items: number of items of all domains.
        interactions: number of interactions.
        lengths: of the merged histories.
        domains: one entry each.
        overlap: users with interactions in both domains of a pair; more than two domains: and in all.
        ties: equal times of neighboring interactions, and repeated interactions.
        ties_order: "random" or "input"; "unknown" for a dataset that `prepare` did not make.
        span: first and last time, as they are stored.
        held_out: items held out of training, and targets among them.
    """

    users: int
    items: int
    interactions: int
    lengths: Lengths
    domains: tuple[DomainInfo, ...]
    overlap: dict[tuple[str, ...], int]
    ties: Ties
    ties_order: str
    span: tuple[int, int]
    held_out: tuple[int, int]

    def __str__(self) -> str:
        """Returns a plain text table."""
        return "\n".join(_lines(self))


def info(data: str | Path | Dataset) -> Info:
    """Counts what a dataset holds.

    Example: hafvt info data/movies

    Args:
        data: a dataset or its folder.

    Raises:
        HafvtError: the folder is missing or damaged.
    """
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    lengths = np.diff(data.offsets)
    users = np.repeat(np.arange(data.users, dtype=np.int32), lengths)
    starts = np.array([domain.start for domain in data.domains])
    item_domains = np.searchsorted(starts, np.asarray(data.items), side="right") - 1
    met = np.bincount(users * np.int64(len(starts)) + item_domains, minlength=data.users * len(starts))
    met = met.reshape(data.users, len(starts))  # (users, domains) interactions
    item_counts = np.bincount(data.items, minlength=data.domains[-1].stop)
    features = _features(data)

    said = data.manifest.get("ties")
    if said:
        ties = Ties(said["neighbors"], said["tied"], data.manifest["duplicates"])
    else:
        ties = count_ties(users, np.asarray(data.items), np.asarray(data.times))
    names = [domain.name for domain in data.domains]
    groups: list[tuple[int, ...]] = list(combinations(range(len(names)), 2))
    if len(names) > 2:
        groups.append(tuple(range(len(names))))
    return Info(
        users=data.users,
        items=len(item_counts),
        interactions=len(data.items),
        lengths=Lengths.of(lengths),
        domains=tuple(
            DomainInfo(
                name=domain.name,
                items=len(domain),
                interactions=int(met[:, number].sum()),
                users=int((met[:, number] > 0).sum()),
                lengths=Lengths.of(met[:, number]),
                never_met=int((item_counts[domain.start : domain.stop] == 0).sum()),
                titled=_filled(data.item_table["title"], domain),
                pictured=_filled(data.item_table["image"], domain),
                features={name: int(has[domain.start : domain.stop].sum()) for name, has in features.items()},
                valid_targets=int((item_domains[data.valid] == number).sum()),
                test_targets=int((item_domains[data.test] == number).sum()),
            )
            for number, domain in enumerate(data.domains)
        ),
        overlap={
            tuple(names[n] for n in group): int((met[:, group] > 0).all(axis=1).sum()) for group in groups
        },
        ties=ties,
        ties_order=said["order"] if said else "unknown",
        span=(int(data.times.min()), int(data.times.max())),
        held_out=(data.manifest.get("held_out_items", 0), len(data.cold)),
    )


def _features(data: Dataset) -> dict[str, npt.NDArray[np.bool_]]:
    """Returns which items have a vector, by modality."""
    folders = sorted(path.parent for path in data.folder.glob("features/*/about.json"))
    return {folder.name: FeatureTable.open(folder).present for folder in folders}


def _filled(column: pl.Series, domain: Domain) -> int:
    """Returns how many items of a domain have a value."""
    return len(domain) - column.slice(domain.start, len(domain)).null_count()


def _lines(found: Info) -> list[str]:
    lengths = found.lengths
    rows: list[tuple[str, list[str]]] = [
        ("", [d.name for d in found.domains]),
        ("items", [f"{d.items:,}" for d in found.domains]),
        ("  never interacted with", [f"{d.never_met:,}" for d in found.domains]),
        ("  with a title", [f"{d.titled:,}" for d in found.domains]),
        ("  with a picture", [f"{d.pictured:,}" for d in found.domains]),
    ]
    for name in found.domains[0].features:
        rows.append((f"  with features {name!r}", [f"{d.features[name]:,}" for d in found.domains]))
    rows += [
        ("interactions", [f"{d.interactions:,}" for d in found.domains]),
        ("users", [f"{d.users:,}" for d in found.domains]),
        ("  history, mean", [f"{d.lengths.mean:.1f}" for d in found.domains]),
        ("  history, median", [f"{d.lengths.median:g}" for d in found.domains]),
        ("  history, longest", [f"{d.lengths.most:,}" for d in found.domains]),
        ("validation targets", [f"{d.valid_targets:,}" for d in found.domains]),
        ("test targets", [f"{d.test_targets:,}" for d in found.domains]),
    ]
    head = max(len(title) for title, _ in rows)
    widths = [max(len(cells[n]) for _, cells in rows) for n in range(len(found.domains))]
    lines = [f"{found.users:,} users, {found.items:,} items, {found.interactions:,} interactions", ""]
    for title, cells in rows:
        padded = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{title:<{head}}  {padded}".rstrip())
    lines.append("")
    for group, count in found.overlap.items():
        lines.append(
            f"users of {' and '.join(group)}: {count:,} ({count / max(found.users, 1):.1%} of all users)"
        )
    lines.append(
        f"merged histories: {lengths.least:,} to {lengths.most:,} interactions, "
        f"median {lengths.median:g}, mean {lengths.mean:.1f}"
    )
    first, last = (_moment(time, found.span) for time in found.span)
    lines.append(f"times: {first} to {last}")
    neighbors, tied, duplicates = found.ties
    order = {"random": "put in random order", "input": "left in the order of the input"}
    lines.append(
        f"equal times: {tied:,} of {neighbors:,} pairs of neighbors ({tied / max(neighbors, 1):.1%}), "
        f"{order.get(found.ties_order, 'in an unknown order')}"
    )
    lines.append(f"repeated interactions (same user, item, time): {duplicates:,}")
    if found.held_out[0]:
        lines.append("held out of training: {:,} items, {:,} targets among them".format(*found.held_out))
    return lines


def _moment(time: int, span: tuple[int, int]) -> str:
    """Returns a time as a date where the span looks like seconds since 1970."""
    if UNIX_SECONDS[0] <= span[0] and span[1] <= UNIX_SECONDS[1]:
        return f"{datetime.fromtimestamp(time, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{time:,}"
