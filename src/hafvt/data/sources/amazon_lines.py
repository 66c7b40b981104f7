"""One line of Amazon's dumps -> a review or a product, whatever the year.

The metadata of 2014 are Python literals, not JSON; its ratings are user,item,rating,time, those of 2018
item,user,rating,time, both without a header; those of 2023 have one.

Formats: https://jmcauley.ucsd.edu/data/amazon, https://nijianmo.github.io/amazon,
https://amazon-reviews-2023.github.io.
"""

from __future__ import annotations

import ast
import csv
import html
import json
import re
import warnings
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl

from hafvt.errors import InputError

Fields = dict[str, Any]

BROKEN = (ValueError, TypeError, SyntaxError, OverflowError, RecursionError, MemoryError)

ID = re.compile(r"[!-~]{1,64}")
ADDRESS = re.compile(r"https?://[^\s\x00-\x1f\x7f]{1,2000}", re.IGNORECASE)
ASIN = re.compile(r"""['"](?:parent_)?asin['"]\s*:\s*['"]([^'"]*)['"]""")
SHAPES = {  # of the columns of a file of ratings without a header
    "user": re.compile(r"A[0-9A-Z]{7,}|#oc-\w+"),
    "item": re.compile(r"B[0-9A-Z]{9}|\d{9}[\dX]"),
    "time": re.compile(r"\d{9,10}|\d{12,13}"),
}
NAMES = {  # of the fields of a review; the first that is there counts
    "user": ("user_id", "reviewerID"),
    "item": ("parent_asin", "asin"),
    "time": ("timestamp", "unixReviewTime"),
}
LATEST = 4_102_444_800  # the year 2100; larger times are milliseconds

RELATED = {  # our name -> the names of 2014 and of 2018
    "also_bought": ("also_bought", "also_buy"),
    "also_viewed": ("also_viewed", "also_view"),
    "bought_together": ("bought_together",),
    "buy_after_viewing": ("buy_after_viewing",),
}
PRODUCT: dict[str, Any] = {
    "item_id": pl.String,
    "title": pl.String,
    "image_url": pl.String,
    "categories": pl.List(pl.String),
    "brand": pl.String,
    **dict.fromkeys(RELATED, pl.List(pl.String)),
}


class Review(NamedTuple):
    """Who reviewed what and when, in seconds since 1970."""

    user: str
    item: str
    time: int


def rating_parser(path: Path, head: list[str]) -> Callable[[str], Review]:
    """Returns what reads a line of a file of ratings.

    Args:
        path: of the file, for the error.
        head: its first lines, a header included.

    Raises:
        InputError: no columns look like users, items and times.
    """
    rows = [_fields(line) for line in head]
    user, item, time = _columns(path, rows)
    width = len(rows[0])

    def rating_of(line: str) -> Review:
        fields = _fields(line)
        if len(fields) != width:
            raise ValueError(f"{len(fields)} fields")
        return _review(fields[user], fields[item], fields[time])

    return rating_of


def names_columns(line: str) -> bool:
    """Returns whether a line of CSV is a header."""
    return not {name for names in NAMES.values() for name in names}.isdisjoint(_fields(line))


def review_of(line: str) -> Review:
    """Reads a review of any year."""
    fields = _object(line)
    user, item, time = (next((fields[n] for n in names if n in fields), None) for names in NAMES.values())
    return _review(user, item, time)


def _review(user: Any, item: Any, time: Any) -> Review:
    seconds = int(time)
    if seconds > LATEST:
        seconds //= 1000
    if not (ID.fullmatch(user) and ID.fullmatch(item) and 0 < seconds < LATEST):
        raise ValueError("not a review")
    return Review(user, item, seconds)


def _object(line: str) -> Fields:
    """Returns the fields of a line that is JSON or a Python literal.

    Raises:
        One of BROKEN: it is neither.
    """
    try:
        fields = json.loads(line)
    except ValueError:
        with warnings.catch_warnings():  # of invalid escapes
            warnings.simplefilter("ignore")
            fields = ast.literal_eval(line.strip())
    if not isinstance(fields, dict):
        raise ValueError("not an object")
    return fields


def _fields(line: str) -> list[str]:
    """Returns the fields of a line of CSV."""
    line = line.rstrip("\r")
    return next(csv.reader([line])) if '"' in line else line.split(",")


def _columns(path: Path, head: list[list[str]]) -> tuple[int, ...]:
    """Returns which columns of ratings are user, item and time, by their names or else their shapes.

    Raises:
        InputError: no columns look like that.
    """
    first = head[0] if head else []
    if not {name for names in NAMES.values() for name in names}.isdisjoint(first):
        found = [next((n for n in names if n in first), None) for names in NAMES.values()]
        if None not in found:
            return tuple(first.index(str(name)) for name in found)
    else:

        def fits(columns: tuple[int, ...]) -> int:
            pairs = list(zip(SHAPES.values(), columns, strict=True))
            return sum(all(shape.fullmatch(row[n]) for shape, n in pairs) for row in rows)

        rows = [row for row in head if len(row) == len(first)]
        # An ISBN can look like a time; of two readings the one with the time further right is right.
        best = max(permutations(range(min(len(first), 8)), 3), key=fits, default=None)
        if best and 2 * fits(best) >= len(head):
            return best
    raise InputError(
        "no columns of users, items and times",
        "Give user,item,rating,time (2014), item,user,rating,time (2018), or a header (2023)",
        file=path,
        row=1,
        value=",".join(first),
    )


def product_of(line: str, wanted: set[str] | None) -> tuple[Any, ...] | None:
    """Reads a product of any year.

    Args:
        line: of the file of products.
        wanted: ids of items; None takes all.

    Returns:
        The columns of `PRODUCT`, or None where it is not wanted.
    """
    if wanted is not None and (found := ASIN.findall(line)) and wanted.isdisjoint(found):
        if not line.rstrip().endswith("}"):
            raise ValueError("cut off")
        return None  # unread: reading a Python literal takes far longer than this look at it
    fields = _object(line)
    item = next((fields[name] for name in NAMES["item"] if name in fields), None)
    if not ID.fullmatch(item or ""):
        raise ValueError("not a product")
    if wanted is not None and item not in wanted:
        return None
    details = fields.get("details")
    made = details.get("Brand") if isinstance(details, dict) else None
    title = _text(fields.get("title"))
    return (
        item,
        None if title and "getTime" in title else title,  # 2018: a page's script where a title should be
        next((a for a in _addresses(fields) if isinstance(a, str) and ADDRESS.fullmatch(a)), None),
        _categories(fields.get("categories") or fields.get("category")),
        _text(fields.get("brand")) or _text(made) or _text(fields.get("store")),
        *(_related(fields, names) for names in RELATED.values()),
    )


def _text(value: Any) -> str | None:
    """Returns a text without entities, control characters and double spaces; None where nothing is left."""
    if not isinstance(value, str):
        return None
    text = html.unescape(value).encode("utf-8", "replace").decode()  # half a surrogate pair is no text
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()) or None


def _addresses(fields: Fields) -> Iterator[Any]:
    """Yields what may be the address of a product's picture, the best first."""
    for name in ("imUrl", "imageURLHighRes", "imageURL", "image"):
        value = fields.get(name)
        yield from value if isinstance(value, list) else [value]
    pictures = fields.get("images")
    pictures = [p for p in pictures if isinstance(p, dict)] if isinstance(pictures, list) else []
    for picture in sorted(pictures, key=lambda p: p.get("variant") != "MAIN"):
        yield from (picture.get(size) for size in ("large", "hi_res", "thumb"))


def _categories(value: Any) -> list[str] | None:
    """Returns the names of a list of categories or of paths of categories, each once."""
    paths = value if isinstance(value, list) else []
    names = [name for path in paths for name in (path if isinstance(path, list) else [path])]
    return list(dict.fromkeys(text for name in names if (text := _text(name)))) or None


def _related(fields: Fields, names: tuple[str, ...]) -> list[str] | None:
    """Returns the ids of a list of related products."""
    nested = fields.get("related")
    for place in (nested if isinstance(nested, dict) else {}, fields):
        for name in names:
            value = place.get(name)
            if isinstance(value, list) and value:
                return [item for item in value if isinstance(item, str) and ID.fullmatch(item)] or None
    return None
