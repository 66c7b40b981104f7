"""`hafvt fetch`: download the dumps of a scenario, or the images of a dataset."""

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
    """Addresses of a publisher's files.

    Attributes:
        page: the publisher's page, for error messages.
        base: start of every address.
        files: the rest of the addresses of a category, reviews and metadata.
    """

    page: str
    base: str
    files: tuple[str, str]


# None of the pages gives checksums of the files of a category.
DUMPS = {
    # J. McAuley et al., 2015; the addresses behind https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html
    "amazon-2014": DumpIndex(
        "https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html",
        "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/",
        ("reviews_{}.json.gz", "meta_{}.json.gz"),
    ),
    # J. Ni, J. Li, J. McAuley, 2019
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


SCENARIO_DUMPS = {  # the paper's scenarios: dump and categories
    "food-kitchen": ("amazon-2014", ["Grocery_and_Gourmet_Food", "Home_and_Kitchen"]),
    "movie-book": ("amazon-2014", ["Movies_and_TV", "Books"]),
}


@dataclass(frozen=True)
class Fetched:
    """Result of `fetch`.

    Attributes:
        out: the folder.
        files: number of files downloaded in this run.
        present: number of files that were there before.
        failed: number of failed downloads; `problems.csv` in the folder lists them.
        without_address: number of items without the address of an image.
        num_bytes: bytes downloaded in this run.
    """

    out: Path
    files: int
    present: int
    failed: int
    without_address: int
    num_bytes: int

    def __str__(self) -> str:
        """Return the numbers as text."""
        mib = self.num_bytes / MIB
        parts = [f"fetched {self.files:,} files ({mib:,.1f} MiB)", f"{self.present:,} were there"]
        parts += [f"{self.failed:,} failed, see {self.out / 'problems.csv'}"] if self.failed else []
        parts += [f"{self.without_address:,} items have no address"] if self.without_address else []
        return f"{', '.join(parts)}\nwrote {self.out}"


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
    """Download reviews and metadata, or the images of a dataset.

    Started again after Ctrl-C or a failure, `fetch` resumes; files that are there are not downloaded again.
    It uses http and https to public addresses only, never a proxy, and refuses larger files than allowed. The
    first bytes of a file decide whether it is accepted: reviews and metadata must be gzip, images JPEG, PNG,
    GIF or WebP.

    The address of an item's image is its image_url, or else its image if that is an address. Images go to
    `out`/images, and the item table of the dataset receives their paths. Failed downloads of images do not
    stop the others: `out`/problems.csv lists them (item_id, address, problem).

    Example: hafvt fetch food-kitchen --out raw

    Args:
        what: amazon-2014, amazon-2018, amazon-2023 (reviews and metadata), food-kitchen, movie-book (those of
            2014 that the paper uses), or pictures.
        out: the folder to write.
        categories: the publisher's names of product categories, such as Home_and_Kitchen.
        base_url: address of a copy of the publisher's files; default: the publisher's own address.
        data: the dataset whose images are downloaded, for `pictures`.
        parallel: number of simultaneous downloads.
        per_second: largest number of requests to one host per second.
        max_file_gib: largest size of a file of reviews or metadata, in GiB.
        max_picture_mib: largest size of an image, in MiB.
        allow_private: also connect to addresses of a private network, such as a mirror of your own.

    Raises:
        HafvtError: a setting is wrong, or reviews or metadata cannot be downloaded.
    """
    out = Path(out)
    if what in SCENARIO_DUMPS and categories is None:
        what, categories = SCENARIO_DUMPS[what]
    if what not in (*DUMPS, "pictures"):
        raise HafvtError(f"{what!r} is not known: {', '.join((*DUMPS, *SCENARIO_DUMPS))} or pictures")
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
    """Return the file name of an item's image, without suffix: the id itself if it is safe, else a hash.

    Hashes start with "sha256+", which no safe id contains, so that no two ids share a name.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", item_id):
        return item_id
    return f"sha256+{hashlib.sha256(item_id.encode()).hexdigest()}"


def gzip_suffix(head: bytes) -> str:
    """Return the suffix to append to a gzip file: none.

    Raises:
        ValueError: the first bytes are not those of gzip.
    """
    if not head.startswith(b"\x1f\x8b\x08"):
        raise ValueError("not a gzip file: an error page, perhaps")
    return ""


def picture_suffix(head: bytes) -> str:
    """Return the suffix of an image by its first bytes.

    Raises:
        ValueError: they are not those of JPEG, PNG, GIF or WebP.
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
    """Download reviews and metadata of categories."""
    base = (base_url or dump.base).rstrip("/")
    jobs_by_path = {}
    for category in categories:
        if not re.fullmatch(r"[A-Za-z0-9_]{1,64}", category):
            raise HafvtError(f"{category!r} is no category: take its name from {dump.page}")
        for file in dump.files:
            address = f"{base}/{file.format(category)}"
            path = out / address.rpartition("/")[2]
            jobs_by_path[path] = Job(address, path, gzip_suffix)
    jobs = [job for path, job in jobs_by_path.items() if not path.exists()]
    files, num_bytes, problems = _run(jobs, web, parallel)
    if problems:
        failures = "".join(f"\n  {job.url}: {problem}" for job, problem in problems)
        raise HafvtError(
            f"{len(problems)} of {len(jobs_by_path)} files cannot be downloaded:{failures}\n"
            f"The others are in {out}. Start again to resume; if that does not help, compare the names "
            f"with {dump.page} or name a copy with --base-url"
        )
    return Fetched(out, files, len(jobs_by_path) - len(jobs), 0, 0, num_bytes)


def _fetch_pictures(data: Path, out: Path, web: Web, parallel: int) -> Fetched:
    """Download the images of a dataset's items."""
    table = _items(data, out)
    addresses = dict(table.select("item_id", "image_url").rows())
    folder = out / "images"
    existing = _existing_images(folder)
    items = {safe_name(item): (item, address) for item, address in addresses.items() if address}
    jobs = [
        Job(url, folder / name, picture_suffix) for name, (_, url) in items.items() if name not in existing
    ]
    problems: list[tuple[Job, str]] = []
    try:
        files, num_bytes, problems = _run(jobs, web, parallel, problems)
    finally:
        _write_problems(out, [(items[job.path.name][0], job.url, problem) for job, problem in problems])
        existing = _existing_images(folder)
        paths = {i: f"images/{existing[name]}" for name, (i, _) in items.items() if name in existing}
        _set_images(data, out, table, paths)
    return Fetched(out, files, len(items) - len(jobs), len(problems), len(addresses) - len(items), num_bytes)


def _run(
    jobs: list[Job], web: Web, parallel: int, problems: list[tuple[Job, str]] | None = None
) -> tuple[int, int, list[tuple[Job, str]]]:
    """Download files with progress; return their number, their bytes and the problems.

    `problems` grows during the downloads, so that the caller has it after Ctrl-C.
    """
    problems = [] if problems is None else problems
    files, num_bytes, lock = 0, 0, threading.Lock()
    with progress("fetch", len(jobs), "files") as advance:

        def add_bytes(count: int) -> None:
            nonlocal num_bytes
            with lock:
                num_bytes += count
                advance(0, f"{num_bytes / MIB:,.1f} MiB")

        with closing(download_all(jobs, web, parallel=parallel, told=add_bytes)) as results:
            for job, result in results:
                if isinstance(result, Downloaded):
                    files += 1
                else:
                    problems.append((job, result.problem))
                with lock:
                    advance(1, f"{num_bytes / MIB:,.1f} MiB")
    return files, num_bytes, problems


def _items(data: Path, out: Path) -> pl.DataFrame:
    """Return the items of a dataset with the addresses of their images in image_url, null for none."""
    path = data / "items.parquet"
    try:
        table = pl.read_parquet(path)
    except FileNotFoundError:
        raise HafvtError(f"{path} does not exist: --data takes a dataset folder") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        raise HafvtError(f"{path} cannot be read ({error}): prepare the dataset again") from None
    if "image_url" not in table.columns:
        table = table.with_columns(image_url=pl.lit(None, pl.String))
    image, url = pl.col("image"), pl.col("image_url").str.strip_chars().replace("", None)
    is_address = image.str.contains("^(?i)https?://")
    table = table.with_columns(
        image_url=url.fill_null(pl.when(is_address).then(image)), image=pl.when(~is_address).then(image)
    )
    if not table["image_url"].count():
        raise HafvtError(
            f"{path} has no addresses: prepare the dataset again, with addresses as image or image_url"
        )
    root = read_json(data / "manifest.json").get("image_root")
    if root not in (None, str(out.resolve())) and table["image"].count():
        raise HafvtError(f"{data} has pictures in {root}: say --out {root}")
    return table


def _set_images(data: Path, out: Path, table: pl.DataFrame, images: dict[str, str]) -> None:
    """Write the paths of images, by item id, into the item table of a dataset."""
    paths = pl.col("item_id").replace_strict(images, default=None, return_dtype=pl.String)
    with atomic_file(data / "items.parquet") as temporary:
        table.with_columns(image=pl.coalesce(paths, "image")).write_parquet(temporary)
    manifest = read_json(data / "manifest.json")
    manifest["sha256"]["items.parquet"] = sha256(data / "items.parquet")
    write_json(data / "manifest.json", manifest | {"image_root": str(out.resolve())})


def _existing_images(folder: Path) -> dict[str, str]:
    """Return the complete images in a folder: file name by safe name."""
    if not folder.is_dir():
        return {}
    return {path.stem: path.name for path in folder.iterdir() if path.suffix in SUFFIXES}


def _write_problems(out: Path, rows: list[tuple[str, str, str]]) -> None:
    """Write the table of failed downloads of images."""
    with (
        atomic_file(out / "problems.csv") as temporary,
        temporary.open("w", encoding="utf-8", newline="") as file,
    ):
        csv.writer(file).writerows([("item_id", "address", "problem"), *rows])
