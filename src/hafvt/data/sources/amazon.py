"""Amazon's dumps of reviews -> the paper's scenarios: `hafvt prepare-amazon`.

Nobody published how C2DSR's release was cut out of the dumps. Its lines tell: a user's merged history falls
into blocks, each of which ends at its 15th item or before the first that lies more than a year after the
block's first; each block is then extended backwards to 15 items of one year. Of the users of Food-Kitchen
whose two sequences are both at hand, this gives the very sequences of 96 % (`benchmarks/windows.py`); users
with many sequences have more of them, by a rule that the lines do not tell.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from hafvt.data.dataset import Domain, Int32, Int64, write_dataset
from hafvt.data.filters import is_active_in_all_domains
from hafvt.data.order import count_ties, sort_histories, user_offsets
from hafvt.data.sources.amazon_dumps import DumpFile, Reviews, check_head, collect, find, read_products
from hafvt.data.sources.amazon_lines import PRODUCT
from hafvt.data.sources.checks import DAY, Prepared, structure, table1_checks
from hafvt.errors import HafvtError
from hafvt.progress import progress

DAYS = {"year": 365, "month": 30, "none": None}


@dataclass(frozen=True)
class ReviewLog:
    """Reviews of all domains in numbers.

    Attributes:
        users: (reviews,) row of the users' names.
        items: (reviews,) number of the item, domain after domain.
        times: (reviews,) seconds since 1970.
        starts: (domains + 1,) first item of each domain, and the end.
    """

    users: Int32
    items: Int32
    times: Int64
    starts: Int64

    def domains(self) -> Int32:
        """Returns the domain of each review, (reviews,)."""
        return (np.searchsorted(self.starts, self.items, side="right") - 1).astype(np.int32)

    def take(self, rows: Int64) -> ReviewLog:
        """Returns some of the reviews, in the order of `rows`."""
        return replace(self, users=self.users[rows], items=self.items[rows], times=self.times[rows])

    def said(self, step: str) -> str:
        """Returns how many users, items and reviews there are after a step."""
        users, items = len(np.unique(self.users)), len(np.unique(self.items))
        return f"{step}: {users:,} users, {items:,} items, {len(self.users):,} reviews"


class Sequences(NamedTuple):
    """Parts of a sorted log: the rows [start, stop) of it, user after user, in order."""

    starts: Int64
    stops: Int64


def prepare_amazon(
    raw: str | Path,
    out: str | Path,
    *,
    domains: dict[str, str],
    window: Literal["year", "month", "none"] = "year",
    min_interactions: int = 10,
    min_per_domain: int = 3,
    max_length: int = 15,
    ties: Literal["random", "c2dsr"] = "random",
    seed: int = 0,
    overwrite: bool = False,
) -> Prepared:
    """Turns Amazon's dumps of 2014, 2018 or 2023 into a dataset of sequences, as the paper does.

    Users must have reviews in all domains; users and items with fewer than `min_interactions` go, again and
    again until none is left; of two reviews of one item by one user the earlier counts. Each history is cut
    into sequences of at most one window and `max_length` items, named USER#NUMBER, of which those with at
    least `min_per_domain` items of each domain stay. The latest of each user goes to validation or test, half
    of them each, drawn from the seed; the rest is trained on. Titles, addresses of pictures (image_url),
    categories, brands and related items come from the products' file. Broken lines are counted and named.

    Example: hafvt prepare-amazon raw --domains movie=Movies_and_TV book=Books --window month --out data/mb

    Args:
        raw: folder of the dumps, named as the publisher does, plain or .gz.
        out: the folder to write.
        domains: our name and the publisher's category of each domain, in the order of the catalog.
        window: longest span of a sequence: year (365 days, Food-Kitchen), month (30, Movie-Book) or none.
        min_interactions: reviews that every user and every item needs.
        min_per_domain: items of each domain that a sequence needs.
        max_length: items of a sequence, at most.
        ties: order of reviews of the same time: random, or c2dsr, which puts the later domain last, so that
            most targets are of it, as in the release.
        seed: of the numbering, of ties and of the split.
        overwrite: replace a dataset folder that exists.

    Raises:
        InputError: a file is damaged or in no publisher's format; names file, row, value and remedy.
        HafvtError: a setting is wrong, a file is missing, or nothing is left.
    """
    raw, out = Path(raw), Path(out)
    _check_settings(out, domains, window, min_interactions, min_per_domain, max_length, overwrite)
    found = {name: find(raw, category) for name, category in domains.items()}
    for reviews, products in found.values():  # hours before the second file is opened
        check_head(reviews, products=False)
        if products:
            check_head(products, products=True)

    paths = [path for pair in found.values() for path in pair if path]
    dumps = {path: DumpFile(path) for path in paths}
    with progress("prepare-amazon", sum(path.stat().st_size >> 20 for path in paths), "MiB") as advance:
        users: dict[str, int] = {}
        parts = [
            collect(dumps[reviews], users, grow=number == 0, advance=advance)
            for number, (reviews, _) in enumerate(found.values())
        ]
        item_ids, log, shared = _joined(parts)
        del parts
        steps = [log.said("read")]
        log = _distinct(_everywhere(log))
        steps.append(log.said("users of all domains, an item once"))
        log = _core(log, min_interactions)
        steps.append(log.said(f"at least {min_interactions} reviews of each"))
        log = log.take(_order(log, ties, seed))
        sequences = _sequences(log, DAYS[window], min_per_domain, max_length)
        if not len(sequences.starts):
            told = "\n  ".join(steps)
            raise HafvtError(
                f"no sequence is left:\n  {told}\n"
                "Lower --min-interactions or --min-per-domain, or check that the domains share users"
            )
        names = np.array(list(users), dtype=object)
        del users
        log, offsets, row_names, held = _rows(log, sequences, names)
        steps.append(log.said(f"{len(offsets) - 1:,} sequences"))
        log, item_ids = _renumbered(log, item_ids, seed)
        wanted = set(item_ids)
        frames = [
            read_products(dumps[products], wanted, advance)
            for _, products in found.values()
            if products is not None
        ]

    known = pl.concat([pl.DataFrame(schema=PRODUCT), *frames])
    known = known.unique("item_id", keep="first", maintain_order=True)
    sizes = np.diff(log.starts)
    table = pl.DataFrame({"item_id": item_ids, "domain": np.repeat(list(domains), sizes)}).join(
        known, on="item_id", how="left", maintain_order="left"
    )
    split = np.random.default_rng([seed, 3]).permutation(np.arange(len(held)) % 2 == 0)
    targets = offsets[1:][held] - 1
    tied = count_ties(
        np.repeat(np.arange(len(row_names), dtype=np.int32), np.diff(offsets)), log.items, log.times
    )
    dataset = write_dataset(
        out,
        domains=[Domain(n, a, b) for n, (a, b) in zip(domains, pairwise(log.starts.tolist()), strict=True)],
        item_table=table.with_columns(image=pl.lit(None, pl.String)),
        user_ids=pl.Series(row_names),
        items=log.items,
        times=log.times,
        offsets=offsets,
        train_lengths=np.where(np.isin(np.arange(len(row_names)), held), 0, np.diff(offsets)),
        valid=targets[split],
        test=targets[~split],
        metadata={
            "settings": {
                "source": "amazon",
                "domains": domains,
                "window": window,
                "min_interactions": min_interactions,
                "min_per_domain": min_per_domain,
                "max_length": max_length,
                "ties": ties,
                "seed": seed,
            },
            "inputs": {
                path.name: {"bytes": path.stat().st_size, "rows": d.rows, "broken": d.broken}
                for path, d in dumps.items()
            },
            "steps": steps,
            "ties": {"order": ties, "adjacent_pairs": tied.adjacent_pairs, "tied_pairs": tied.tied_pairs},
            "duplicates": tied.duplicates,
        },
        overwrite=overwrite,
    )
    notes = [*steps, *map(str, dumps.values())]
    if shared:
        notes.append(f"{shared:,} items are of two categories: their reviews in the later one are left out")
    notes += [
        f"no products of {domains[name]} in {raw}: its items have neither titles nor pictures"
        for name, (_, products) in found.items()
        if products is None
    ]
    titled, pictured = (int(table[name].is_not_null().sum()) for name in ("title", "image_url"))
    notes.append(f"{titled:,} of {len(table):,} items have a title, {pictured:,} the address of a picture")
    return Prepared(dataset, (*table1_checks(dataset), *structure(dataset, DAYS[window])), tuple(notes))


def _check_settings(
    out: Path,
    domains: dict[str, str],
    window: str,
    min_interactions: int,
    min_per_domain: int,
    max_length: int,
    overwrite: bool,
) -> None:
    if out.exists() and not (overwrite and (out / "manifest.json").is_file()):
        raise HafvtError(
            f"{out} exists already: choose another folder or, if a dataset, say --overwrite true"
        )
    if window not in DAYS:
        raise HafvtError(f"--window {window}: choose {', '.join(DAYS)}")
    if not domains or len(set(domains.values())) < len(domains):
        raise HafvtError("--domains needs NAME=CATEGORY for each domain, no category twice")
    if min(min_interactions, min_per_domain) < 0 or max_length < 2:
        raise HafvtError("--min-interactions and --min-per-domain start at 0, --max-length at 2")


def _joined(parts: list[Reviews]) -> tuple[list[str], ReviewLog, int]:
    """Joins the domains; an item that an earlier domain has is left out of the later ones.

    Returns:
        The ids of all items, the log, and how many items were left out.
    """
    kept: list[str] = []
    known: set[str] = set()
    starts, users, items, times, shared = [0], [], [], [], 0
    for who, what, when, ids in parts:
        new = np.array([item not in known for item in ids], dtype=bool)
        number = np.cumsum(new, dtype=np.int32) - 1 + np.int32(starts[-1])
        rows = new[what]
        users.append(who[rows])
        items.append(number[what[rows]])
        times.append(when[rows])
        kept += [item for item, is_new in zip(ids, new, strict=True) if is_new]
        known.update(ids)
        starts.append(len(kept))
        shared += int((~new).sum())
    log = ReviewLog(np.concatenate(users), np.concatenate(items), np.concatenate(times), np.array(starts))
    return kept, log, shared


def _everywhere(log: ReviewLog) -> ReviewLog:
    """Keeps users with a review in every domain."""
    good = is_active_in_all_domains(log.users, log.domains(), len(log.starts) - 1, 1)
    return log.take(np.flatnonzero(good[log.users]))


def _distinct(log: ReviewLog) -> ReviewLog:
    """Keeps the earliest review of each item by each user."""
    order = np.lexsort((log.times, log.items, log.users))
    users, items = log.users[order], log.items[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (users[1:] != users[:-1]) | (items[1:] != items[:-1])
    return log.take(order[first])


def _core(log: ReviewLog, least: int) -> ReviewLog:
    """Drops users and items with too few reviews, and users who lose a domain, until nothing changes."""
    while True:
        before = len(log.users)
        log = log.take(np.flatnonzero(np.bincount(log.items)[log.items] >= least) if before else np.arange(0))
        log = log.take(
            np.flatnonzero(np.bincount(log.users)[log.users] >= least) if len(log.users) else np.arange(0)
        )
        log = _everywhere(log)
        if len(log.users) == before:
            return log


def _order(log: ReviewLog, ties: str, seed: int) -> Int64:
    """Returns the reviews in the order of users and times."""
    order = sort_histories(
        log.users, log.items, log.times, ties="random", random=np.random.default_rng([seed, 2])
    )
    if ties == "random":
        return order
    later = np.lexsort((log.domains()[order], log.times[order], log.users[order]))
    return order[later]


def _sequences(log: ReviewLog, days: int | None, least: int, most: int) -> Sequences:
    """Cuts sorted histories into sequences; see the module's docstring."""
    ends, begins = blocks(log.users, log.times, days, most)
    domains = log.domains()
    enough = np.ones(len(ends), dtype=bool)
    for domain in range(len(log.starts) - 1):
        met = np.concatenate([[0], np.cumsum(domains == domain)])
        enough &= met[ends] - met[begins] >= least
    return Sequences(begins[enough & (ends - begins > 1)], ends[enough & (ends - begins > 1)])


def blocks(users: Int32, times: Int64, days: int | None, most: int) -> tuple[Int64, Int64]:
    """Cuts histories into blocks; see the module's docstring.

    Args:
        users: (n,) user of each review; those of a user stand together, oldest first.
        times: (n,) seconds since 1970.
        days: longest span; None: any.
        most: items of a block, at most.

    Returns:
        Where each block ends, exclusive, and where it begins, both (blocks,) and in order.
    """
    longest = days * DAY if days else np.iinfo(np.int64).max
    ends: list[int] = []
    first, owner, since = 0, -1, 0
    for row, (user, time) in enumerate(zip(users.tolist(), times.tolist(), strict=True)):
        if row and (user != owner or row - first >= most or time - since > longest):
            ends.append(row)
            first = row
        if row == first:
            owner, since = user, time
    if len(users):
        ends.append(len(users))
    stops = np.array(ends, dtype=np.int64)
    begins = np.maximum(stops - most, np.searchsorted(users, users[stops - 1]))
    while (far := times[stops - 1] - times[begins] > longest).any():
        begins[far] += 1
    return stops, begins


def _rows(
    log: ReviewLog, sequences: Sequences, names: np.ndarray[tuple[int], np.dtype[np.object_]]
) -> tuple[ReviewLog, Int64, list[str], Int64]:
    """Lays the sequences one after the other.

    Returns:
        The log of the sequences, where each starts, their names, and which are their users' latest.
    """
    starts, stops = sequences
    lengths = stops - starts
    offsets = user_offsets(np.repeat(np.arange(len(starts), dtype=np.int32), lengths), len(starts))
    slots = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    owners = log.users[starts]
    firsts = np.searchsorted(owners, owners)
    row_names = [f"{names[u]}#{n}" for u, n in zip(owners, np.arange(len(owners)) - firsts, strict=True)]
    held = np.flatnonzero(np.append(owners[1:] != owners[:-1], True))
    return log.take(slots), offsets, row_names, held


def _renumbered(log: ReviewLog, item_ids: list[str], seed: int) -> tuple[ReviewLog, list[str]]:
    """Numbers the items that are left, domain by domain, in an order drawn from the seed."""
    random = np.random.default_rng([seed, 0])
    met = np.unique(log.items)
    starts = np.searchsorted(met, log.starts)
    # what is drawn must not depend on the order in which the file names the items
    names = np.array(item_ids, dtype=object)[met]
    parts = [a + np.argsort(names[a:b])[random.permutation(b - a)] for a, b in pairwise(starts)]
    order = np.concatenate(parts)
    number = np.empty(len(item_ids), dtype=np.int32)
    number[met[order]] = np.arange(len(met), dtype=np.int32)
    return replace(log, items=number[log.items], starts=starts), names[order].tolist()
