"""`hafvt prepare`: tables -> filters -> splits -> Dataset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from hafvt.data.coding import InteractionLog, code
from hafvt.data.cold_items import draw_cold_items, find_cold_targets
from hafvt.data.dataset import Dataset, Domain, Int32, write_dataset
from hafvt.data.filters import is_active_in_all_domains, is_recent, k_core
from hafvt.data.order import count_ties, sort_histories, user_offsets
from hafvt.data.schema import Table, read_tables
from hafvt.data.splits import leave_one_out, split_by_time
from hafvt.errors import HafvtError
from hafvt.files import sha256
from hafvt.progress import progress

Counts = dict[str, int | str]


def prepare(
    interactions: str | Path | Any,
    items: str | Path | Any | None = None,
    out: str | Path = "dataset",
    *,
    columns: dict[str, str] | None = None,
    domains: list[str] | None = None,
    min_per_domain: int = 1,
    min_per_item: int = 0,
    last: int | None = None,
    split: Literal["leave-one-out", "time"] = "leave-one-out",
    valid_share: float = 0.1,
    test_share: float = 0.1,
    hold_out_items: float = 0.0,
    ties: Literal["random", "input"] = "random",
    seed: int = 0,
    overwrite: bool = False,
) -> Dataset:
    """Turns tables of interactions and items into a dataset folder.

    Ids are text always: "007" is not "7". Times are numbers of any unit, or ISO 8601 dates and times, which
    become seconds since 1970 (UTC where no zone is given); fractions count for the order and are then cut
    off. Columns that are not needed are ignored. An item's domain stands in the items or else in the
    interactions; where in both, they must agree; where in neither, there is one domain.

    Items and users are numbered in an order drawn from the seed, items domain by domain, so that a number
    tells nothing. The same rows, settings and seed give the same bits, whatever the type of the input and,
    unless `ties` is "input", whatever the order of the rows.

    Example: hafvt prepare --interactions log.csv.gz --items items.csv --out data/movies

    Args:
        interactions: user_id, item_id, timestamp and, optionally, domain: a path to CSV, JSONL (both also
            as .gz or .zst) or Parquet, or a data frame.
        items: item_id and, optionally, domain, title, image: likewise; without it, the items are those of
            the interactions.
        out: the folder to write.
        columns: our names and the input's names where they differ, for both tables, such as user_id=customer.
        domains: the domains to keep, in the order of the catalog; default: all, sorted by name.
        min_per_domain: keep users with so many interactions in every domain; 0 keeps everyone.
        min_per_item: keep items with so many interactions; 0 keeps all candidates, even those never met.
        last: keep only so many of each user's last interactions, all domains together.
        split: "leave-one-out" (last: test, last but one: validation) or "time" (two moments for all users).
        valid_share: share of the interactions in the window of validation, for --split time.
        test_share: share of the interactions in the window of test, for --split time.
        hold_out_items: share of each domain's items, drawn by the seed, whose interactions are taken out of
            all histories, such as 0.1; `evaluate --cold` ranks those that follow a user's training part.
        ties: order of a user's interactions at the same time: "random" (from the seed) or as in the "input".
        seed: of the numbering, of the order of ties and of the items that are held out.
        overwrite: replace a dataset folder that exists.

    Raises:
        InputError: a table is wrong; names file, row, column, value and remedy.
        HafvtError: a setting is wrong, or nothing is left after the filters.
    """
    out = Path(out)
    _check_settings(out, min_per_domain, min_per_item, last, split, valid_share, test_share, overwrite)
    if not 0 <= hold_out_items < 1:
        raise HafvtError(
            f"--hold-out-items is {hold_out_items:g}: give a share from 0 to below 1, such as 0.1"
        )
    settings = {
        "columns": columns or {},
        "domains": domains,
        "min_per_domain": min_per_domain,
        "min_per_item": min_per_item,
        "last": last,
        "split": split,
        "valid_share": valid_share if split == "time" else None,
        "test_share": test_share if split == "time" else None,
        "hold_out_items": hold_out_items,
        "ties": ties,
        "seed": seed,
    }
    with progress("prepare", 5, "steps") as advance:
        log_table, item_table = read_tables(interactions, items, columns or {})
        inputs = {"interactions": _provenance(log_table)}
        if item_table:
            inputs["items"] = _provenance(item_table)
        image_root = item_table.origin.file.parent if item_table and item_table.origin.file else None
        advance(note="read")

        log = code(log_table, item_table, domains)
        del log_table, item_table  # the text of the ids is large
        advance(note="coded")

        counts = [_counts("read" if domains is None else f"domains={','.join(domains)}", log)]
        log = _filter(log, min_per_domain, min_per_item)
        counts.append(_counts(f"min_per_domain={min_per_domain}, min_per_item={min_per_item}", log))
        log = _shuffle(log, seed)
        order = sort_histories(
            log.users, log.items, log.times, ties=ties, random=np.random.default_rng([seed, 2])
        )
        log = _take(log, order)
        if last is not None:
            log = _take(log, is_recent(log.users, last))
            counts.append(_counts(f"last={last}", log))
        whole, held_out = log, draw_cold_items(log.item_domains, hold_out_items, seed)
        if hold_out_items:
            log = _take(log, np.flatnonzero(~held_out[log.items]))
            counts.append(_counts(f"hold_out_items={hold_out_items:g}", log))
        advance(note="filtered and sorted")

        offsets = user_offsets(log.users, len(log.user_ids))
        if split == "time":
            parts = split_by_time(offsets, log.times, valid_share=valid_share, test_share=test_share)
        else:
            parts = leave_one_out(offsets)
        cold = find_cold_targets(whole.users, whole.items, held_out, offsets, parts.train_lengths)
        found = count_ties(log.users, log.items, log.times)
        about = {
            "settings": settings,
            "inputs": inputs,
            "counts": counts,
            "ties": {"order": ties, "adjacent_pairs": found.adjacent_pairs, "tied_pairs": found.tied_pairs},
            "duplicates": found.duplicates,
            "cold_items": int(held_out.sum()),
        }
        advance(note="split")

        stops = np.bincount(log.item_domains, minlength=len(log.domains)).cumsum().tolist()
        data = write_dataset(
            out,
            domains=[Domain(n, a, b) for n, a, b in zip(log.domains, [0, *stops], stops, strict=False)],
            item_table=log.item_table,
            user_ids=log.user_ids,
            items=log.items,
            times=np.floor(log.times).astype(np.int64),
            offsets=offsets,
            **parts._asdict(),
            cold_targets=cold,
            image_root=image_root,
            metadata=about,
            overwrite=overwrite,
        )
        advance(note="written")
    return data


def _check_settings(
    out: Path,
    min_per_domain: int,
    min_per_item: int,
    last: int | None,
    split: str,
    valid_share: float,
    test_share: float,
    overwrite: bool,
) -> None:
    if out.exists():
        if not overwrite:
            raise HafvtError(f"{out} exists already: choose another folder or say --overwrite true")
        if not (out / "manifest.json").is_file():
            raise HafvtError(f"{out} is not a dataset and is not overwritten: choose another folder")
    if min(min_per_domain, min_per_item) < 0 or (last is not None and last < 1):
        raise HafvtError("--min-per-domain and --min-per-item start at 0, --last at 1: correct the number")
    if split == "time" and not (min(valid_share, test_share) > 0 and valid_share + test_share < 1):
        raise HafvtError(
            "--valid-share and --test-share must be above 0 and below 1 together: correct the shares"
        )


def _provenance(table: Table) -> dict[str, Any]:
    file = table.origin.file
    known = (
        {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256(file)} if file else {"file": None}
    )
    return {**known, "rows": len(table.frame)}


def _counts(after: str, log: InteractionLog) -> Counts:
    """Returns how much there is after a step."""
    users = int(np.count_nonzero(np.bincount(log.users)))
    return {"after": after, "users": users, "items": len(log.item_table), "interactions": len(log.users)}


def _take(log: InteractionLog, rows: Any) -> InteractionLog:
    """Returns the log with some of its interactions, or all in another order."""
    return replace(log, users=log.users[rows], items=log.items[rows], times=log.times[rows])


def _filter(log: InteractionLog, min_per_domain: int, min_per_item: int) -> InteractionLog:
    """Drops users and items that are met too rarely."""
    kept = k_core(
        log.users, log.items, log.item_domains, min_per_domain=min_per_domain, min_per_item=min_per_item
    )
    left = np.bincount(log.item_domains[log.items[kept.interactions]], minlength=len(log.domains))
    if not left.all():
        raise _nothing_left(log, min_per_domain, min_per_item)
    new_items = np.cumsum(kept.items, dtype=np.int32) - 1
    met = np.bincount(log.users[kept.interactions], minlength=len(log.user_ids)) > 0
    new_users = np.cumsum(met, dtype=np.int32) - 1
    return InteractionLog(
        users=new_users[log.users[kept.interactions]],
        items=new_items[log.items[kept.interactions]],
        times=log.times[kept.interactions],
        user_ids=log.user_ids.filter(met),
        item_table=log.item_table.filter(kept.items),
        item_domains=log.item_domains[kept.items],
        domains=log.domains,
    )


def _nothing_left(log: InteractionLog, min_per_domain: int, min_per_item: int) -> HafvtError:
    """Returns the error that tells which filter took everything from which domain."""
    item_domains = log.item_domains[log.items]
    users = [len(np.unique(log.users[item_domains == number])) for number in range(len(log.domains))]
    had = ", ".join(f"{name} {count:,} users" for name, count in zip(log.domains, users, strict=True))
    before = f"before, {len(log.users):,} interactions: {had}"
    if not is_active_in_all_domains(log.users, item_domains, len(log.domains), min_per_domain).any():
        what = (
            "no user has interactions"
            if min_per_domain == 1
            else f"no user has {min_per_domain} interactions"
        )
        return HafvtError(
            f"{what} in every domain ({before}): lower --min-per-domain, "
            "or check that the ids of users are the same in all domains"
        )
    return HafvtError(
        f"a domain is left empty by --min-per-domain {min_per_domain} and --min-per-item {min_per_item} "
        f"together ({before}): lower one of them"
    )


def _shuffle(log: InteractionLog, seed: int) -> InteractionLog:
    """Numbers the users, and the items of each domain, in an order drawn from the seed."""
    random = np.random.default_rng([seed, 0])
    sizes = np.bincount(log.item_domains, minlength=len(log.domains))
    starts = sizes.cumsum() - sizes
    items = np.concatenate(
        [start + random.permutation(size) for start, size in zip(starts, sizes, strict=True)]
    )
    users = np.random.default_rng([seed, 1]).permutation(len(log.user_ids))
    return replace(
        log,
        users=_inverse(users)[log.users],
        items=_inverse(items)[log.items],
        user_ids=log.user_ids.gather(users),
        item_table=log.item_table[items],
    )


def _inverse(permutation: Any) -> Int32:
    """Returns the new number of each old one."""
    inverse = np.empty(len(permutation), dtype=np.int32)
    inverse[permutation] = np.arange(len(permutation), dtype=np.int32)
    return inverse
