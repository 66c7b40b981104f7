"""C2DSR's released files, the data behind the paper's tables: `hafvt prepare-c2dsr`.

Two artefacts of the release matter. Times have the resolution of a day, and each line is stored as its sorted
beginning, its last X item, its last Y item: under the stable sort that everybody uses, a tie between the two
makes Y the target. The order is kept, for without it the published counts are lost. And items are numbered
by first appearance, so that neighbors in time are neighbors in number: here a seed draws their numbers.

Format: https://github.com/cjx96/C2DSR. Alist and Blist: number in the dump, ASIN, number within the domain;
userlist: user, number; sequences: user, sequence, then item|unix time|date| with B's items after A's.
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from hafvt.data.dataset import Domain, write_dataset
from hafvt.data.order import count_ties
from hafvt.data.readers import read_columns
from hafvt.data.sources.checks import SCENARIOS, Prepared, structure, table1_checks
from hafvt.errors import HafvtError, InputError
from hafvt.files import sha256

PARTS = ("train", "valid", "test")


class Sequence(NamedTuple):
    """A line of a release: its user, its own number, items as numbered there, times in seconds since 1970."""

    name: str
    items: list[int]
    times: list[int]


def prepare_c2dsr(
    release: str | Path,
    out: str | Path,
    *,
    domains: list[str] | None = None,
    items: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
) -> Prepared:
    """Turns a release of C2DSR's files into a dataset folder with the release's own split.

    Each sequence of the release becomes a history of its own, named USER#SEQUENCE. Lines are sorted by time,
    stably, as C2DSR does, and items are numbered anew, in an order drawn from the seed.

    Example: hafvt prepare-c2dsr ../shared/data/c2dsr-food-kitchen --out data/food-kitchen

    Args:
        release: folder with Alist.txt, Blist.txt, userlist.txt, traindata_new.txt (or parts of it, such as
            traindata_new.part.txt), validdata_new.txt and testdata_new.txt, plain or .gz.
        out: the folder to write.
        domains: names of the two domains; default: the paper's, known by the numbers of items, or x, y.
        items: a table of item_id (ASIN), title, image, for items that have them; its folder is where pictures
            are looked for.
        seed: of the items' numbers.
        overwrite: replace a dataset folder that exists.

    Raises:
        InputError: a file is missing, damaged or malformed; names file, row, value and remedy.
    """
    folder, out = Path(release), Path(out)
    if out.exists() and not (overwrite and (out / "manifest.json").is_file()):
        raise HafvtError(
            f"{out} exists already: choose another folder or, if a dataset, say --overwrite true"
        )
    lists = [_one(folder, name) for name in ("Alist", "Blist")]
    asins = [_numbered(path, key=1, number=2) for path in lists]
    sizes = tuple(map(len, asins))
    people = _numbered(_one(folder, "userlist"), key=0, number=1)
    known = next((s for s in SCENARIOS if s.items == sizes), None)
    names = tuple(domains) if domains else known.domains if known else ("x", "y")
    if len(set(names)) != 2:
        raise HafvtError(f"--domains {' '.join(names)}: a release has two domains: give two names")
    files = [_training(folder), [_one(folder, "validdata_new")], [_one(folder, "testdata_new")]]
    parts = [[s for path in paths for s in _sequences(path, sum(sizes), people)] for paths in files]
    rows = [sequence for part in parts for sequence in part]
    _check_names(rows, files)
    lengths = np.array([len(row.items) for row in rows])
    offsets = np.concatenate([[0], lengths.cumsum()])
    held = np.repeat([0, 1, 2], [len(part) for part in parts])  # (rows,) the part of each

    # The dataset's number of each of the release's: a permutation within each domain.
    random = np.random.default_rng([seed, 0])
    number = np.concatenate([random.permutation(sizes[0]), sizes[0] + random.permutation(sizes[1])])
    flat = number[np.array([item for row in rows for item in row.items], dtype=np.int64)].astype(np.int32)
    times = np.array([time for row in rows for time in row.times], dtype=np.int64)
    table = pl.DataFrame(
        {"item_id": [*asins[0], *asins[1]], "domain": np.repeat(names, sizes), "number": number}
    )
    table = _with_titles(table, items).sort("number").drop("number")
    ties = count_ties(
        np.repeat(np.arange(len(rows), dtype=np.int32), lengths), flat, times.astype(np.float64)
    )
    dataset = write_dataset(
        out,
        domains=[Domain(names[0], 0, sizes[0]), Domain(names[1], sizes[0], sum(sizes))],
        item_table=table,
        user_ids=pl.Series([row.name for row in rows]),
        items=flat,
        times=times,
        offsets=offsets,
        train_lengths=np.where(held == 0, lengths, 0),
        valid=offsets[1:][held == 1] - 1,
        test=offsets[1:][held == 2] - 1,
        image_root=Path(items).parent if items else None,
        metadata={
            "settings": {"source": "c2dsr", "seed": seed},
            "inputs": {p.name: {"sha256": sha256(p)} for p in [*lists, *(p for part in files for p in part)]},
            "ties": {"order": "input", "adjacent_pairs": ties.adjacent_pairs, "tied_pairs": ties.tied_pairs},
            "duplicates": ties.duplicates,
            "scenario": known.domains if known else None,
        },
        overwrite=overwrite,
    )
    missing = max(known.train - len(parts[0]), 0) if known else 0
    said = f"{missing:,} training sequences are missing: the training file is there only in part"
    checks = table1_checks(dataset) + structure(dataset, known.days if known else None)
    return Prepared(dataset, tuple(checks), (said,) if missing else ())


def _one(folder: Path, name: str) -> Path:
    """Returns the file of a name, plain or packed."""
    for path in (folder / f"{name}.txt", folder / f"{name}.txt.gz"):
        if path.is_file():
            return path
    raise InputError("no such file, plain or .gz", "Fetch it from the release", file=folder / f"{name}.txt")


def _training(folder: Path) -> list[Path]:
    """Returns the training file or, where it is not there whole, its parts."""
    for path in (folder / "traindata_new.txt", folder / "traindata_new.txt.gz"):
        if path.is_file():
            return [path]
    parts = sorted(p for p in folder.glob("traindata_new*") if p.name.endswith((".txt", ".txt.gz")))
    return parts or [_one(folder, "traindata_new")]


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields row number and fields of the lines that are not blank."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8") as file
        ):
            for row, line in enumerate(file, start=1):
                if line.strip():
                    yield row, line.rstrip("\r\n").rstrip("\t").split("\t")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise InputError(f"it cannot be read ({error})", "Fetch it again", file=path) from None


def _numbered(path: Path, *, key: int, number: int) -> list[str]:
    """Returns the names of a list whose numbers count from 0."""
    names: dict[str, None] = {}
    for row, fields in _lines(path):
        if len(fields) <= max(key, number) or fields[number] != str(len(names)) or fields[key] in names:
            wanted = f"a new name and the number {len(names)} in column {number + 1}"
            raise InputError(f"not {wanted}", "Fetch it again", file=path, row=row, value="\t".join(fields))
        names[fields[key]] = None
    if not names:
        raise InputError("the list is empty", "Fetch it again", file=path)
    return list(names)


def _sequences(path: Path, count: int, people: list[str]) -> Iterator[Sequence]:
    """Yields the sequences of a file, each sorted by time, stably."""
    for row, fields in _lines(path):

        def wrong(problem: str, value: str, row: int = row) -> InputError:
            return InputError(problem, "Fetch it again", file=path, row=row, value=value)

        if len(fields) < 3 or not fields[0].isdecimal() or int(fields[0]) >= len(people):
            raise wrong("not user, sequence, items", "\t".join(fields[:3]))
        pairs = []
        for field in fields[2:]:
            item, _, time = field.partition("|")
            time = time.partition("|")[0]
            if not (item.isdecimal() and time.isdecimal() and int(item) < count):
                raise wrong(f"not an item below {count:,} and its time", field)
            pairs.append((int(time), int(item)))
        pairs.sort(key=lambda pair: pair[0])
        yield Sequence(f"{people[int(fields[0])]}#{fields[1]}", [i for _, i in pairs], [t for t, _ in pairs])


def _check_names(rows: list[Sequence], files: list[list[Path]]) -> None:
    """Refuses a sequence that stands twice, in two parts or in training and test."""
    seen: set[str] = set()
    for row in rows:
        if row.name in seen:
            inside = files[0][0].parent
            raise InputError(
                "a sequence stands twice", "Remove one of the files", file=inside, value=row.name
            )
        seen.add(row.name)


def _with_titles(table: pl.DataFrame, items: str | Path | None) -> pl.DataFrame:
    """Adds title and image, nulls where they are not known."""
    if items is None:
        return table.with_columns(title=pl.lit(None, pl.String), image=pl.lit(None, pl.String))
    found = read_columns(items, ["item_id", "title", "image"]).frame
    if "item_id" not in found.columns:
        raise InputError("no such column", "Name the ASINs so", file=Path(items), column="item_id")
    for name in {"title", "image"} - set(found.columns):
        found = found.with_columns(pl.lit(None, pl.String).alias(name))
    found = found.unique("item_id", keep="first", maintain_order=True)
    return table.join(
        found.select("item_id", "title", "image"), on="item_id", how="left", maintain_order="left"
    )
