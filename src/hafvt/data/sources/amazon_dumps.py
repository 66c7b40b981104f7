"""Amazon's dumps of reviews and products, as published in 2014, 2018 and 2023, read as streams.

A category has a file of reviews (JSON lines or CSV) and one of products. A malformed line is counted and
skipped. A file is refused if most of its first lines are malformed.

The products of 2014 are Python literals, not JSON. Ratings of 2014 have the columns user, item, rating, time,
those of 2018 item, user, rating, time, both without a header; those of 2023 have a header.

Formats: https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon,
https://amazon-reviews-2023.github.io.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice, permutations
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl

from hafvt.data.attributes import RELATION_COLUMNS
from hafvt.data.lines import check_memory, read_lines
from hafvt.data.titles import normalize_title
from hafvt.errors import HafvtError, InputError
from hafvt.progress import Advance

T = TypeVar("T")
Fields = dict[str, Any]

RATING_NAMES = ("ratings_{}.csv", "{}.csv")
REVIEW_NAMES = ("reviews_{}.json", "reviews_{}_5.json", "{}.json", "{}_5.json", "{}.jsonl", *RATING_NAMES)
PRODUCT_NAMES = ("meta_{}.json", "meta_{}.jsonl")

MAX_LINE_BYTES = 2**20  # the longest lines of the publisher have about 100,000
NUM_FIRST_LINES = 100  # lines that decide whether the format is right
NUM_LISTED = 5  # malformed lines whose row numbers are kept
BYTES_PER_CHECK = 2**26  # of unpacked lines between two checks of the free memory
PRODUCTS_PER_FRAME = 10_000  # as Python objects, products take ten times the memory
MAX_SECONDS = 4_102_444_800  # the year 2100; larger times are milliseconds
PARSE_ERRORS = (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)

CATEGORY = re.compile(r"[\w.,&+' -]{1,100}")
ID = re.compile(r"[!-~]{1,64}")
ADDRESS = re.compile(r"https?://[^\s\x00-\x1f\x7f]{1,2000}", re.IGNORECASE)
ASIN = re.compile(r"""['"](?:parent_)?asin['"]\s*:\s*['"]([^'"]*)['"]""")
RATING_PATTERNS = {  # of the columns of a file of ratings without a header
    "user": re.compile(r"A[0-9A-Z]{7,}|#oc-\w+"),
    "item": re.compile(r"B[0-9A-Z]{9}|\d{9}[\dX]"),
    "time": re.compile(r"\d{9,10}|\d{12,13}"),
}
REVIEW_FIELDS = {  # names of the fields of a review; the first that is there counts
    "user": ("user_id", "reviewerID"),
    "item": ("parent_asin", "asin"),
    "time": ("timestamp", "unixReviewTime"),
}
REVIEW_FIELD_NAMES = frozenset(name for names in REVIEW_FIELDS.values() for name in names)
NAMES_OF_2018 = {"also_bought": "also_buy", "also_viewed": "also_view"}  # for columns of RELATION_COLUMNS
PRODUCT_SCHEMA: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "image_url": pl.String,
    "categories": pl.List(pl.String),
    "brand": pl.String,
    **dict.fromkeys(RELATION_COLUMNS, pl.List(pl.String)),
}


class Review(NamedTuple):
    """User and item of a review and its time in seconds since 1970."""

    user: str
    item: str
    time: int


@dataclass
class DumpFile:
    """A file of a dump, and counts of the lines that `parse_lines` has read.

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
        listed = f" (row {', '.join(map(str, self.malformed_rows))}{more})" if self.malformed else ""
        return counts + listed

    def provenance(self) -> dict[str, int]:
        """Return the size of the file and the counts of its lines, for the manifest."""
        return {"bytes": self.path.stat().st_size, "rows": self.rows, "malformed": self.malformed}

    def parse_lines(self, parse: Callable[[str], T | None], advance: Advance | None = None) -> Iterator[T]:
        """Yield the results of `parse` for the lines of the file; count lines and malformed lines.

        Args:
            parse: reads a line, returns None to skip it, or raises one of `PARSE_ERRORS` if it is malformed.
            advance: receives the MiB of the file that are done.

        Raises:
            InputError: the file is damaged, empty or too large for the memory, or most of its first lines are
                malformed.
        """
        first_malformed, num_bytes = "", 0
        for row, line in _lines(self.path, advance):
            num_bytes += len(line)
            if num_bytes > BYTES_PER_CHECK:
                check_memory(self.path, num_bytes, self.rows)
                num_bytes = 0
            if row == 1 and _is_csv(self.path) and _is_header(line.decode(errors="replace")):
                continue
            self.rows += 1
            record = None
            try:
                if len(line) > MAX_LINE_BYTES:
                    raise ValueError("too long")
                record = parse(line.decode())
            except PARSE_ERRORS:
                self.malformed += 1
                first_malformed = first_malformed or line[:80].decode(errors="replace")
                if len(self.malformed_rows) < NUM_LISTED:
                    self.malformed_rows.append(row)
            if self.rows == NUM_FIRST_LINES:
                self._check_format(first_malformed)
            if record is not None:
                yield record
        if self.rows < NUM_FIRST_LINES:
            self._check_format(first_malformed)

    def _check_format(self, first_malformed: str) -> None:
        """Raise InputError if there are no lines or most of them are malformed."""
        if not self.rows:
            raise InputError("the file is empty", "Download it again", file=self.path)
        if 2 * self.malformed > self.rows:
            raise InputError(
                f"{self.malformed} of the first {self.rows} lines are not in a format of the publisher",
                "Check that the file is what its name says, or download it again",
                file=self.path,
                row=self.malformed_rows[0],
                value=first_malformed,
            )


def find_dumps(folder: Path, category: str) -> tuple[DumpFile, DumpFile | None]:
    """Return the files of a category, reviews and products (None without one); check their first lines.

    Raises:
        HafvtError: the category is no name; a file of reviews is missing; a kind of file is there twice; or a
            file has another format.
    """
    if not CATEGORY.fullmatch(category):
        raise HafvtError(f"{category!r} is not a category: name it as its files are named")
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
    parsers: dict[Path, Callable[[str], Any]] = {reviews[0]: review_parser(reviews[0])}
    parsers |= {path: partial(parse_product, wanted=None) for path in products}
    for path, parse in parsers.items():
        for _ in islice(DumpFile(path).parse_lines(parse), NUM_FIRST_LINES):
            pass
    return DumpFile(reviews[0]), DumpFile(products[0]) if products else None


def review_parser(path: Path) -> Callable[[str], Review]:
    """Return the function that parses a line of a file of reviews: of JSON, or of CSV with ratings.

    Raises:
        InputError: no columns of the CSV file look like users, items and times.
    """
    if not _is_csv(path):
        return parse_review
    first_lines = [line.decode(errors="replace") for _, line in islice(_lines(path), NUM_FIRST_LINES)]
    rows = [_csv_fields(line) for line in first_lines]
    user, item, time = _rating_columns(path, rows)
    num_columns = len(rows[0])

    def parse_rating(line: str) -> Review:
        fields = _csv_fields(line)
        if len(fields) != num_columns:
            raise ValueError(f"{len(fields)} fields")
        return _checked_review(fields[user], fields[item], fields[time])

    return parse_rating


def read_products(dump: DumpFile, item_ids: Iterable[str], advance: Advance) -> pl.DataFrame:
    """Return the products with these ids, with the columns of `PRODUCT_SCHEMA` (null where one is missing).

    Of two lines about one product the first counts. `advance` receives the MiB of the file that are done.
    """
    remaining = set(item_ids)
    frames, rows = [], []
    for product in dump.parse_lines(partial(parse_product, wanted=remaining), advance):
        remaining.discard(product[0])
        rows.append(product)
        if len(rows) == PRODUCTS_PER_FRAME:
            frames.append(pl.DataFrame(rows, schema=PRODUCT_SCHEMA, orient="row"))
            rows.clear()
    return pl.concat([*frames, pl.DataFrame(rows, schema=PRODUCT_SCHEMA, orient="row")])


def parse_review(line: str) -> Review:
    """Parse a review of any year; raise one of `PARSE_ERRORS` if the line is none."""
    fields = _object(line)
    return _checked_review(*(_first_field(fields, names) for names in REVIEW_FIELDS.values()))


def parse_product(line: str, wanted: set[str] | None) -> tuple[Any, ...] | None:
    """Parse a product of any year; raise one of `PARSE_ERRORS` if the line is none.

    Args:
        line: a line of the file of products.
        wanted: ids of the products to parse; None for all.

    Returns:
        The columns of `PRODUCT_SCHEMA`, or None for a product that is not wanted.
    """
    if wanted is not None and (asins := ASIN.findall(line)) and wanted.isdisjoint(asins):
        if not line.rstrip().endswith("}"):
            raise ValueError("cut off")
        return None  # without parsing the line: a Python literal takes far longer than this search
    fields = _object(line)
    item = _first_field(fields, REVIEW_FIELDS["item"])
    if not ID.fullmatch(item or ""):
        raise ValueError("not a product")
    if wanted is not None and item not in wanted:
        return None
    details = fields.get("details")
    detailed_brand = details.get("Brand") if isinstance(details, dict) else None
    title = _text(fields.get("title"))
    return (
        item,
        None if title and "getTime" in title else title,  # 2018: the script of a page in place of a title
        next((a for a in _image_addresses(fields) if isinstance(a, str) and ADDRESS.fullmatch(a)), None),
        _categories(fields.get("categories") or fields.get("category")),
        _text(fields.get("brand")) or _text(detailed_brand) or _text(fields.get("store")),
        *(_related(fields, name) for name in RELATION_COLUMNS),
    )


def _lines(path: Path, advance: Advance | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield row number and bytes of the lines that are not blank."""
    report = partial(advance, note=path.name) if advance else None
    for row, line in read_lines(path, max_bytes=MAX_LINE_BYTES, advance=report):
        if line and not line.isspace():
            yield row, line


def _is_csv(path: Path) -> bool:
    return ".csv" in path.suffixes


def _is_header(line: str) -> bool:
    """Return whether a line of CSV is a header."""
    return not REVIEW_FIELD_NAMES.isdisjoint(_csv_fields(line))


def _csv_fields(line: str) -> list[str]:
    """Return the fields of a line of CSV; none if it is malformed."""
    with suppress(csv.Error):
        return next(csv.reader([line])) if '"' in line else line.split(",")
    return []


def _rating_columns(path: Path, rows: list[list[str]]) -> tuple[int, ...]:
    """Return the indices of the columns of user, item and time, by their names or else their values.

    Raises:
        InputError: no columns look like these.
    """
    first = rows[0] if rows else []
    if not REVIEW_FIELD_NAMES.isdisjoint(first):
        columns = [next((n for n in names if n in first), None) for names in REVIEW_FIELDS.values()]
        if None not in columns:
            return tuple(first.index(str(name)) for name in columns)
    else:
        complete_rows = [row for row in rows if len(row) == len(first)]

        def num_matches(columns: tuple[int, ...]) -> int:
            pairs = list(zip(RATING_PATTERNS.values(), columns, strict=True))
            return sum(all(pattern.fullmatch(row[n]) for pattern, n in pairs) for row in complete_rows)

        # An ISBN can look like a time: of equal matches, the first has the time in the later column.
        best = max(permutations(range(min(len(first), 8)), 3), key=num_matches, default=None)
        if best and 2 * num_matches(best) >= len(rows):
            return best
    raise InputError(
        "no columns of users, items and times",
        "Give user,item,rating,time (2014), item,user,rating,time (2018), or a header (2023)",
        file=path,
        row=1,
        value=",".join(first),
    )


def _checked_review(user: Any, item: Any, time: Any) -> Review:
    seconds = int(time) if not isinstance(time, bool) else 0
    if seconds > MAX_SECONDS:
        seconds //= 1000
    if not (ID.fullmatch(user) and ID.fullmatch(item) and 0 < seconds < MAX_SECONDS):
        raise ValueError("not a review")
    return Review(user, item, seconds)


def _first_field(fields: Fields, names: tuple[str, ...]) -> Any:
    """Return the first of these fields that is there, else None."""
    return next((fields[name] for name in names if name in fields), None)


def _object(line: str) -> Fields:
    """Return the fields of a JSON object or a Python literal; raise one of `PARSE_ERRORS` for others."""
    try:
        fields = json.loads(line)
    except ValueError:
        with warnings.catch_warnings():  # of invalid escapes
            warnings.simplefilter("ignore")
            fields = ast.literal_eval(line.strip())
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return fields


def _text(value: Any) -> str | None:
    """Return a normalized text; None if the value is none or it is blank."""
    return normalize_title(value) if isinstance(value, str) else None


def _image_addresses(fields: Fields) -> Iterator[Any]:
    """Yield the values that may be the address of a product's image, the best first."""
    for name in ("imUrl", "imageURLHighRes", "imageURL", "image"):
        value = fields.get(name)
        yield from value if isinstance(value, list) else [value]
    images = fields.get("images")
    images = [image for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    for image in sorted(images, key=lambda image: image.get("variant") != "MAIN"):
        yield from (image.get(size) for size in ("large", "hi_res", "thumb"))


def _categories(value: Any) -> list[str] | None:
    """Return the distinct names in a list of categories or of paths of categories."""
    paths = value if isinstance(value, list) else []
    names = [name for path in paths for name in (path if isinstance(path, list) else [path])]
    return list(dict.fromkeys(text for name in names if (text := _text(name)))) or None


def _related(fields: Fields, column: str) -> list[str] | None:
    """Return the ids of a list of related products, of a column of `RELATION_COLUMNS`."""
    nested = fields.get("related")
    for parent in (nested if isinstance(nested, dict) else {}, fields):
        for name in (column, NAMES_OF_2018.get(column, column)):
            value = parent.get(name)
            if isinstance(value, list) and value:
                return [item for item in value if isinstance(item, str) and ID.fullmatch(item)] or None
    return None
