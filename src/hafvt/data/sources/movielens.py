"""MovieLens-1M by GroupLens: films of two domains, told apart by genre."""

from __future__ import annotations

import lzma
import struct
import zlib
from io import BytesIO
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import polars as pl

from hafvt.errors import InputError
from hafvt.files import atomic_file
from hafvt.tables import without_formulas

BASE_URL = "https://files.grouplens.org/datasets/movielens/"
ARCHIVE = "ml-1m.zip"
GENRES = {
    "action": ("Action", "Adventure", "Sci-Fi", "Thriller", "Horror", "Crime"),
    "drama": ("Drama", "Romance", "Musical", "War", "Film-Noir"),
}
"""The genres of each domain. Films with genres of both domains, or of none, are left out."""
MAX_MEMBER_BYTES = 2**27  # unpacked; the real files have 25 MB at most
ARCHIVE_ERRORS = (BadZipFile, zlib.error, lzma.LZMAError, struct.error)
REMEDY = "Remove it, and fetch it again"


def write_movielens_tables(archive: Path, out: Path) -> str:
    """Write interactions.csv and items.csv, as `prepare` reads them, from GroupLens' archive.

    Returns:
        What the tables hold and what was left out, in a line.

    Raises:
        InputError: the archive is damaged or another one.
    """
    ratings = _read_table(archive, "ratings.dat", ["user_id", "item_id", "rating", "timestamp"])
    movies = _read_table(archive, "movies.dat", ["item_id", "title", "genres"])
    genres = pl.col("genres").str.split("|")
    has = {name: genres.list.set_intersection(list(values)).list.len() > 0 for name, values in GENRES.items()}
    is_of_one = has["action"] != has["drama"]
    domain = pl.when(has["action"]).then(pl.lit("action")).otherwise(pl.lit("drama")).alias("domain")
    items = movies.filter(is_of_one).select("item_id", domain, "title")
    log = ratings.join(items.select("item_id"), on="item_id", maintain_order="left")
    log = log.select("user_id", "item_id", "timestamp")
    for name, table in (("interactions.csv", log), ("items.csv", items)):
        with atomic_file(out / name) as temporary:
            without_formulas(table).write_csv(temporary)
    return (
        f"{len(log):,} of {len(ratings):,} interactions with {len(items):,} of {len(movies):,} films: others "
        "have genres of both domains, action and drama, or of none"
    )


def _read_table(archive: Path, name: str, columns: list[str]) -> pl.DataFrame:
    """Return a table of the archive, whose fields are separated by "::", as text."""
    try:
        with ZipFile(archive) as file, file.open(f"ml-1m/{name}") as member:
            content = member.read(MAX_MEMBER_BYTES + 1)
    except (*ARCHIVE_ERRORS, KeyError, OSError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"it cannot be read ({error})", REMEDY, file=archive) from None
    if len(content) > MAX_MEMBER_BYTES:
        raise InputError(f"{name} has more than {MAX_MEMBER_BYTES:,} bytes", REMEDY, file=archive)
    text = content.decode("latin-1").replace("::", "\t").encode()
    try:
        return pl.read_csv(
            BytesIO(text),
            separator="\t",
            quote_char=None,
            has_header=False,
            infer_schema=False,
            new_columns=columns,
            schema=dict.fromkeys(columns, pl.String),
        )
    except pl.exceptions.PolarsError:
        raise InputError(f"{name} is not a table of {', '.join(columns)}", REMEDY, file=archive) from None
