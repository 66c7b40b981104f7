"""Amazon's dumps of reviews as the paper's scenarios: `hafvt prepare-amazon`.

C2DSR's authors did not publish how they cut their release out of the dumps. The rule here is reconstructed
from the release: a user's merged history is cut into blocks, each of which ends at its 15th item or before
the first item that is more than a year after the block's first. Each block is then extended backwards to 15
items of one year. For 96 % of the Food-Kitchen users with two sequences, this gives exactly the sequences of
the release (`benchmarks/windows.py`). Users with many sequences have more of them, by an unknown rule.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from hafvt.data.dataset import DATASET, Int32, Int64
from hafvt.data.filters import is_active_in_all_domains, k_core
from hafvt.data.order import sort_histories, user_offsets
from hafvt.data.sources.amazon_dumps import PRODUCT_SCHEMA, DumpFile, find_dumps, read_products, review_parser
from hafvt.data.sources.base import PreparedSource, SourceTables, domain_names, prepare_source, source_folder
from hafvt.data.sources.checks import SECONDS_PER_DAY, sequence_checks, table1_checks
from hafvt.errors import HafvtError
from hafvt.files import check_output_folder
from hafvt.progress import Advance, progress
from hafvt.settings import Count, OutFolder, Seed, check_arguments

WINDOW_DAYS = {"year": 365, "month": 30, "none": None}

Dumps = Mapping[str, tuple[DumpFile, DumpFile | None]]  # domain -> files of reviews and of products


@dataclass(frozen=True)
class ReviewLog:
    """Reviews of all domains with users and items as numbers.

    Attributes:
        users: (reviews,) number of the user.
        items: (reviews,) number of the item, domain after domain.
        times: (reviews,) seconds since 1970.
        starts: (domains + 1,) first item of each domain, and the number of items.
    """

    users: Int32
    items: Int32
    times: Int64
    starts: Int64

    def domains(self) -> Int32:
        """Return the domain index of each review, (reviews,)."""
        return (np.searchsorted(self.starts, self.items, side="right") - 1).astype(np.int32)

    def select(self, rows: Int64 | npt.NDArray[np.bool_]) -> ReviewLog:
        """Return the reviews that row numbers or a mask select, in that order."""
        return replace(self, users=self.users[rows], items=self.items[rows], times=self.times[rows])

    def summary(self, step: str) -> str:
        """Return a line with the numbers of users, items and reviews after a step."""
        users, items = len(np.unique(self.users)), len(np.unique(self.items))
        return f"{step}: {users:,} users, {items:,} items, {len(self.users):,} reviews"


@check_arguments
def prepare_amazon(
    folder: str | Path,
    out: OutFolder,
    *,
    domains: dict[str, str],
    window: Literal["year", "month", "none"] = "year",
    min_interactions: Count = 10,
    min_per_domain: Count = 3,
    max_length: Annotated[int, Field(ge=2, le=1_000_000)] = 15,
    ties: Literal["random", "c2dsr"] = "random",
    seed: Seed = 0,
    overwrite: bool = False,
) -> PreparedSource:
    """Turn Amazon's dumps of 2014, 2018 or 2023 into a dataset of sequences, as the paper does.

    Users need reviews in all domains. Users and items with fewer than `min_interactions` reviews are removed
    until none is left; of two reviews of one item by one user the earlier counts. Each history is cut into
    sequences of at most one window and `max_length` items, named USER#NUMBER; sequences need at least
    `min_per_domain` items of each domain. The latest sequence of each user is for validation or test, half of
    them each, drawn at random; the others are for training. Titles, addresses of images (image_url),
    categories, brands and related items come from the file of products. Malformed lines are counted and
    listed.

    Example: hafvt prepare-amazon raw --domains movie=Movies_and_TV book=Books --window month --out data/mb

    Args:
        folder: folder of the dumps, named as the publisher does, plain or .gz.
        out: the folder to write.
        domains: name of each domain and the publisher's category for it, in the order of the catalog.
        window: longest span of a sequence: year (365 days, Food-Kitchen), month (30, Movie-Book) or none.
        min_interactions: reviews that every user and every item needs.
        min_per_domain: items of each domain that a sequence needs.
        max_length: largest number of items of a sequence.
        ties: order of reviews with equal times: random, or c2dsr, which puts the later domain last, so that
            most targets are of that domain, as in the release.
        seed: seed of the numbering, of ties and of the split.
        overwrite: replace a dataset folder that exists.

    Raises:
        InputError: a file is damaged or in an unknown format; names file, row, value and remedy.
        HafvtError: a setting is wrong, a file is missing, or no sequence is left.
    """
    folder, out = source_folder(folder), Path(out)
    check_output_folder(out, DATASET, overwrite=overwrite)
    domains = dict(zip(domain_names(domains), domain_names(domains.values()), strict=True))
    if not domains:
        raise HafvtError("--domains needs NAME=CATEGORY for each domain")
    dumps = {name: find_dumps(folder, category) for name, category in domains.items()}
    files = [file for pair in dumps.values() for file in pair if file]
    window_days = WINDOW_DAYS[window]
    with progress("prepare-amazon", sum(file.path.stat().st_size >> 20 for file in files), "MiB") as advance:
        log, user_ids, item_ids, num_shared = _read_log(dumps, advance)
        steps = [log.summary("read")]
        log = log.select(is_active_in_all_domains(log.users, log.domains(), len(domains), 1)[log.users])
        log = _first_reviews(log)
        steps.append(log.summary("users of all domains, an item once"))
        item_domains = np.repeat(np.arange(len(domains), dtype=np.int32), np.diff(log.starts))
        core = k_core(
            log.users,
            log.items,
            item_domains,
            min_per_domain=1,
            min_per_item=min_interactions,
            min_per_user=min_interactions,
        )
        log = log.select(core.interactions)
        steps.append(log.summary(f"at least {min_interactions} reviews of each"))
        log = log.select(_chronological_order(log, ties, seed))
        starts, stops = _cut_sequences(log, window_days, min_per_domain, max_length)
        if not len(starts):
            raise HafvtError(
                "no sequence is left:\n  {}\nLower --min-interactions or --min-per-domain, or check that the "
                "domains share users".format("\n  ".join(steps))
            )
        is_latest = np.append(np.diff(log.users[starts]) != 0, True)  # of the sequences of a user
        log, names = _sequence_log(log, starts, stops, user_ids)
        del user_ids
        steps.append(log.summary(f"{len(names):,} sequences"))
        log, item_ids = _renumber_items(log, item_ids, seed)
        items = _item_table(log, item_ids, dumps, advance)

    tables = SourceTables(
        interactions=pl.DataFrame(
            {
                "user_id": pl.Series(names).gather(log.users),
                "item_id": pl.Series(item_ids).gather(log.items),
                "timestamp": log.times,
                "part": _draw_parts(user_offsets(log.users, len(names)), is_latest, seed),
            }
        ),
        items=items,
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
                file.path.name: {
                    "bytes": file.path.stat().st_size,
                    "rows": file.rows,
                    "malformed": file.malformed,
                }
                for file in files
            },
            "steps": steps,
        },
        ties_order=ties,
    )
    dataset = prepare_source(tables, out, overwrite=overwrite)
    notes = [*steps, *map(str, files)]
    if num_shared:
        notes.append(
            f"{num_shared:,} items are in two categories: their reviews in the later one are left out"
        )
    notes += [
        f"no products of {domains[name]} in {folder}: its items have neither titles nor images"
        for name, (_, products) in dumps.items()
        if products is None
    ]
    titles, addresses = (items[name].count() for name in ("title", "image_url"))
    notes.append(f"{titles:,} of {len(items):,} items have a title, {addresses:,} the address of an image")
    checks = (*table1_checks(dataset), *sequence_checks(dataset, window_days))
    return PreparedSource(dataset, checks, tuple(notes))


def _read_log(dumps: Dumps, advance: Advance) -> tuple[ReviewLog, list[str], list[str], int]:
    """Read the reviews of all domains by users of the first domain; number ids on the way, to save memory.

    An item of two domains keeps the reviews of the earlier one only.

    Returns:
        The reviews, ids of the users, ids of the items, and the number of items of two domains.
    """
    user_numbers: dict[str, int] = {}
    item_numbers: dict[str, int] = {}
    users, items, times = array("i"), array("i"), array("q")
    starts, num_shared = [0], 0
    for reviews, _ in dumps.values():
        shared = set()
        for user, item, time in reviews.parse_lines(review_parser(reviews.path), advance):
            if len(starts) == 1:
                user_numbers.setdefault(user, len(user_numbers))
            elif user not in user_numbers:
                continue
            number = item_numbers.setdefault(item, len(item_numbers))
            if number < starts[-1]:
                shared.add(number)
                continue
            users.append(user_numbers[user])
            items.append(number)
            times.append(time)
        starts.append(len(item_numbers))
        num_shared += len(shared)
    log = ReviewLog(
        np.frombuffer(users, dtype=np.int32),
        np.frombuffer(items, dtype=np.int32),
        np.frombuffer(times, dtype=np.int64),
        np.array(starts),
    )
    return log, list(user_numbers), list(item_numbers), num_shared


def _first_reviews(log: ReviewLog) -> ReviewLog:
    """Return the earliest review of each item by each user."""
    pairs = log.users.astype(np.int64) * log.starts[-1] + log.items  # one number for each user and item
    order = np.lexsort((log.times, pairs))
    _, firsts = np.unique(pairs[order], return_index=True)
    return log.select(order[firsts])


def _chronological_order(log: ReviewLog, ties: str, seed: int) -> Int64:
    """Return the row numbers of the reviews by user and time."""
    random = np.random.default_rng([seed, 2])
    order = sort_histories(log.users, log.items, log.times, ties="random", random=random)
    if ties == "random":
        return order
    return order[np.lexsort((log.domains()[order], log.times[order], log.users[order]))]


def _cut_sequences(
    log: ReviewLog, days: int | None, min_per_domain: int, max_length: int
) -> tuple[Int64, Int64]:
    """Return where sequences with enough items of each domain start and stop in a sorted log."""
    starts, stops = cut_blocks(log.users, log.times, days, max_length)
    domains = log.domains()
    is_kept = stops - starts > 1
    for domain in range(len(log.starts) - 1):
        count_before = np.concatenate([[0], np.cumsum(domains == domain)])
        is_kept &= count_before[stops] - count_before[starts] >= min_per_domain
    return starts[is_kept], stops[is_kept]


def cut_blocks(users: Int32, times: Int64, days: int | None, max_length: int) -> tuple[Int64, Int64]:
    """Return where the blocks of sorted histories start and stop, see the module's docstring.

    Args:
        users: (n,) user of each review; those of a user are adjacent, oldest first.
        times: (n,) seconds since 1970.
        days: longest time span of a block; None for any.
        max_length: largest number of items of a block.
    """
    max_seconds = days * SECONDS_PER_DAY if days else np.iinfo(np.int64).max
    ends: list[int] = []
    start, block_user, start_time = 0, -1, 0
    for row, (user, time) in enumerate(zip(users.tolist(), times.tolist(), strict=True)):
        if row and (user != block_user or row - start >= max_length or time - start_time > max_seconds):
            ends.append(row)
            start = row
        if row == start:
            block_user, start_time = user, time
    if len(users):
        ends.append(len(users))
    stops = np.array(ends, dtype=np.int64)
    starts = np.maximum(stops - max_length, np.searchsorted(users, users[stops - 1]))
    while (is_too_long := times[stops - 1] - times[starts] > max_seconds).any():
        starts[is_too_long] += 1
    return starts, stops


def _sequence_log(
    log: ReviewLog, starts: Int64, stops: Int64, user_ids: list[str]
) -> tuple[ReviewLog, list[str]]:
    """Return a log in which each sequence is a user, and the names of the sequences."""
    lengths = stops - starts
    numbers = np.arange(len(starts), dtype=np.int32)
    rows = np.repeat(numbers, lengths)
    offsets = user_offsets(rows, len(starts))
    slots = np.repeat(starts - offsets[:-1], lengths) + np.arange(offsets[-1])
    users = log.users[starts]
    first_of_user = np.searchsorted(users, users)
    names = [f"{user_ids[user]}#{n}" for user, n in zip(users, numbers - first_of_user, strict=True)]
    return replace(log.select(slots), users=rows), names


def _renumber_items(log: ReviewLog, item_ids: list[str], seed: int) -> tuple[ReviewLog, list[str]]:
    """Number the items with reviews, domain by domain, in a random order."""
    random = np.random.default_rng([seed, 0])
    used = np.unique(log.items)
    starts = np.searchsorted(used, log.starts)
    # sorted by id first, so that the order of the items in the files has no influence
    ids = np.array(item_ids, dtype=object)[used]
    order = np.concatenate([a + np.argsort(ids[a:b])[random.permutation(b - a)] for a, b in pairwise(starts)])
    new_number = np.empty(len(item_ids), dtype=np.int32)
    new_number[used[order]] = np.arange(len(used), dtype=np.int32)
    return replace(log, items=new_number[log.items], starts=starts), ids[order].tolist()


def _item_table(log: ReviewLog, item_ids: list[str], dumps: Dumps, advance: Advance) -> pl.DataFrame:
    """Return the items with the columns of `PRODUCT_SCHEMA` from the files of products."""
    frames = [read_products(file, item_ids, advance) for _, file in dumps.values() if file]
    products = pl.concat([pl.DataFrame(schema=PRODUCT_SCHEMA), *frames])
    products = products.unique("item_id", keep="first", maintain_order=True)
    items = pl.DataFrame({"item_id": item_ids, "domain": np.repeat(list(dumps), np.diff(log.starts))})
    items = items.join(products, on="item_id", how="left", maintain_order="left")
    return items.with_columns(image=pl.lit(None, pl.String))


def _draw_parts(offsets: Int64, is_latest: npt.NDArray[np.bool_], seed: int) -> pl.Series:
    """Return `part` of each interaction, see `SourceTables`; latest sequences are drawn for valid or test."""
    parts = np.full(offsets[-1], "train", dtype=object)
    parts[np.repeat(is_latest, np.diff(offsets))] = None
    is_valid = np.random.default_rng([seed, 3]).permutation(np.arange(is_latest.sum()) % 2 == 0)
    parts[offsets[1:][is_latest] - 1] = np.where(is_valid, "valid", "test")
    return pl.Series(parts.tolist(), dtype=pl.String)
