"""`hafvt fetch`: what a scenario needs, from where its publishers keep it."""

from __future__ import annotations

import csv
import hashlib
import re
import threading
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from hafvt.data.download import Downloaded, Job, download_all
from hafvt.data.http_client import Web
from hafvt.errors import HafvtError
from hafvt.files import atomic_file, read_json, sha256, write_json
from hafvt.progress import progress

MIB = 2**20
SUFFIXES = (".jpg", ".png", ".gif", ".webp")


@dataclass(frozen=True)
class DumpIndex:
    """Where a publisher keeps reviews and metadata, and under which names.

    Attributes:
        page: the publisher's page, for people.
        base: what every address starts with.
        files: the rest of the addresses of a category.
    """

    page: str
    base: str
    files: tuple[str, str]


# Neither page gives checksums of the files of a category.
DUMPS = {
    # J. McAuley et al., 2015; the addresses behind https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html
    "amazon-2014": DumpIndex(
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
        ("reviews_{}.json.gz", "meta_{}.json.gz"),
    ),
    # J. Ni, J. Li, J. McAuley, 2019; once under jmcauley.ucsd.edu and datarepo.eng.ucsd.edu, both gone
    "amazon-2018": DumpIndex(
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon_v2/",
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/",
        ("categoryFiles/{}.json.gz", "metaFiles2/meta_{}.json.gz"),
    ),
    # Y. Hou et al., 2024
    "amazon-2023": DumpIndex(
        "https://amazon-reviews-2023.github.io/",
        "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/",
        ("raw/review_categories/{}.jsonl.gz", "raw/meta_categories/meta_{}.jsonl.gz"),
    ),
}


# the paper's scenarios: dump and categories
SCENARIOS = {
    "food-kitchen": ("amazon-2014", ["Grocery_and_Gourmet_Food", "Home_and_Kitchen"]),
    "movie-book": ("amazon-2014", ["Movies_and_TV", "Books"]),
}


@dataclass(frozen=True)
class Fetched:
    """What a fetch did.

    Attributes:
        out: the folder.
        files: how many files came in this run.
        present: how many were there before.
        failed: how many cannot be had; `problems.csv` in the folder lists them.
        without: how many items have no address of a picture.
        moved: bytes that came in this run.
    """

    out: Path
    files: int
    present: int
    failed: int
    without: int
    moved: int

    def __str__(self) -> str:
        """Returns it in words."""
        said = [f"fetched {self.files:,} files ({self.moved / MIB:,.1f} MiB)", f"{self.present:,} were there"]
        said += [f"{self.failed:,} failed, see {self.out / 'problems.csv'}"] if self.failed else []
        said += [f"{self.without:,} items have no address"] if self.without else []
        return f"{', '.join(said)}\nwrote {self.out}"


def fetch(
    what: str,
    out: str | Path,
    *,
    categories: list[str] | None = None,
    base_url: str | None = None,
    data: str | Path | None = None,
    parallel: int = 4,
    per_second: float = 4.0,
    max_file_gib: float = 40.0,
    max_picture_mib: float = 10.0,
    allow_private: bool = False,
) -> Fetched:
    """Fetches reviews and metadata, or the pictures of a dataset.

    Started again after Ctrl-C or a failure, it goes on where it was; what is there is not fetched twice. Only
    http and https to public addresses are used, never a proxy, and nothing larger than allowed is kept. What
    a file is, its first bytes tell: reviews and metadata must be gzip, pictures JPEG, PNG, GIF or WebP.

    The address of an item's picture is its image_url or else its image, where that is an address. Pictures go
    to `out`/images, and the dataset's items learn where theirs is. An address that is dead is no reason to
    stop: `out`/problems.csv lists them (item_id, address, problem).

    Example: hafvt fetch food-kitchen --out raw

    Args:
        what: amazon-2014, amazon-2018, amazon-2023 (reviews and metadata), food-kitchen, movie-book (those of
            2014 that the paper uses), or pictures.
        out: the folder to write to.
        categories: the publisher's names of the categories of products, such as Home_and_Kitchen.
        base_url: where a copy of the publisher's files lies, instead of the publisher's own address.
        data: the dataset whose pictures are wanted, for `pictures`.
        parallel: how many files at a time.
        per_second: requests to one host, at most.
        max_file_gib: the largest file of reviews or metadata, in GiB.
        max_picture_mib: the largest picture, in MiB.
        allow_private: also connect to addresses inside a private network, such as a mirror of your own.

    Raises:
        HafvtError: a setting is wrong, reviews or metadata cannot be had, or nothing can be written.
    """
    out = Path(out)
    if what in SCENARIOS and categories is None:
        what, categories = SCENARIOS[what]
    if what not in (*DUMPS, "pictures"):
        raise HafvtError(f"{what!r} is not known: {', '.join((*DUMPS, *SCENARIOS))} or pictures")
    if parallel < 1 or min(per_second, max_file_gib, max_picture_mib) <= 0:
        raise HafvtError("--parallel, --per-second and the largest sizes must be above zero")
    if what == "pictures":
        if data is None or categories is not None or base_url is not None:
            raise HafvtError("pictures need --data DATASET, and neither --categories nor --base-url")
        web = Web(int(max_picture_mib * MIB), per_second, allow_private, tries=3, stall_s=20.0)
        return _fetch_pictures(Path(data), out, web, parallel)
    if not categories or data is not None:
        raise HafvtError(f"{what} needs --categories, as {DUMPS[what].page} spells them, and no --data")
    web = Web(int(max_file_gib * 2**30), per_second, allow_private)
    return _fetch_dump(DUMPS[what], categories, base_url, out, web, parallel)


def safe_name(item_id: str) -> str:
    """Returns the name of an item's picture, without its ending: the id itself where it is harmless.

    Any other becomes a hash behind a sign that no harmless id holds, so that no two ids share a name.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", item_id):
        return item_id
    return f"sha256+{hashlib.sha256(item_id.encode()).hexdigest()}"


def gzip_suffix(head: bytes) -> str:
    """Returns nothing to append for a gzip file.

    Raises:
        ValueError: the first bytes are not gzip's.
    """
    if not head.startswith(b"\x1f\x8b\x08"):
        raise ValueError("not a gzip file: an error page, perhaps")
    return ""


def picture_suffix(head: bytes) -> str:
    """Returns a picture's ending by its first bytes.

    Raises:
        ValueError: they are of no known picture.
    """
    if head.startswith(b"\xff\xd8\xff"):
        return ".jpg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return ".png"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return ".gif"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return ".webp"
    raise ValueError("not a picture (JPEG, PNG, GIF, WebP)")


def _fetch_dump(
    dump: DumpIndex, categories: list[str], base_url: str | None, out: Path, web: Web, parallel: int
) -> Fetched:
    """Fetches reviews and metadata of some categories."""
    base = (base_url or dump.base).rstrip("/")
    wanted = {}
    for category in categories:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", category):
            raise HafvtError(f"{category!r} is no category: take its name from {dump.page}")
        for file in dump.files:
            address = f"{base}/{file.format(category)}"
            path = out / address.rpartition("/")[2]
            wanted[path] = Job(address, path, gzip_suffix)
    jobs = [job for path, job in wanted.items() if not path.exists()]
    files, moved, problems = _run(jobs, web, parallel)
    if problems:
        told = "".join(f"\n  {job.url}: {problem}" for job, problem in problems)
        raise HafvtError(
            f"{len(problems)} of {len(wanted)} files cannot be had:{told}\n"
            f"The others are in {out}. Start again to go on; where that does not help, compare the names "
            f"with {dump.page} or name a copy with --base-url"
        )
    return Fetched(out, files, len(wanted) - len(jobs), 0, 0, moved)


def _fetch_pictures(data: Path, out: Path, web: Web, parallel: int) -> Fetched:
    """Fetches the pictures of a dataset's items."""
    table = _items(data, out)
    addresses = dict(table.select("item_id", "image_url").rows())
    folder = out / "images"
    found = _found(folder)
    items = {safe_name(item): (item, address) for item, address in addresses.items() if address}
    jobs = [Job(url, folder / name, picture_suffix) for name, (_, url) in items.items() if name not in found]
    problems: list[tuple[Job, str]] = []
    try:
        files, moved, problems = _run(jobs, web, parallel, problems)
    finally:
        _write_problems(out, [(items[job.path.name][0], job.url, problem) for job, problem in problems])
        here = _found(folder)
        _tell(data, out, table, {i: f"images/{here[name]}" for name, (i, _) in items.items() if name in here})
    return Fetched(out, files, len(items) - len(jobs), len(problems), len(addresses) - len(items), moved)


def _run(
    jobs: list[Job], web: Web, parallel: int, problems: list[tuple[Job, str]] | None = None
) -> tuple[int, int, list[tuple[Job, str]]]:
    """Fetches files with progress; returns how many came, bytes and problems, which grow while it runs."""
    problems = [] if problems is None else problems
    files, moved, lock = 0, 0, threading.Lock()
    with progress("fetch", len(jobs), "files") as advance:

        def told(count: int) -> None:
            nonlocal moved
            with lock:
                moved += count
                advance(0, f"{moved / MIB:,.1f} MiB")

        with closing(download_all(jobs, web, parallel=parallel, told=told)) as results:
            for job, result in results:
                if isinstance(result, Downloaded):
                    files += 1
                else:
                    problems.append((job, result.problem))
                with lock:
                    advance(1, f"{moved / MIB:,.1f} MiB")
    return files, moved, problems


def _items(data: Path, out: Path) -> pl.DataFrame:
    """Returns the items of a dataset, addresses of pictures in image_url, null where there is none."""
    path = data / "items.parquet"
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError:
        raise HafvtError(f"{path} does not exist: --data takes a dataset folder") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise HafvtError(f"{path} cannot be read ({error}): prepare the dataset anew") from None
    if "image_url" not in table.columns:
        table = table.with_columns(image_url=pl.lit(None, pl.String))
    image, url = pl.col("image"), pl.col("image_url").str.strip_chars().replace("", None)
    afar = image.str.contains("^(?i)https?://")
    table = table.with_columns(
        image_url=url.fill_null(pl.when(afar).then(image)), image=pl.when(~afar).then(image)
    )
    if not table["image_url"].count():
        raise HafvtError(f"{path} has no addresses: prepare the dataset with them as image or image_url")
    root = read_json(data / "manifest.json").get("image_root")
    if root not in (None, str(out.resolve())) and table["image"].count():
        raise HafvtError(f"{data} has pictures in {root}: say --out {root}")
    return table


def _tell(data: Path, out: Path, table: pl.DataFrame, images: dict[str, str]) -> None:
    """Tells a dataset's items where their pictures are."""
    found = pl.col("item_id").replace_strict(images, default=None, return_dtype=pl.String)
    with atomic_file(data / "items.parquet") as temporary:
        table.with_columns(image=pl.coalesce(found, "image")).write_parquet(temporary)
    manifest = read_json(data / "manifest.json")
    manifest["sha256"]["items.parquet"] = sha256(data / "items.parquet")
    write_json(data / "manifest.json", manifest | {"image_root": str(out.resolve())})


def _found(folder: Path) -> dict[str, str]:
    """Returns the pictures that are there, whole: file name by safe name."""
    if not folder.is_dir():
        return {}
    return {path.stem: path.name for path in folder.iterdir() if path.suffix in SUFFIXES}


def _write_problems(out: Path, rows: list[tuple[str, str, str]]) -> None:
    """Writes the table of pictures that cannot be had."""
    with (
        atomic_file(out / "problems.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows([("item_id", "address", "problem"), *rows])
