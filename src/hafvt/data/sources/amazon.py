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
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import polars as pl
from pydantic import Field

from hafvt.data.dataset import Int32, Int64
from hafvt.data.filters import is_active_in_all_domains, k_core
from hafvt.data.order import sort_histories
from hafvt.data.sources.amazon_dumps import PRODUCT_SCHEMA, DumpFile, find_dumps, read_products, review_parser
from hafvt.data.sources.base import PreparedSource, SourceTables, dataset_source, domain_names, prepare_source
from hafvt.data.sources.checks import SECONDS_PER_DAY, sequence_checks, table1_checks
from hafvt.errors import ArgumentError, HafvtError
from hafvt.progress import Advance, progress
from hafvt.settings import Count, OutFolder, Seed, check_arguments

WINDOW_DAYS = {"year": 365, "month": 30, "none": None}

Dumps = Mapping[str, tuple[DumpFile, DumpFile | None]]  # domain -> files of reviews and of products


@check_arguments
@dataset_source
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
    folder = Path(folder)
    domains = dict(zip(domain_names(domains), domain_names(domains.values()), strict=True))
    if not domains:
        raise ArgumentError("--domains needs NAME=CATEGORY for each domain")
    dumps = {name: find_dumps(folder, category) for name, category in domains.items()}
    files = [file for pair in dumps.values() for file in pair if file]
    with progress("prepare-amazon", sum(file.path.stat().st_size >> 20 for file in files), "MiB") as advance:
        log, user_ids, items, num_shared = _read_log(dumps, advance)
        item_domains = items["domain"].to_physical().cast(pl.Int32).to_numpy()
        log, steps = _filter(log, item_domains, len(domains), min_interactions)
        log = _sort(log, item_domains, ties, seed)
        starts, stops = cut_blocks(
            log["user"].to_numpy(), log["time"].to_numpy(), WINDOW_DAYS[window], max_length
        )
        is_kept = stops - starts > 1
        for number in range(len(domains)):
            count_before = np.concatenate([[0], np.cumsum(item_domains[log["item"]] == number)])
            is_kept &= count_before[stops] - count_before[starts] >= min_per_domain
        if not is_kept.any():
            raise HafvtError(
                f"no sequence is left ({'; '.join(steps)}): lower --min-interactions or --min-per-domain, or "
                "check that the domains share users"
            )
        log = _sequence_log(log, starts[is_kept], stops[is_kept], user_ids, seed)
        del user_ids
        steps.append(_summary(f"{log['user'].n_unique():,} sequences", log))
        interactions = log.select(
            pl.col("user").alias("user_id"),
            items["item_id"].gather(log["item"]),
            pl.col("time").alias("timestamp"),
            "part",
        )
        items = _with_products(_shuffle_items(items[log["item"].unique()], seed), dumps, advance)

    tables = SourceTables(
        interactions=interactions,
        items=items.with_columns(image=pl.lit(None, pl.String)),
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
            "inputs": {file.path.name: file.provenance() for file in files},
            "steps": steps,
        },
        tie_order=ties,
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
    checks = (*table1_checks(dataset), *sequence_checks(dataset, WINDOW_DAYS[window]))
    return PreparedSource(dataset, checks, tuple(notes))


def _summary(step: str, log: pl.DataFrame) -> str:
    """Return a line with the numbers of users, items and reviews after a step."""
    return f"{step}: {log['user'].n_unique():,} users, {log['item'].n_unique():,} items, {len(log):,} reviews"


def _read_log(dumps: Dumps, advance: Advance) -> tuple[pl.DataFrame, pl.Series, pl.DataFrame, int]:
    """Read the reviews of all domains by users of the first domain; number ids on the way, to save memory.

    An item of two domains keeps the reviews of the earlier one only.

    Returns:
        The reviews: user, item (both as row numbers) and time in seconds since 1970; the ids of the users;
        the items, domain by domain: item_id, domain; and the number of items of two domains.
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
    log = pl.DataFrame(
        {
            "user": np.frombuffer(users, dtype=np.int32),
            "item": np.frombuffer(items, dtype=np.int32),
            "time": np.frombuffer(times, dtype=np.int64),
        }
    )
    domains = pl.Series(np.repeat(list(dumps), np.diff(starts)), dtype=pl.Enum(list(dumps)))
    item_table = pl.DataFrame({"item_id": list(item_numbers), "domain": domains})
    return log, pl.Series(list(user_numbers), dtype=pl.String), item_table, num_shared


def _filter(
    log: pl.DataFrame, item_domains: Int32, num_domains: int, min_interactions: int
) -> tuple[pl.DataFrame, list[str]]:
    """Return the reviews of frequent users and items, an item once, and a line about each step."""
    steps = [_summary("read", log)]
    domain = item_domains[log["item"]]
    is_active = is_active_in_all_domains(log["user"].to_numpy(), domain, num_domains, 1)
    log = log.filter(is_active[log["user"]]).group_by("user", "item").agg(pl.col("time").min())
    steps.append(_summary("users of all domains, an item once", log))
    core = k_core(
        log["user"].to_numpy(),
        log["item"].to_numpy(),
        item_domains,
        min_per_domain=1,
        min_per_item=min_interactions,
        min_per_user=min_interactions,
    )
    log = log.filter(core.interactions)
    return log, [*steps, _summary(f"at least {min_interactions} reviews of each", log)]


def _sort(log: pl.DataFrame, item_domains: Int32, ties: str, seed: int) -> pl.DataFrame:
    """Return the reviews by user and time."""
    random = np.random.default_rng([seed, 2])
    users, items, times = (log[name].to_numpy() for name in ("user", "item", "time"))
    log = log[sort_histories(users, items, times, tie_order="random", random=random)]
    if ties == "random":
        return log
    return log[np.lexsort((item_domains[log["item"]], log["time"], log["user"]))]


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
    log: pl.DataFrame, starts: Int64, stops: Int64, user_ids: pl.Series, seed: int
) -> pl.DataFrame:
    """Return the reviews of sequences, each with a user of its own, USER#NUMBER, and `part` of each review.

    The latest sequences of all users are drawn for valid or test. `part` is as in `SourceTables`.
    """
    sequences = pl.DataFrame({"user": log["user"].gather(starts), "row": starts, "stop": stops})
    is_latest = sequences["user"].is_last_distinct()
    is_valid = np.random.default_rng([seed, 3]).permutation(np.arange(int(is_latest.sum())) % 2 == 0)
    parts = np.full(len(sequences), "train", dtype=object)
    parts[is_latest] = np.where(is_valid, "valid", "test")
    rows = sequences.select(
        pl.concat_str(
            user_ids.gather(sequences["user"]), pl.int_range(pl.len()).over("user"), separator="#"
        ).alias("user"),
        pl.Series(parts, dtype=pl.String).alias("part"),
        "stop",
        pl.int_ranges("row", "stop"),
    ).explode("row")
    is_trained_or_target = (pl.col("part") == "train") | (pl.col("row") == pl.col("stop") - 1)
    return rows.select(
        "user", pl.when(is_trained_or_target).then("part"), *log.select("item", "time")[rows["row"]]
    )


def _shuffle_items(items: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Return items in a random order within each domain, whatever their order was."""
    random = np.random.default_rng([seed, 0])
    items = items.sort("domain", "item_id")
    return pl.concat([part[random.permutation(len(part))] for part in items.partition_by("domain")])


def _with_products(items: pl.DataFrame, dumps: Dumps, advance: Advance) -> pl.DataFrame:
    """Add the columns of `PRODUCT_SCHEMA` from the files of products."""
    frames = [read_products(file, items["item_id"], advance) for _, file in dumps.values() if file]
    products = pl.concat([pl.DataFrame(schema=PRODUCT_SCHEMA), *frames])
    products = products.unique("item_id", keep="first", maintain_order=True)
    items = items.with_columns(pl.col("domain").cast(pl.String))
    return items.join(products, on="item_id", how="left", maintain_order="left")
