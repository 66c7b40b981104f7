"""`hafvt fetch`: download reviews and metadata, or the images of a dataset's items."""

from __future__ import annotations

import hashlib
import re
import threading
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

import polars as pl
from pydantic import Field

from hafvt.data.dataset import Dataset, replace_item_table
from hafvt.data.download import MIB, DownloadError, DownloadJob, FileType, download_all
from hafvt.data.http_client import HttpClient
from hafvt.data.sources.movielens import ARCHIVE, BASE_URL, write_movielens_tables
from hafvt.errors import ArgumentError, HafvtError
from hafvt.files import atomic_file
from hafvt.folders import folder_lock, recover_folder
from hafvt.progress import progress, report
from hafvt.settings import Folder, Jobs, OutFolder, PositiveNumber, check_arguments
from hafvt.tables import without_formulas

GZIP = FileType("gzip file", {"": rb"\x1f\x8b\x08"})
ZIP = FileType("zip file", {"": rb"PK\x03\x04"})
PICTURE = FileType(
    "picture (JPEG, PNG, GIF, WebP, AVIF)",
    {
        ".jpg": rb"\xff\xd8\xff",
        ".png": rb"\x89PNG\r\n\x1a\n",
        ".gif": rb"GIF8[79]a",
        ".webp": rb"RIFF....WEBP",
        ".avif": rb"....ftypavi[fs]",
    },
)


class DumpIndex(NamedTuple):
    """A publisher's page, the start of the URLs of the files, and the rest for reviews and for metadata.

    In `path_templates`, {} stands for the category.
    """

    page_url: str
    base_url: str
    path_templates: tuple[str, str]


# The publishers give no checksums of these files.
DUMPS = {
    # J. McAuley et al., 2015; URLs from https://cseweb.ucsd.edu/~jmcauley/datasets/amazon/links.html
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


class FetchResult(NamedTuple):
    """Numbers of files in the folder `out` that `fetch` downloaded, that existed before, and that failed.

    `num_without_url` is the number of items without the URL of a picture, `num_bytes` what was downloaded,
    `next_command` what may follow.
    """

    out: Path
    num_downloaded: int
    num_existing: int
    num_failed: int
    num_without_url: int
    num_bytes: int
    next_command: str = ""

    def __str__(self) -> str:
        """Return the numbers as text."""
        text = f"downloaded {self.num_downloaded:,} files ({self.num_bytes / MIB:,.1f} MiB)"
        text += f", {self.num_existing:,} existed"
        if self.num_failed:
            text += f", {self.num_failed:,} failed, see {self.out / 'problems.csv'}"
        if self.num_without_url:
            text += f", {self.num_without_url:,} items have no URL"
        return f"{text}\nwrote {self.out}" + f"\nnext: {self.next_command}" * bool(self.next_command)


@check_arguments
def fetch(
    resource: str,
    names: list[str] | Folder | None = None,
    *,
    out: OutFolder | None = None,
    base_url: str | None = None,
    parallel: Jobs = 4,
    requests_per_second: Annotated[float, Field(ge=0.001, le=1_000_000)] = 4.0,
    max_file_gib: PositiveNumber = 40.0,
    max_picture_mib: PositiveNumber = 10.0,
    allow_private: bool = False,
) -> FetchResult:
    """Download films, reviews and metadata, or the pictures of a dataset's items.

    After Ctrl-C or a failure, run `fetch` again to resume; complete files are not downloaded again. `fetch`
    connects to public addresses only, ignores proxy settings, and refuses files above the size limits. The
    first bytes of a file decide its type: reviews and metadata must be gzip, pictures JPEG, PNG, GIF, WebP or
    AVIF.

    `fetch movielens-1m` writes interactions.csv and items.csv: films of two domains, action and drama, with
    titles, as GroupLens publishes them for research.

    `fetch pictures` reads the URL of each picture from the item's image_url, or from its image if that is a
    URL. It writes the pictures to `out`/images and their paths to the dataset's item table.
    `out`/problems.csv lists failed downloads (item_id, url, problem).

    Example: hafvt fetch movielens-1m

    Example: hafvt fetch amazon-2023 All_Beauty Video_Games

    Example: hafvt fetch pictures data/dumps --out pictures

    Args:
        resource: movielens-1m; amazon-2014, amazon-2018, amazon-2023 (reviews and metadata); food-kitchen,
            movie-book (the paper's categories of 2014); or pictures.
        names: for amazon, the publisher's names of product categories, such as Home_and_Kitchen; for
            pictures, the dataset folder.
        out: folder for the downloaded files; default: raw/RESOURCE.
        base_url: URL of a mirror of the publisher's files; default: the publisher's own URL.
        parallel: number of simultaneous downloads.
        requests_per_second: largest rate of requests to one host.
        max_file_gib: largest size of a file of reviews or metadata, in GiB.
        max_picture_mib: largest size of a picture, in MiB.
        allow_private: also connect to addresses of a private network, such as your own mirror.

    Raises:
        HafvtError: an option is wrong, or reviews or metadata cannot be downloaded.
    """
    resources = ("movielens-1m", *DUMPS, *SCENARIO_DUMPS, "pictures")
    if resource not in resources:
        raise ArgumentError(f"unknown {resource!r}: choose one of {', '.join(resources)}")
    out = Path(out or Path("raw", resource))
    names = names if isinstance(names, list) else [] if names is None else [str(names)]
    if resource in (*SCENARIO_DUMPS, "movielens-1m") and names:
        raise ArgumentError(f"fetch {resource} takes no names, such as {names[0]}: leave them out")
    resource, categories = SCENARIO_DUMPS.get(resource, (resource, names))
    if resource == "pictures":
        if len(names) != 1 or base_url is not None:
            raise ArgumentError("fetch pictures takes one DATASET, and no --base-url")
        max_bytes = int(max_picture_mib * MIB)
        client = HttpClient(
            max_bytes, requests_per_second, allow_private, max_attempts=3, stall_timeout_s=20.0
        )
        return _fetch_pictures(Path(names[0]), out, client, parallel)
    client = HttpClient(int(max_file_gib * 2**30), requests_per_second, allow_private)
    if resource == "movielens-1m":
        return _fetch_movielens(base_url or BASE_URL, out, client)
    if not categories:
        page_url = DUMPS[resource].page_url
        raise ArgumentError(f"fetch {resource} needs names of categories, as on {page_url}")
    return _fetch_dump(DUMPS[resource], categories, base_url, out, client, parallel)


def safe_name(item_id: str) -> str:
    """Return the file name of an item's picture without suffix: the id itself if it is safe, else its hash.

    Hashes start with "sha256+", which no safe id contains, so that no two ids share a name.
    """
    if re.fullmatch(r"[A-Za-z0-9_-]{1,64}", item_id):
        return item_id
    return f"sha256+{hashlib.sha256(item_id.encode()).hexdigest()}"


def _fetch_dump(
    dump: DumpIndex, categories: list[str], base_url: str | None, out: Path, client: HttpClient, parallel: int
) -> FetchResult:
    """Download reviews and metadata of categories."""
    base_url = (base_url or dump.base_url).rstrip("/")
    jobs_by_path = {}
    for category in categories:
        if not isinstance(category, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,64}", category):
            raise ArgumentError(f"{category!r} is not a category: copy its name from {dump.page_url}")
        for template in dump.path_templates:
            url = f"{base_url}/{template.format(category)}"
            path = out / url.rpartition("/")[2]
            jobs_by_path[path] = DownloadJob(url, path, GZIP)
    failures: dict[DownloadJob, str] = {}
    with folder_lock(out):
        result = _download_missing(list(jobs_by_path.values()), client, parallel, failures, out)
    if failures:
        failed = [job for job in jobs_by_path.values() if job in failures]
        problems = "; ".join(f"{job.url}: {failures[job]}" for job in failed)
        raise HafvtError(
            f"{len(failures)} of {len(jobs_by_path)} files cannot be downloaded ({problems}): run the "
            "command again to resume. If the error remains, compare the names with "
            f"{dump.page_url} or choose a mirror with --base-url. The other files are in {out}"
        )
    domains = " ".join(f"{category.lower()}={category}" for category in categories)
    return result._replace(
        next_command=f"hafvt prepare-amazon {out} --domains {domains} --out data/{out.name}"
    )


def _fetch_movielens(base_url: str, out: Path, client: HttpClient) -> FetchResult:
    """Download MovieLens-1M and write its tables."""
    url = f"{base_url.rstrip('/')}/{ARCHIVE}"
    job, failures = DownloadJob(url, out / ARCHIVE, ZIP), dict[DownloadJob, str]()
    with folder_lock(out):
        result = _download_missing([job], client, 1, failures, out)
        if failures:
            raise HafvtError(
                f"{url} cannot be downloaded ({failures[job]}): run the command again to resume, or choose a "
                "mirror with --base-url"
            )
        report(write_movielens_tables(job.path, out))
    tables = f"{out / 'interactions.csv'} {out / 'items.csv'}"
    return result._replace(next_command=f"hafvt fit {tables} --out {out.name}-run")


def _fetch_pictures(data: Path, out: Path, client: HttpClient, parallel: int) -> FetchResult:
    """Download the pictures of a dataset's items and write their paths into the item table."""
    recover_folder(data)
    with ExitStack() as stack:
        for folder in {data.resolve(), out.resolve()}:
            stack.enter_context(folder_lock(folder))
        table = _item_table_with_urls(Dataset.open(data), out)
        urls = dict(table.drop_nulls("image_url").select("item_id", "image_url").rows())
        jobs = {
            item: DownloadJob(url, out / "images" / safe_name(item), PICTURE) for item, url in urls.items()
        }
        failures: dict[DownloadJob, str] = {}
        try:
            result = _download_missing(list(jobs.values()), client, parallel, failures, out)
        finally:  # also after Ctrl-C
            paths = {
                item: f"images/{path.name}" for item, job in jobs.items() if (path := job.finished_path())
            }
            path_column = pl.col("item_id").replace_strict(paths, default=None, return_dtype=pl.String)
            table = table.with_columns(image=pl.coalesce(path_column, "image"))
            replace_item_table(data, table, image_root=str(out.resolve()))
            rows = [(item, job.url, failures[job]) for item, job in jobs.items() if job in failures]
            with atomic_file(out / "problems.csv") as temporary:
                frame = pl.DataFrame(rows, schema=["item_id", "url", "problem"], orient="row")
                without_formulas(frame).write_csv(temporary)
    command = f"hafvt encode {data} --image classic --title classic"
    return result._replace(num_without_url=len(table) - len(urls), next_command=command)


def _download_missing(
    jobs: list[DownloadJob],
    client: HttpClient,
    parallel: int,
    failures: dict[DownloadJob, str],
    out: Path,
) -> FetchResult:
    """Download the files that do not exist, and show the progress.

    Add each failed job with its problem to `failures` at once, so that the caller has it after Ctrl-C.
    """
    missing = []
    for job in jobs:
        if job.finished_path() is None:
            missing.append(job)
        else:
            job.delete_partial()  # left by a kill after the complete file had its name
    num_bytes, lock = 0, threading.Lock()
    with progress("fetch", len(missing), "files") as advance:

        def report(num_files: int, num_new_bytes: int) -> None:
            nonlocal num_bytes
            with lock:
                num_bytes += num_new_bytes
                advance(num_files, f"{num_bytes / MIB:,.1f} MiB")

        on_bytes = partial(report, 0)
        with closing(download_all(missing, client, parallel=parallel, on_bytes=on_bytes)) as results:
            for job, result in results:
                if isinstance(result, DownloadError):
                    failures[job] = result.problem
                report(1, 0)
    num_downloaded = len(missing) - len(failures)
    return FetchResult(out, num_downloaded, len(jobs) - len(missing), len(failures), 0, num_bytes)


def _item_table_with_urls(data: Dataset, out: Path) -> pl.DataFrame:
    """Return the items of a dataset, with the URLs of their pictures in image_url (null without one)."""
    table = data.item_table
    if "image_url" not in table.columns:
        table = table.with_columns(image_url=pl.lit(None, pl.String))
    image, url = pl.col("image"), pl.col("image_url").cast(pl.String).str.strip_chars().replace("", None)
    is_url = image.str.contains("^(?i)https?://")
    table = table.with_columns(
        image_url=url.fill_null(pl.when(is_url).then(image)), image=pl.when(~is_url).then(image)
    )
    if not table["image_url"].count():
        remedy = "prepare the dataset again, with URLs in the column image or image_url"
        raise HafvtError(f"{data.folder} has no URLs: {remedy}")
    if data.image_root not in (None, out.resolve()) and table["image"].count():
        raise HafvtError(f"{data.folder} has pictures in {data.image_root}: use --out {data.image_root}")
    return table
