"""Amazon's dumps of reviews and products, as published in 2014, 2018 and 2023, read as streams.

A category has a file of reviews (JSON lines or CSV) and one of products. A malformed line is counted and
skipped. A file is refused if most of its first lines are malformed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import polars as pl

from hafvt.data.dataset import Int32, Int64
from hafvt.data.readers import read_lines
from hafvt.data.sources.amazon_lines import (
    PARSE_ERRORS,
    PRODUCT_SCHEMA,
    Review,
    is_header,
    parse_product,
    parse_review,
    rating_parser,
)
from hafvt.errors import HafvtError, InputError
from hafvt.progress import Advance

T = TypeVar("T")

RATING_NAMES = ("ratings_{}.csv", "{}.csv")
REVIEW_NAMES = ("reviews_{}.json", "reviews_{}_5.json", "{}.json", "{}_5.json", "{}.jsonl", *RATING_NAMES)
PRODUCT_NAMES = ["meta_{}.json", "meta_{}.jsonl"]

MAX_LINE_BYTES = 2**20  # the longest lines of the publisher have about 100,000
NUM_FIRST_LINES = 100  # lines that decide whether the format is right
NUM_LISTED = 5  # malformed lines whose row numbers are kept
PRODUCTS_PER_FRAME = 10_000  # as Python objects, products take ten times the memory


@dataclass
class DumpFile:
    """A file of a dump, and counts of the lines read.

    Attributes:
        path: path of the file.
        rows: lines that are neither blank nor a header.
        malformed: lines among them that could not be read.
        malformed_rows: row numbers of the first malformed lines.
    """

    path: Path
    rows: int = 0
    malformed: int = 0
    malformed_rows: list[int] = field(default_factory=list)

    def __str__(self) -> str:
        """Return a line: how many lines are malformed, and which."""
        counts = f"{self.path.name}: {self.rows:,} lines, {self.malformed:,} malformed"
        more = ", ..." if self.malformed > len(self.malformed_rows) else ""
        return (
            f"{counts} (row {', '.join(map(str, self.malformed_rows))}{more})" if self.malformed else counts
        )


class Reviews(NamedTuple):
    """The reviews of a category with users and items as numbers.

    Attributes:
        users: (reviews,) number of the user.
        items: (reviews,) index in `item_ids`.
        times: (reviews,) seconds since 1970.
        item_ids: ids of the items.
    """

    users: Int32
    items: Int32
    times: Int64
    item_ids: list[str]


def find_dumps(folder: Path, category: str) -> tuple[Path, Path | None]:
    """Return the files of a category: reviews, and products or None.

    Raises:
        HafvtError: there is no file of reviews, or two files of one kind.
    """
    reviews, products = (
        [p for n in names for end in ("", ".gz") if (p := folder / (n.format(category) + end)).is_file()]
        for names in (REVIEW_NAMES, PRODUCT_NAMES)
    )
    for paths in (reviews, products):
        if len(paths) > 1:
            both = " and ".join(path.name for path in paths[:2])
            raise HafvtError(f"{folder}: {both} are of the same category: keep one of them there")
    if not reviews:
        names = ", ".join(name.format(category) for name in REVIEW_NAMES)
        raise HafvtError(f"{folder} has no reviews of {category}: fetch one of {names}, plain or .gz")
    return reviews[0], products[0] if products else None


def read_reviews(dump: DumpFile, users: dict[str, int], *, add_users: bool, advance: Advance) -> Reviews:
    """Read the reviews of a category; ids become numbers while they are read, to save memory.

    Args:
        dump: the file of reviews.
        users: number of each known user.
        add_users: add unknown users to `users`; if false, their reviews are left out.
        advance: receives the MiB of the file that are done.
    """
    item_numbers: dict[str, int] = {}
    review_users, review_items, times = array("i"), array("i"), array("q")
    for user, item, time in parse_lines(dump, review_parser(dump.path), advance):
        number = users.setdefault(user, len(users)) if add_users else users.get(user, -1)
        if number >= 0:
            review_users.append(number)
            review_items.append(item_numbers.setdefault(item, len(item_numbers)))
            times.append(time)
    return Reviews(
        np.frombuffer(review_users, dtype=np.int32),
        np.frombuffer(review_items, dtype=np.int32),
        np.frombuffer(times, dtype=np.int64),
        list(item_numbers),
    )


def read_products(dump: DumpFile, wanted: set[str], advance: Advance) -> pl.DataFrame:
    """Read the products of a category; of two lines about one product the first counts.

    Args:
        dump: the file of products.
        wanted: ids of the products to read.
        advance: receives the MiB of the file that are done.

    Returns:
        The columns of `PRODUCT_SCHEMA`; null where a product lacks one.
    """
    remaining = set(wanted)
    frames, rows = [pl.DataFrame(schema=PRODUCT_SCHEMA)], []
    for product in parse_lines(dump, partial(parse_product, wanted=remaining), advance):
        if product is not None:
            remaining.discard(product[0])
            rows.append(product)
        if len(rows) == PRODUCTS_PER_FRAME:
            frames.append(pl.DataFrame(rows, schema=PRODUCT_SCHEMA, orient="row"))
            rows.clear()
    return pl.concat([*frames, pl.DataFrame(rows, schema=PRODUCT_SCHEMA, orient="row")])


def check_first_lines(path: Path, *, products: bool) -> None:
    """Raise InputError if the first lines of a file are not of products or reviews."""
    parse: Callable[[str], Any] = (
        (lambda line: parse_product(line, None)) if products else review_parser(path)
    )
    for _ in islice(parse_lines(DumpFile(path), parse), NUM_FIRST_LINES):
        pass


def parse_lines(dump: DumpFile, parse: Callable[[str], T], advance: Advance | None = None) -> Iterator[T]:
    """Yield the result of `parse` for each line of a file; count lines and malformed lines in `dump`.

    Args:
        dump: the file.
        parse: reads a line, or raises one of `PARSE_ERRORS` if it is malformed.
        advance: receives the MiB of the file that are done.

    Raises:
        InputError: the file is damaged or empty, or most of its first lines are malformed.
    """
    first_malformed = ""
    for row, line in _lines(dump.path, advance):
        if row == 1 and ".csv" in dump.path.suffixes and is_header(line.decode(errors="replace")):
            continue
        dump.rows += 1
        try:
            if len(line) > MAX_LINE_BYTES:
                raise ValueError("too long")
            record = parse(line.decode())
        except PARSE_ERRORS:
            dump.malformed += 1
            if len(dump.malformed_rows) < NUM_LISTED:
                dump.malformed_rows.append(row)
                first_malformed = first_malformed or line[:80].decode(errors="replace")
            _check_format(dump, first_malformed, num_lines=NUM_FIRST_LINES)
        else:
            _check_format(dump, first_malformed, num_lines=NUM_FIRST_LINES)
            yield record
    if dump.rows < NUM_FIRST_LINES:
        _check_format(dump, first_malformed, num_lines=dump.rows)


def review_parser(path: Path) -> Callable[[str], Review]:
    """Return the function that parses a line of a file of reviews."""
    if ".csv" not in path.suffixes:
        return parse_review
    lines = [line.decode(errors="replace") for _, line in islice(_lines(path), NUM_FIRST_LINES)]
    return rating_parser(path, lines)


def _lines(path: Path, advance: Advance | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield row number and bytes of the lines that are not blank."""
    report = (lambda mib: advance(mib, note=path.name)) if advance else None
    for row, line in read_lines(path, max_bytes=MAX_LINE_BYTES, advance=report):
        if line and not line.isspace():
            yield row, line


def _check_format(dump: DumpFile, first_malformed: str, num_lines: int) -> None:
    """Raise InputError if `num_lines` have been read and most of them are malformed."""
    if dump.rows != num_lines or 0 < dump.rows >= 2 * dump.malformed:
        return
    if not dump.rows:
        raise InputError("the file is empty", "Download it again", file=dump.path)
    raise InputError(
        f"{dump.malformed} of the first {dump.rows} lines are not in a format of the publisher",
        "Check that the file is what its name says, or download it again",
        file=dump.path,
        row=dump.malformed_rows[0],
        value=first_malformed,
    )
