"""One form for the titles of all sources, so that equal titles get equal vectors."""

from __future__ import annotations

import html
import re
from unicodedata import normalize

import polars as pl

WIDTH_FORMS = re.compile("[\u3000\uff00-\uffef]+")  # full-width and half-width forms
PLAIN = r"^[!-%'-~]+(?: [!-%'-~]+)*$"  # printable ASCII without "&" and repeated blanks


def normalize_title(title: str) -> str | None:
    """Return a title as Unicode NFC in usual widths, without HTML entities; None if it is blank.

    Control characters and runs of blanks become one blank, half surrogate pairs a replacement character.
    """
    text = title
    for _ in range(3):  # "&amp;amp;" has been escaped twice; a normal title must stay as it is
        text = html.unescape(WIDTH_FORMS.sub(lambda match: normalize("NFKC", match[0]), text))
    text = normalize("NFC", text.encode("utf-8", "replace").decode())
    return " ".join("".join(c if c.isprintable() else " " for c in text).split()) or None


def normalize_titles(column: pl.Series) -> pl.Series:
    """Return a column of titles, each as `normalize_title` returns it."""
    odd = column.filter(~column.str.contains(PLAIN)).unique().drop_nulls()
    if odd.is_empty():
        return column
    normal = [normalize_title(title) for title in odd]
    return column.replace_strict(odd, pl.Series(normal, dtype=pl.String), default=column)
