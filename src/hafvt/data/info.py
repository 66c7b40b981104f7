"""`hafvt info`: counts of a dataset."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hafvt.data.attributes import attribute_names
from hafvt.data.dataset import Bool, Dataset, Int64
from hafvt.data.leakage import Leakage, measure_leakage
from hafvt.data.order import TimeTies, count_ties
from hafvt.data.repeats import RepeatCounts
from hafvt.data.times import unix_ticks
from hafvt.files import explained_read_errors, read_json, verify_files
from hafvt.settings import check_arguments
from hafvt.tables import align_columns

TIE_ORDER = {"random": "in random order", "input": "in the order of the input", "c2dsr": "later domain last"}


@dataclass(frozen=True)
class HistoryLengths:
    """Lengths of the histories that are not empty."""

    minimum: int
    median: float
    mean: float
    maximum: int

    @classmethod
    def of(cls, lengths: Int64) -> HistoryLengths:
        """Summarize (users,) lengths; lengths of 0 are left out."""
        lengths = lengths[lengths > 0]
        if not len(lengths):
            return cls(0, 0.0, 0.0, 0)
        return cls(int(lengths.min()), float(np.median(lengths)), float(lengths.mean()), int(lengths.max()))


@dataclass(frozen=True)
class DomainInfo:
    """Counts of a domain: items, interactions and targets of the domain, and users with such interactions.

    Attributes:
        lengths: interactions in this domain per user with any.
        without_interactions: items without interactions.
        with_title: items with a title.
        with_image: items with the path of an image.
        with_features: items with a feature vector, by modality.
        repeats: next items of the training part that the history contains already.
    """

    name: str
    items: int
    interactions: int
    users: int
    lengths: HistoryLengths
    without_interactions: int
    with_title: int
    with_image: int
    with_features: dict[str, int]
    valid_targets: int
    test_targets: int
    repeats: RepeatCounts


@dataclass(frozen=True)
class DatasetInfo:
    """Counts of a dataset; as text, a table.

    Attributes:
        lengths: lengths of the merged histories.
        overlap: users with interactions in both domains of a pair, and, of more than two domains, in all.
        tie_counts: interactions of a user with equal times.
        tie_order: their order: "random" or "input"; "unknown" for a dataset that `prepare` did not write.
        time_span: first and last time, as they are stored.
        same_time_targets: validation and test targets at the time of the interaction before them.
        cold_items: items held out of training.
        cold_targets: targets among them.
        removed: what each step of `prepare` removed, such as "last=50: 3 of 90 interactions".
        leakage: training interactions that are later than targets; None leaves out the line.
        attributes: the columns of the items table besides id, domain, title and image.
    """

    users: int
    items: int
    interactions: int
    lengths: HistoryLengths
    domains: tuple[DomainInfo, ...]
    overlap: dict[tuple[str, ...], int]
    tie_counts: TimeTies
    tie_order: str
    time_span: tuple[int, int]
    same_time_targets: int
    cold_items: int
    cold_targets: int
    removed: tuple[str, ...]
    leakage: Leakage | None
    attributes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return a plain text table."""
        return "\n".join([*_domain_lines(self), "", *_summary_lines(self)])


@check_arguments
def info(data: str | Path | Dataset) -> DatasetInfo:
    """Count users, items, interactions and targets of a dataset.

    Example: hafvt info data/movies

    Args:
        data: a dataset or its folder.

    Raises:
        HafvtError: the folder is missing or damaged.
    """
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    num_domains, names = len(data.domains), [domain.name for domain in data.domains]
    users = np.repeat(np.arange(data.num_users), np.diff(data.offsets))  # (interactions,)
    domains = data.domains_of(data.items)
    cells = np.bincount(users * num_domains + domains, minlength=data.num_users * num_domains)
    counts = cells.reshape(data.num_users, num_domains)  # interactions of each user in each domain
    if stored := data.manifest.get("ties"):
        tie_counts = TimeTies(stored["adjacent_pairs"], stored["tied_pairs"], data.manifest["duplicates"])
    else:
        tie_counts = count_ties(users.astype(np.int32), np.asarray(data.items), np.asarray(data.times))
    groups = [*combinations(range(num_domains), 2)] + [tuple(range(num_domains))] * (num_domains > 2)
    return DatasetInfo(
        users=data.num_users,
        items=data.num_items,
        interactions=len(data.items),
        lengths=HistoryLengths.of(np.diff(data.offsets)),
        domains=_domain_infos(data, counts),
        overlap={
            tuple(names[n] for n in group): int((counts[:, group] > 0).all(axis=1).sum()) for group in groups
        },
        tie_counts=tie_counts,
        tie_order=stored["order"] if stored else "unknown",
        time_span=(int(data.times.min()), int(data.times.max())),
        same_time_targets=count_same_time_targets(data),
        cold_items=data.manifest.get("cold_items", 0),
        cold_targets=len(data.cold_targets),
        removed=removed_counts(data.manifest),
        leakage=measure_leakage(data),
        attributes=tuple(attribute_names(data.item_table)),
    )


def same_time_line(num_same_time: int, num_targets: int) -> str:
    """Return the line on targets at the time of the interaction before them, often of the same basket."""
    share = num_same_time / max(num_targets, 1)
    counts = f"{num_same_time:,} of {num_targets:,} ({share:.1%})"
    return f"targets at the time of the last item of their history: {counts}"


def count_same_time_targets(data: Dataset) -> int:
    """Return how many validation and test targets have the time of the interaction before them."""
    times, targets = np.asarray(data.times), np.concatenate([data.valid, data.test])
    return int((times[targets] == times[targets - 1]).sum())


def removed_counts(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return what the steps of `prepare` removed, see `DatasetInfo.removed`."""
    steps, lines = manifest.get("counts", []), []
    num_rows = manifest.get("inputs", {}).get("interactions", {}).get("rows", 0)
    for before, after in pairwise([{"interactions": num_rows}, *steps]):
        counts = {key: before.get(key, after[key]) - after[key] for key in ("users", "items", "interactions")}
        if any(counts.values()):
            names = ", ".join(f"{n:,} of {before[key]:,} {key}" for key, n in counts.items() if n)
            lines.append(f"{after['step']}: {names}")
    return tuple(lines)


def _domain_infos(data: Dataset, counts: Int64) -> tuple[DomainInfo, ...]:
    """Return the counts of each domain; `counts` holds the interactions (users, domains)."""
    item_counts = np.bincount(data.items, minlength=data.num_items)
    features = _feature_masks(data)
    valid, test = (data.domains_of(data.items[positions]) for positions in (data.valid, data.test))
    return tuple(
        DomainInfo(
            name=domain.name,
            items=len(domain),
            interactions=int(counts[:, number].sum()),
            users=int((counts[:, number] > 0).sum()),
            lengths=HistoryLengths.of(counts[:, number]),
            without_interactions=int((item_counts[domain.start : domain.stop] == 0).sum()),
            with_title=data.item_table["title"][domain.start : domain.stop].count(),
            with_image=data.item_table["image"][domain.start : domain.stop].count(),
            with_features={
                name: int(mask[domain.start : domain.stop].sum()) for name, mask in features.items()
            },
            valid_targets=int((valid == number).sum()),
            test_targets=int((test == number).sum()),
            repeats=data.repeats[number],
        )
        for number, domain in enumerate(data.domains)
    )


def _feature_masks(data: Dataset) -> dict[str, Bool]:
    """Return which items have a feature vector, (items,) by modality."""
    masks = {}
    for name in data.feature_names:
        path = data.folder / "features" / name / "present.npy"
        remedy = f"run hafvt encode for {name} again"
        with explained_read_errors(path, remedy):
            about = read_json(path.with_name("about.json"), remedy)
            verify_files(path.parent, {path.name: about["sha256"][path.name]}, remedy)
            masks[name] = np.load(path, allow_pickle=False)
    return masks


def _domain_lines(dataset: DatasetInfo) -> list[str]:
    """Return the lines of the table of domains."""
    domains = dataset.domains
    rows = [
        ["", *(d.name for d in domains)],
        ["items", *(f"{d.items:,}" for d in domains)],
        ["  without interactions", *(f"{d.without_interactions:,}" for d in domains)],
        ["  with a title", *(f"{d.with_title:,}" for d in domains)],
        ["  with an image", *(f"{d.with_image:,}" for d in domains)],
        *(
            [f"  with {name} features", *(f"{d.with_features[name]:,}" for d in domains)]
            for name in domains[0].with_features
        ),
        ["interactions", *(f"{d.interactions:,}" for d in domains)],
        ["users", *(f"{d.users:,}" for d in domains)],
        ["  mean history length", *(f"{d.lengths.mean:.1f}" for d in domains)],
        ["  median history length", *(f"{d.lengths.median:g}" for d in domains)],
        ["  longest history", *(f"{d.lengths.maximum:,}" for d in domains)],
        ["repeats (next items that the history contains)", *(f"{d.repeats.share:.1%}" for d in domains)],
        ["validation targets", *(f"{d.valid_targets:,}" for d in domains)],
        ["test targets", *(f"{d.test_targets:,}" for d in domains)],
    ]
    summary = f"{dataset.users:,} users, {dataset.items:,} items, {dataset.interactions:,} interactions"
    return [summary, "", *align_columns(rows)]


def _summary_lines(dataset: DatasetInfo) -> list[str]:
    """Return the lines on overlap, histories, times and cold items."""
    lengths, tie_counts = dataset.lengths, dataset.tie_counts
    tied_share = tie_counts.tied_pairs / max(tie_counts.adjacent_pairs, 1)
    tie_order = TIE_ORDER.get(dataset.tie_order, "in unknown order")
    num_targets = sum(domain.valid_targets + domain.test_targets for domain in dataset.domains)
    first, last = (_format_time(time, dataset.time_span) for time in dataset.time_span)
    lines = [
        f"users of {' and '.join(group)}: {count:,} ({count / max(dataset.users, 1):.1%} of all users)"
        for group, count in dataset.overlap.items()
    ]
    lines += [
        f"merged histories: {lengths.minimum:,} to {lengths.maximum:,} interactions, "
        f"median {lengths.median:g}, mean {lengths.mean:.1f}",
        f"times: {first} to {last}",
        f"equal times: {tie_counts.tied_pairs:,} of {tie_counts.adjacent_pairs:,} adjacent pairs "
        f"({tied_share:.1%})" + (f", {tie_order}" if tie_counts.tied_pairs else ""),
        same_time_line(dataset.same_time_targets, num_targets),
        f"duplicates (interactions with the user, item and time of another): {tie_counts.duplicates:,}",
    ]
    if dataset.leakage and dataset.leakage.leaking_targets:
        lines.append(str(dataset.leakage))
    if dataset.attributes:
        lines.append(f"attributes of items: {', '.join(dataset.attributes)}")
    lines += [f"removed by {step}" for step in dataset.removed]
    if dataset.cold_items:
        lines.append(
            f"held out of training: {dataset.cold_items:,} cold items with {dataset.cold_targets:,} targets"
        )
    return lines


def _format_time(time: int, time_span: tuple[int, int]) -> str:
    """Return a time as a date if all times of the dataset look like times since 1970."""
    if ticks := unix_ticks(*time_span):
        return f"{datetime.fromtimestamp(time // ticks, UTC):%Y-%m-%d %H:%M:%S} UTC"
    return f"{time:,}"
