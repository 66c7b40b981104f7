"""C2DSR's released files, the data of the paper's tables: `hafvt prepare-c2dsr`.

Two properties of the release matter. First, times are days, and each line lists its sorted beginning, then
its last X item, then its last Y item. A stable sort therefore makes Y the target if both have the same day.
This order is kept, because the published counts depend on it. Second, items are numbered by first
appearance, so that items close in time have close numbers. Items are therefore numbered again, at random.

Format (https://github.com/cjx96/C2DSR): Alist and Blist: number in the dump, ASIN, number in the domain;
userlist: user, number; sequences: user, sequence, then item|unix time|date with B's items after A's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl

from hafvt.data.attributes import CONTENT_COLUMNS
from hafvt.data.lines import read_lines
from hafvt.data.readers import read_columns
from hafvt.data.sources.base import PreparedSource, SourceTables, dataset_source, domain_names, prepare_source
from hafvt.data.sources.checks import SCENARIOS, sequence_checks, table1_checks
from hafvt.errors import ArgumentError, InputError
from hafvt.files import sha256
from hafvt.settings import OutFolder, Seed, check_arguments

NUMBER = re.compile(r"[0-9]{1,15}")
REMEDY = "Download it again"


@check_arguments
@dataset_source
def prepare_c2dsr(
    folder: str | Path,
    out: OutFolder,
    *,
    domains: list[str] | None = None,
    items: str | Path | None = None,
    seed: Seed = 0,
    overwrite: bool = False,
) -> PreparedSource:
    """Turn a release of C2DSR's files into a dataset folder with the split of the release.

    Each sequence of the release becomes the history of a user of its own, named USER#SEQUENCE. Lines are
    sorted by time with a stable sort, as C2DSR does, and items are numbered at random.

    Example: hafvt prepare-c2dsr ../shared/data/c2dsr-food-kitchen --out data/food-kitchen

    Args:
        folder: folder with Alist.txt, Blist.txt, userlist.txt, traindata_new.txt (or parts of it, such as
            traindata_new.part.txt), validdata_new.txt and testdata_new.txt, plain or .gz.
        out: the folder to write.
        domains: names of the two domains; default: the paper's, recognized by the numbers of items, or x, y.
        items: a table of item_id (ASIN), title, image; relative image paths start from its folder.
        seed: seed of the items' numbers.
        overwrite: replace a dataset folder that exists.

    Raises:
        InputError: a file is missing, damaged or malformed; names file, row, value and remedy.
    """
    folder = Path(folder)
    list_files = [_find_file(folder, name) for name in ("Alist", "Blist")]
    asins = [_read_list(path, key=1, number=2) for path in list_files]
    sizes = tuple(map(len, asins))
    users = _read_list(_find_file(folder, "userlist"), key=0, number=1)
    scenario = next((s for s in SCENARIOS if s.items == sizes), None)
    names = domain_names(domains or (scenario.domains if scenario else ("x", "y")))
    if len(names) != 2:
        raise ArgumentError(f"--domains {' '.join(names)}: a release has two domains: give two names")
    files = dict.fromkeys(_training_files(folder), "train")
    files |= {_find_file(folder, "validdata_new"): "valid", _find_file(folder, "testdata_new"): "test"}
    sequences = pl.DataFrame(
        [
            (*sequence, part)
            for path, part in files.items()
            for sequence in _read_sequences(path, sizes, users)
        ],
        schema={"user_id": pl.String, "item": pl.List(int), "timestamp": pl.List(int), "part": pl.String},
        orient="row",
    )
    if (is_repeated := sequences["user_id"].is_duplicated()).any():
        name = sequences["user_id"].filter(is_repeated)[0]
        raise InputError("a sequence is there twice", "Remove one of the files", file=folder, value=name)

    random = np.random.default_rng([seed, 0])
    new_number = np.concatenate([random.permutation(sizes[0]), sizes[0] + random.permutation(sizes[1])])
    item_table = pl.DataFrame(
        {"item_id": [*asins[0], *asins[1]], "domain": np.repeat(names, sizes), "number": new_number}
    )
    interactions = sequences.explode("item", "timestamp")
    is_trained_or_target = (pl.col("part") == "train") | pl.col("user_id").is_last_distinct()
    tables = SourceTables(
        interactions=interactions.select(
            "user_id",
            item_table["item_id"].gather(interactions["item"]),
            "timestamp",
            pl.when(is_trained_or_target).then("part"),
        ),
        items=_with_titles(item_table.sort("number").drop("number"), items),
        metadata={
            "settings": {"source": "c2dsr", "seed": seed},
            "inputs": {path.name: {"sha256": sha256(path)} for path in (*list_files, *files)},
            "scenario": scenario.domains if scenario else None,
        },
        image_root=Path(items).parent if items else None,
    )
    dataset = prepare_source(tables, out, overwrite=overwrite)
    num_missing = max(scenario.train - (sequences["part"] == "train").sum(), 0) if scenario else 0
    notes = []
    if num_missing:
        notes.append(
            f"{num_missing:,} training sequences are missing: the folder has only a part of the training file"
        )
    if items is not None:
        titles, pictures = (tables.items[name].count() for name in CONTENT_COLUMNS)
        notes.append(f"{titles:,} of {len(tables.items):,} items have a title, {pictures:,} a picture")
    checks = table1_checks(dataset) + sequence_checks(dataset, scenario.window_days if scenario else None)
    return PreparedSource(dataset, tuple(checks), tuple(notes))


def _find_file(folder: Path, name: str) -> Path:
    """Return the file of a name, plain or compressed."""
    for path in (folder / f"{name}.txt", folder / f"{name}.txt.gz"):
        if path.is_file():
            return path
    problem, remedy = "no such file, plain or .gz", "Download it from the release"
    raise InputError(problem, remedy, file=folder / f"{name}.txt")


def _training_files(folder: Path) -> list[Path]:
    """Return the training file or, if it is missing, its parts."""
    parts = sorted(p for p in folder.glob("traindata_new*") if p.name.endswith((".txt", ".txt.gz")))
    is_complete = any(p.name in ("traindata_new.txt", "traindata_new.txt.gz") for p in parts)
    return parts if parts and not is_complete else [_find_file(folder, "traindata_new")]


def _rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield row number and fields of the lines that are not blank."""
    for row, line in read_lines(path):
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"it cannot be read ({error})", REMEDY, file=path, row=row) from None
        if text.strip():
            yield row, text.rstrip("\t").split("\t")


def _read_list(path: Path, *, key: int, number: int) -> list[str]:
    """Return the names in column `key` of a list whose column `number` counts from 0."""
    names: dict[str, None] = {}
    for row, fields in _rows(path):
        if len(fields) <= max(key, number) or fields[number] != str(len(names)) or fields[key] in names:
            problem = f"not a new name and the number {len(names)} in column {number + 1}"
            raise InputError(problem, REMEDY, file=path, row=row, value="\t".join(fields))
        names[fields[key]] = None
    if not names:
        raise InputError("the list is empty", REMEDY, file=path)
    return list(names)


def _read_sequences(
    path: Path, sizes: tuple[int, ...], users: list[str]
) -> Iterator[tuple[str, list[int], list[int]]]:
    """Yield the sequences of a file: USER#SEQUENCE, items as numbered in the release, and times.

    Each sequence is sorted by time with a stable sort. `sizes` has the number of items of each domain.
    """
    for row, fields in _rows(path):
        if len(fields) < 3 or not NUMBER.fullmatch(fields[0]) or int(fields[0]) >= len(users):
            value = "\t".join(fields[:3])
            raise InputError("not user, sequence, items", REMEDY, file=path, row=row, value=value)
        events = []
        for field in fields[2:]:
            item, time, *_ = (*field.split("|"), "")
            if not (NUMBER.fullmatch(item) and NUMBER.fullmatch(time) and int(item) < sum(sizes)):
                problem = f"not an item below {sum(sizes):,} and its time"
                raise InputError(problem, REMEDY, file=path, row=row, value=field)
            events.append((int(item), int(time)))
        events.sort(key=lambda event: event[1])
        items, times = zip(*events, strict=True)
        yield f"{users[int(fields[0])]}#{fields[1]}", list(items), list(times)


def _with_titles(item_table: pl.DataFrame, items: str | Path | None) -> pl.DataFrame:
    """Add title and image to the items, null where they are unknown."""
    titles = pl.DataFrame(schema={"item_id": pl.String})
    if items is not None:
        titles = read_columns(items, ["item_id", "title", "image"]).frame
    if "item_id" not in titles.columns:
        raise InputError("no such column", "Name the column of ASINs so", file=str(items), column="item_id")
    absent = [pl.lit(None, pl.String).alias(name) for name in CONTENT_COLUMNS if name not in titles.columns]
    titles = titles.with_columns(absent).unique("item_id", keep="first", maintain_order=True)
    titles = titles.select("item_id", *CONTENT_COLUMNS)
    return item_table.join(titles, on="item_id", how="left", maintain_order="left")
