"""`hafvt prepare`: read tables, number the ids, filter, split, and write a dataset folder."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from hafvt.data.cold_items import draw_cold_items, find_cold_targets
from hafvt.data.cut_times import TimeScale
from hafvt.data.dataset import DATASET, Bool, Dataset, Domain, Int64, write_dataset
from hafvt.data.filters import is_active_in_all_domains, is_recent, k_core
from hafvt.data.image_paths import locate_images
from hafvt.data.info import removed_counts
from hafvt.data.interaction_log import InteractionLog, number_ids, shuffle_ids, sort_log, warn_of_time_scales
from hafvt.data.leakage import measure_leakage
from hafvt.data.order import count_ties, is_not_duplicate, user_offsets, warn_of_duplicates
from hafvt.data.schema import Table, read_tables
from hafvt.data.splits import Split, leave_one_out, split_at_dates, split_by_time
from hafvt.data.table_options import DEFAULT_OPTIONS, TableOptions
from hafvt.data.titles import normalize_titles
from hafvt.errors import ArgumentError, HafvtError
from hafvt.files import sha256
from hafvt.folders import check_output_folder, folder_lock
from hafvt.progress import progress, report
from hafvt.settings import Count, Folder, OutFolder, PositiveCount, Seed, Share, check_arguments

TieOrder = Literal["random", "input"]
INPUTS_AND_OUTPUT = ("interactions", "items", "out", "overwrite")
"""Arguments of `prepare` that are no settings in the manifest."""


@check_arguments
def prepare(
    interactions: str | Path | Any,
    items: str | Path | Any | None = None,
    out: OutFolder = "dataset",
    *,
    columns: dict[str, str] | None = None,
    domains: list[str] | None = None,
    min_per_domain: Count = 0,
    min_per_item: Count = 0,
    last: PositiveCount | None = None,
    split: Literal["leave-one-out", "time"] = "leave-one-out",
    valid_share: Share = 0.1,
    test_share: Share = 0.1,
    split_at: list[str] | None = None,
    hold_out_items: Share = 0.0,
    ties: TieOrder = "random",
    duplicates: Literal["keep", "drop", "last"] = "keep",
    weight: str | None = None,
    unknown_items: Literal["error", "drop"] = "error",
    image_root: Folder | None = None,
    table_options: TableOptions = DEFAULT_OPTIONS,
    seed: Seed = 0,
    overwrite: bool = False,
) -> Dataset:
    """Turn tables of interactions and items into a dataset folder.

    Ids are text: the number 7 is "7", but not "007". Times are numbers of any unit, or dates and times, which
    become seconds since 1970. Separator, encoding, decimal commas, forms of dates such as 31.12.2025 14:05
    and the folder of the pictures are found where they are plain; guesses, and what each filter removes, are
    reported. Fractional times decide the order of interactions; the dataset stores them rounded down. Titles
    are stored as Unicode NFC without HTML entities. All other columns of the items table, such as category
    and price, are kept as attributes, for rules. An item's domain comes from the items table, or else from
    the interactions. If both tables have a domain column, they must agree; if neither has one, all items form
    one domain.

    Users and the items of each domain are numbered in a random order, so that a number reveals neither time
    nor popularity. The same rows, settings and seed give the same bytes for every type of input. The order of
    the rows matters only if `ties` is "input".

    Example: hafvt prepare --interactions log.csv.gz --items items.csv --out data/movies

    Example: hafvt prepare orders.csv articles.csv data/shop --columns user_id=Kunde item_id=Artikel
    timestamp=Datum domain=Gruppe title=Text --keep "Menge > 0" --unknown-items drop --time-zone Europe/Berlin

    Args:
        interactions: table with the columns user_id, item_id, timestamp and, optionally, domain: a path to
            CSV, JSONL (both also as .gz or .zst) or Parquet, or a data frame.
        items: table with the columns item_id and, optionally, domain, title and image: a path or data frame;
            default: the items of the interactions.
        out: the folder to write.
        columns: your names of the columns above, for both tables, such as user_id=customer.
        domains: the domains to keep, in the order of the catalog; default: all, sorted by name.
        min_per_domain: keep users with at least this many interactions in every domain; 0 keeps all users.
        min_per_item: keep items with at least this many interactions; 0 keeps all items, even those without
            interactions.
        last: keep at most this many interactions of each user, the most recent of all domains; default: all.
        split: "leave-one-out" (last interaction: test, second to last: validation) or "time" (two
            cut-off times, the same for all users).
        valid_share: share of the interactions in the validation period, for --split time.
        test_share: share of the interactions in the test period, for --split time.
        split_at: two dates, such as 2025-10-01 2025-11-01, in place of the shares of --split time: validation
            starts at the first, test at the second. Numbers are in the unit of the input.
        hold_out_items: share of each domain's items, such as 0.1, whose interactions are removed from all
            histories; `evaluate --cold` ranks the removed interactions that are later than the user's
            training interactions.
        ties: order of a user's interactions with equal times: "random", or "input" for the order of the rows.
        duplicates: "drop" keeps one of all interactions with equal user, item and time; "last" keeps only the
            last interaction of each user with each item; "keep" keeps all.
        weight: column of the interactions with their weights in training, such as quantity; default: none.
        unknown_items: what happens to interactions with items that the items table lacks: "error", or "drop".
        image_root: the folder that paths of pictures start from; default: the folder of the items table, or
            the folder beside it that has them. Without a column image, files named ITEM_ID.jpg.
        table_options: how the tables are read.
        seed: seed of the numbering, of the random order of ties and of the choice of held-out items.
        overwrite: replace an existing dataset folder.

    Returns:
        The written dataset.

    Raises:
        InputError: a table is wrong; the message names the file, row, column and value, and how to fix it.
        HafvtError: a setting is wrong, or no interactions are left after the filters.
    """
    if split_at is not None:
        split, split_at = "time", list(map(str, split_at))
        if len(split_at) != 2:
            raise ArgumentError(f"--split-at {' '.join(split_at)}: give two dates, of validation and test")
    settings = {name: value for name, value in locals().items() if name not in INPUTS_AND_OUTPUT}
    settings |= asdict(settings.pop("table_options"))
    settings["columns"] = columns or {}
    settings["image_root"] = None if image_root is None else str(image_root)
    if split != "time" or split_at:
        settings |= {"valid_share": None, "test_share": None}
    elif not (min(valid_share, test_share) > 0 and valid_share + test_share < 1):
        raise ArgumentError(
            "--valid-share and --test-share must be above 0 and below 1 together: correct the shares"
        )
    check_output_folder(out, DATASET, overwrite=overwrite)
    with folder_lock(out), progress("prepare", 5, "steps") as advance:
        inputs = _read_inputs(
            interactions, items, columns or {}, image_root, table_options, domains, unknown_items, weight
        )
        advance(note="read")

        log = number_ids(inputs.interactions, inputs.items, domains)
        image_folder, provenance, step_counts = inputs[2:]
        del inputs  # frees memory: ids as text are large
        warn_of_time_scales(log)
        if domains or not step_counts:
            step_counts.append(_step_counts(f"domains={','.join(domains)}" if domains else "read", log))
        advance(note="numbered")

        if duplicates != "keep":
            log = log.select(is_not_duplicate(log.users, log.items, log.times, log.weights, duplicates))
            step_counts.append(_step_counts(f"duplicates={duplicates}", log))
        log = _filter_users_and_items(log, min_per_domain, min_per_item)
        step_counts.append(_step_counts(f"min_per_domain={min_per_domain}, min_per_item={min_per_item}", log))
        log = sort_log(shuffle_ids(log, seed), ties, seed)
        if last is not None:
            log = log.select(is_recent(log.users, last))
            step_counts.append(_step_counts(f"last={last}", log))
        advance(note="filtered and sorted")

        is_cold = draw_cold_items(log.item_domains, hold_out_items, seed)
        shares = {"valid_share": valid_share, "test_share": test_share} if split == "time" else None
        log, split_parts, cold_targets = _split(log, is_cold, shares, split_at, table_options)
        if hold_out_items:
            step_counts.append(_step_counts(f"hold_out_items={hold_out_items:g}", log))
        advance(note="split")

        counts = {"counts": step_counts, "cold_items": int(is_cold.sum())}
        data = write_log(
            out,
            log,
            split_parts,
            cold_targets=cold_targets,
            tie_order=ties,
            image_root=image_folder,
            metadata={"settings": settings, "inputs": provenance, **counts},
            overwrite=overwrite,
        )
        advance(note="written")
    for line in removed_counts(data.manifest):
        report(f"removed by {line}")
    if (leakage := measure_leakage(data)).leaking_targets:
        report(str(leakage))
    if duplicates == "keep":
        warn_of_duplicates(data.manifest["duplicates"], len(data.items))
    return data


class InputTables(NamedTuple):
    """The tables as they were read, and what the manifest states of them."""

    interactions: Table
    """Interactions that meet `keep`, without unknown items if these are dropped."""
    items: Table | None
    image_folder: Path | None
    """The folder that the paths of pictures start from."""
    provenance: dict[str, Any]
    """Name, size, checksum and number of rows of each input."""
    step_counts: list[dict[str, int | str]]
    """Counts before and after each filter, see `_step_counts`."""


def _read_inputs(
    interactions: Any,
    items: Any,
    columns: dict[str, str],
    image_root: Folder | None,
    table_options: TableOptions,
    domains: list[str] | None,
    unknown_items: str,
    weight: str | None,
) -> InputTables:
    """Read the tables, locate the pictures and drop unknown items; arguments as for `prepare`."""
    interaction_table, item_table = read_tables(interactions, items, columns, table_options, weight)
    provenance, image_folder = {"interactions": _provenance(interaction_table)}, None
    if item_table:
        provenance["items"] = _provenance(item_table)
        frame, image_folder = locate_images(item_table, None if image_root is None else Path(image_root))
        item_table = replace(item_table, frame=frame)
    step_counts = _count_input(interaction_table, item_table, table_options.keep, domains, unknown_items)
    if item_table and unknown_items == "drop":
        interaction_table = _drop_unknown_items(interaction_table, item_table)
        step_counts.append(_table_counts("unknown_items=drop", interaction_table, item_table))
    return InputTables(interaction_table, item_table, image_folder, provenance, step_counts)


def _split(
    log: InteractionLog,
    is_cold: Bool,
    shares: dict[str, float] | None,
    split_at: list[str] | None,
    table_options: TableOptions,
) -> tuple[InteractionLog, Split, Int64]:
    """Split sorted interactions into training, validation and test.

    Args:
        log: all interactions.
        is_cold: (items,) the items that are held out.
        shares: arguments of `split_by_time`; None splits by `leave_one_out`.
        split_at: the starts of validation and test, in place of the shares, see `prepare`; None without.
        table_options: form and zone of the dates in `split_at`.

    Returns:
        The interactions with the other items, their split, and the cold targets, see `find_cold_targets`.
    """
    log_without_cold = log.select(~is_cold[log.items]) if is_cold.any() else log
    offsets, times = user_offsets(log_without_cold.users, len(log.user_ids)), log_without_cold.times
    if split_at:
        scale = TimeScale.of(log.times, log.ticks_per_second)
        time_format, time_zone = table_options.time_format, table_options.time_zone
        valid_from, test_from = (scale.parse("--split-at", t, time_format, time_zone) for t in split_at)
        split = split_at_dates(offsets, times, scale, (valid_from, test_from))
    elif shares:
        split = split_by_time(offsets, times, **shares)
    else:
        split = leave_one_out(offsets)
    cold_targets = find_cold_targets(log.users, log.items, is_cold, offsets, split.train_lengths)
    return log_without_cold, split, cold_targets


def write_log(
    out: str | Path,
    log: InteractionLog,
    split: Split,
    *,
    tie_order: str,
    metadata: dict[str, Any],
    cold_targets: Int64 | None = None,
    image_root: Path | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Normalize the titles, and write interactions and their split as a dataset folder.

    Args:
        out: the folder to write.
        log: interactions sorted by user and time; items in the order of the catalog.
        split: training, validation and test interactions.
        tie_order: how interactions with equal times are ordered, for the manifest.
        metadata: settings and provenance, for the manifest.
        cold_targets: see `Dataset`.
        image_root: see `write_dataset`.
        overwrite: replace an existing dataset folder.
    """
    stops = np.bincount(log.item_domains, minlength=len(log.domains)).cumsum().tolist()
    tie_counts = count_ties(log.users, log.items, log.times)
    return write_dataset(
        out,
        domains=[Domain(*bounds) for bounds in zip(log.domains, [0, *stops], stops, strict=False)],
        item_table=log.item_table.with_columns(normalize_titles(log.item_table["title"])),
        user_ids=log.user_ids,
        items=log.items,
        weights=log.weights,
        times=np.floor_divide(log.times, log.ticks_per_second).astype(np.int64),
        offsets=user_offsets(log.users, len(log.user_ids)),
        **split._asdict(),
        cold_targets=cold_targets,
        image_root=image_root,
        metadata={
            **metadata,
            "ties": {
                "order": tie_order,
                "adjacent_pairs": tie_counts.adjacent_pairs,
                "tied_pairs": tie_counts.tied_pairs,
            },
            "duplicates": tie_counts.duplicates,
        },
        overwrite=overwrite,
    )


def _provenance(table: Table) -> dict[str, Any]:
    """Return name, size, checksum and number of rows of an input, for the manifest."""
    file, counts = table.origin.file, table.input_counts
    rows = counts["interactions"] if "interactions" in counts else counts["items"]
    if file is None:
        return {"file": None, "rows": rows}
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file), "rows": rows}


def _drop_unknown_items(interactions: Table, items: Table) -> Table:
    """Return the interactions with items that the items table has.

    Raises:
        HafvtError: there are none.
    """
    is_known = interactions.frame["item_id"].is_in(items.frame["item_id"].implode())
    if not is_known.any():
        raise HafvtError("no interaction has an item of the items table: check that both have the same ids")
    return interactions.filter(is_known)


def _count_input(
    interactions: Table, items: Table | None, keep: str | None, domains: list[str] | None, unknown_items: str
) -> list[dict[str, int | str]]:
    """Return the counts of the tables before and after `keep`, see `_step_counts`.

    Empty where the log of all interactions, which is counted later, has the same counts.
    """
    counts: list[dict[str, int | str]] = []
    if keep:
        num_items = {"items": len(items.frame)} if items else {}
        counts.append({"step": "read", **interactions.input_counts, **num_items})
    if keep or domains or unknown_items == "drop":
        counts.append(_table_counts(f"keep={keep}" if keep else "read", interactions, items))
    return counts


def _table_counts(step: str, interactions: Table, items: Table | None) -> dict[str, int | str]:
    """Return the numbers of users, items and interactions in tables, see `_step_counts`."""
    frame = interactions.frame
    num_items = len(items.frame) if items else frame["item_id"].n_unique()
    num_users = frame["user_id"].n_unique()
    return {"step": step, "users": num_users, "items": num_items, "interactions": len(frame)}


def _step_counts(step: str, log: InteractionLog) -> dict[str, int | str]:
    """Return the numbers of users, items and interactions that are left after a step, for the manifest."""
    num_users = int(np.count_nonzero(np.bincount(log.users)))
    return {"step": step, "users": num_users, "items": len(log.item_table), "interactions": len(log.users)}


def _filter_users_and_items(log: InteractionLog, min_per_domain: int, min_per_item: int) -> InteractionLog:
    """Return the log without users and items that have too few interactions.

    Raises:
        HafvtError: a domain has no interactions left.
    """
    minimums = {"min_per_domain": min_per_domain, "min_per_item": min_per_item}
    core = k_core(log.users, log.items, log.item_domains, **minimums)
    core_log = log.select(core.interactions)
    if not np.bincount(log.item_domains[core_log.items], minlength=len(log.domains)).all():
        raise _empty_domain_error(log, min_per_domain, min_per_item)
    has_interactions = np.bincount(core_log.users, minlength=len(log.user_ids)) > 0
    new_users = np.cumsum(has_interactions, dtype=np.int32) - 1
    new_items = np.cumsum(core.items, dtype=np.int32) - 1
    return replace(
        core_log,
        users=new_users[core_log.users],
        items=new_items[core_log.items],
        user_ids=log.user_ids.filter(has_interactions),
        item_table=log.item_table.filter(core.items),
        item_domains=log.item_domains[core.items],
    )


def _empty_domain_error(log: InteractionLog, min_per_domain: int, min_per_item: int) -> HafvtError:
    """Return the error for a domain that the filters leave empty; `log` is before the filters."""
    domains = log.item_domains[log.items]  # of each interaction
    user_counts = [len(np.unique(log.users[domains == index])) for index in range(len(log.domains))]
    counts = zip(log.domains, user_counts, strict=True)
    per_domain = ", ".join(f"{name} {count:,} users" for name, count in counts)
    before_filters = f"before, {len(log.users):,} interactions: {per_domain}"
    if not is_active_in_all_domains(log.users, domains, len(log.domains), min_per_domain).any():
        minimum = "interactions" if min_per_domain == 1 else f"{min_per_domain} interactions"
        return HafvtError(
            f"no user has {minimum} in every domain ({before_filters}): lower --min-per-domain, "
            "or check that the ids of users are the same in all domains"
        )
    return HafvtError(
        f"a domain is left empty by --min-per-domain {min_per_domain} and --min-per-item {min_per_item} "
        f"together ({before_filters}): lower one of them"
    )
