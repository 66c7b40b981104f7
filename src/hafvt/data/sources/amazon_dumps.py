"""Amazon's dumps of reviews and products as they were published in 2014, 2018 and 2023, read as streams.

A category has a file of reviews (JSON lines or CSV) and one of products. A broken line is counted, not
fatal; a file most of whose first lines are broken is refused.
"""

from __future__ import annotations

import gzip
import zlib
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from hafvt.data.dataset import Int32, Int64
from hafvt.data.sources.amazon_lines import (
    BROKEN,
    PRODUCT,
    Review,
    names_columns,
    product_of,
    rating_parser,
    review_of,
)
from hafvt.errors import HafvtError, InputError
from hafvt.progress import Advance

T = TypeVar("T")

REVIEWS = (
    "reviews_{}.json",
    "reviews_{}_5.json",
    "ratings_{}.csv",
    "{}.json",
    "{}_5.json",
    "{}.jsonl",
    "{}.csv",
)
PRODUCTS = ("meta_{}.json", "meta_{}.jsonl")

MAGIC = b"\x1f\x8b"
BOM = b"\xef\xbb\xbf"
CHUNK = 2**20  # bytes that are unpacked at a time
LONGEST = 2**20  # bytes of a line; the longest honest ones have some 100,000
HEAD = 100  # lines that decide whether the format is right
NAMED = 5  # broken lines whose row numbers are kept

UNREADABLE = (OSError, EOFError, zlib.error)


@dataclass
class DumpFile:
    """A file, and what was found in it so far.

    Attributes:
        path: of the file.
        rows: lines that are not blank, a header left out.
        broken: how many of them could not be read.
        named: row numbers of the first of those.
    """

    path: Path
    rows: int = 0
    broken: int = 0
    named: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        """One line: how many lines are broken, and which."""
        rows = ", ".join(map(str, self.named)) + (", ..." if self.broken > len(self.named) else "")
        said = f"{self.path.name}: {self.rows:,} lines, {self.broken:,} broken"
        return f"{said} (row {rows})" if self.broken else said


class Reviews(NamedTuple):
    """The reviews of a category in numbers.

    Attributes:
        users: (reviews,) number of the user.
        items: (reviews,) row of `item_ids`.
        times: (reviews,) seconds since 1970.
        item_ids: the items' own ids.
    """

    users: Int32
    items: Int32
    times: Int64
    item_ids: list[str]


def find(raw: Path, category: str) -> tuple[Path, Path | None]:
    """Returns the files of a category: reviews, and products where there are any.

    Raises:
        HafvtError: there is no file of reviews, or more than one.
    """
    reviews, products = (
        [p for name in names for end in ("", ".gz") if (p := raw / (name.format(category) + end)).is_file()]
        for names in (REVIEWS, PRODUCTS)
    )
    for found in (reviews, products):
        if len(found) > 1:
            both = " and ".join(path.name for path in found[:2])
            raise HafvtError(f"{raw}: {both} hold the same category: keep one of them there")
    if not reviews:
        names = ", ".join(name.format(category) for name in REVIEWS)
        raise HafvtError(f"{raw} has no reviews of {category}: fetch one of {names}, plain or .gz")
    return reviews[0], products[0] if products else None


def collect(dump: DumpFile, users: dict[str, int], grow: bool, advance: Advance) -> Reviews:
    """Reads the reviews of a category, ids turned into numbers as they come.

    Args:
        dump: the file of reviews.
        users: number of each user known so far.
        grow: take unknown users in; else their reviews are left out, so that memory holds the users of the
            first category only.
        advance: is told how many MiB of the file are done.
    """
    items: dict[str, int] = {}
    who, what, when = array("i"), array("i"), array("q")
    for user, item, time in records(dump, review_parser(dump.path), advance):
        number = users.setdefault(user, len(users)) if grow else users.get(user, -1)
        if number >= 0:
            who.append(number)
            what.append(items.setdefault(item, len(items)))
            when.append(time)
    return Reviews(
        np.frombuffer(who, dtype=np.int32),
        np.frombuffer(what, dtype=np.int32),
        np.frombuffer(when, dtype=np.int64),
        list(items),
    )


def read_products(dump: DumpFile, wanted: set[str], advance: Advance) -> pl.DataFrame:
    """Reads the products of a category whose ids are wanted; of two lines about one product the first counts.

    Returns:
        The columns of `PRODUCT`; null where nothing is known.
    """
    left = set(wanted)
    frames, rows = [pl.DataFrame(schema=PRODUCT)], []
    for product in records(dump, lambda line: product_of(line, left), advance):
        if product is not None:
            left.discard(product[0])
            rows.append(product)
        if len(rows) == 10_000:  # as Python's objects they take ten times the memory
            frames.append(pl.DataFrame(rows, schema=PRODUCT, orient="row"))
            rows.clear()
    return pl.concat([*frames, pl.DataFrame(rows, schema=PRODUCT, orient="row")])


def check_head(path: Path, *, products: bool) -> None:
    """Raises InputError where the first lines of a file are not what they should be."""
    parse: Callable[[str], Any] = (lambda line: product_of(line, None)) if products else review_parser(path)
    for _ in islice(records(DumpFile(path), parse), HEAD):
        pass


def records(dump: DumpFile, parse: Callable[[str], T], advance: Advance | None = None) -> Iterator[T]:
    """Yields what `parse` makes of the lines of a file, and counts in `dump` the lines that it cannot read.

    Raises:
        InputError: the file is damaged or empty, or most of its first lines are broken.
    """
    first = ""
    for row, line in _lines(dump.path, advance):
        if row == 1 and _header(dump.path, line):
            continue
        dump.rows += 1
        try:
            if len(line) > LONGEST:
                raise ValueError("too long")
            record = parse(line.decode())
        except BROKEN:
            dump.broken += 1
            if len(dump.named) < NAMED:
                dump.named.append(row)
                first = first or line[:80].decode(errors="replace")
            _refuse(dump, first, at=HEAD)
        else:
            _refuse(dump, first, at=HEAD)
            yield record
    if dump.rows < HEAD:
        _refuse(dump, first, at=dump.rows)


def _refuse(dump: DumpFile, value: str, at: int) -> None:
    """Raises InputError where, `at` so many lines, most were broken."""
    if dump.rows != at or 0 < dump.rows >= 2 * dump.broken:
        return
    if not dump.rows:
        raise InputError("the file is empty", "Fetch it again", file=dump.path)
    raise InputError(
        f"{dump.broken} of the first {dump.rows} lines are not in a publisher's format",
        "Check that it is the file its name says, or fetch it again",
        file=dump.path,
        row=dump.named[0],
        value=value,
    )


def _lines(path: Path, advance: Advance | None = None) -> Iterator[tuple[int, bytes]]:
    """Yields row number and text of the lines that are not blank; of one that is too long, its beginning."""
    row, rest, done = 0, b"", 0
    try:
        with path.open("rb") as packed:
            plain = gzip.GzipFile(fileobj=packed) if packed.read(2) == MAGIC else packed
            packed.seek(0)
            while chunk := plain.read(CHUNK):
                if advance:
                    advance((packed.tell() >> 20) - done, note=path.name)
                    done = packed.tell() >> 20
                *lines, rest = (rest + (chunk if row or rest else chunk.removeprefix(BOM))).split(b"\n")
                for row, line in enumerate(lines, start=row + 1):  # noqa: B020  (goes on where it was)
                    if not line.isspace() and line:
                        yield row, line
                rest = rest[: LONGEST + 1]  # too long stays too long and cannot fill the memory
            if rest.strip():
                yield row + 1, rest
    except UNREADABLE as error:
        problem = f"it cannot be read ({error})"
        raise InputError(problem, "Fetch it again", file=path, row=row + 1) from None


def review_parser(path: Path) -> Callable[[str], Review]:
    """Returns what reads a line of a file of reviews, by its name and first lines."""
    if ".csv" not in path.suffixes:
        return review_of
    return rating_parser(path, [line.decode(errors="replace") for _, line in islice(_lines(path), HEAD)])


def _header(path: Path, line: bytes) -> bool:
    """Returns whether the first line names the columns."""
    return ".csv" in path.suffixes and names_columns(line.decode(errors="replace"))
