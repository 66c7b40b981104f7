"""`hafvt fetch` from a misbehaving server on this machine, without any other network access."""

from __future__ import annotations

import csv
import inspect
import shutil
from functools import partial
from unittest.mock import Mock

import polars as pl
import pytest

from hafvt.data.dataset import Dataset, replace_item_table
from hafvt.data.prepare import prepare
from hafvt.data.sources import fetch as fetch_module
from hafvt.data.sources.fetch import DUMPS, FetchResult, fetch, safe_name
from hafvt.errors import HafvtError
from hafvt.files import read_json
from hafvt.folders import folder_lock
from tests.crash import crash_before_each_operation
from tests.data.sources.hostile_server import BODY, HALF, LARGE_PNG, PICTURES


@pytest.fixture
def write_dataset(tmp_path):
    """Return a function that writes a dataset folder from pairs of item id and picture URL."""

    def write_dataset(items):
        folder = tmp_path / "data"
        log = pl.DataFrame({"user_id": ["u"] * 4, "item_id": [*"abcd"], "timestamp": range(4)})
        prepare(log, out=folder, overwrite=True)
        table = pl.DataFrame(items, schema={"item_id": pl.String, "image_url": pl.String}, orient="row")
        replace_item_table(folder, table.with_columns(image=pl.lit(None, pl.String)))
        return folder

    return write_dataset


def picture_paths(folder):
    """Return the path of each picture by item id, from a dataset."""
    table = pl.read_parquet(folder / "items.parquet").drop_nulls("image")
    return dict(table.select("item_id", "image").rows())


def relative_paths(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def read_csv_rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


@pytest.mark.parametrize(
    ("resource", "urls"),
    [
        (
            "amazon-2014",
            [
                "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/reviews_Books.json.gz",
                "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles/meta_Books.json.gz",
            ],
        ),
        (
            "amazon-2018",
            [
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/categoryFiles/Books.json.gz",
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_v2/metaFiles2/meta_Books.json.gz",
            ],
        ),
        (
            "amazon-2023",
            [
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/review_categories/Books.jsonl.gz",
                "https://mcauleylab.ucsd.edu/public_datasets/data/amazon_2023/raw/meta_categories/meta_Books.jsonl.gz",
            ],
        ),
    ],
)
def test_fetch_reviews_uses_the_urls_of_the_publisher(resource, urls, tmp_path, monkeypatch):
    download_all = Mock(side_effect=lambda jobs, *_, **options: (result for result in ()))
    monkeypatch.setattr(fetch_module, "download_all", download_all)
    fetch(resource, out=tmp_path, names=["Books"])
    (jobs, _), _ = download_all.call_args
    assert [job.url for job in jobs] == urls
    assert [job.path for job in jobs] == [tmp_path / url.rpartition("/")[2] for url in urls]


def test_fetch_second_run_downloads_only_missing_files(server, tmp_path):
    get = partial(fetch, "amazon-2014", out=tmp_path, base_url=server.url("truncated"), allow_private=True)
    result = get(names=["Books"])
    assert result._replace(next_command="") == FetchResult(
        tmp_path, num_downloaded=2, num_existing=0, num_failed=0, num_without_url=0, num_bytes=2 * len(BODY)
    )
    assert relative_paths(tmp_path) == ["meta_Books.json.gz", "reviews_Books.json.gz"]
    assert (tmp_path / "meta_Books.json.gz").read_bytes() == BODY
    second_result = get(names=["Books", "Baby"])
    assert (second_result.num_downloaded, second_result.num_existing) == (2, 2)
    assert len(server.requests) == 8
    assert str(second_result) == f"downloaded 2 files (0.6 MiB), 2 existed\nwrote {tmp_path}\n" + (
        f"next: hafvt prepare-amazon {tmp_path} --domains books=Books baby=Baby --out data/{tmp_path.name}"
    )


def test_fetch_reviews_failed_downloads_are_listed(server, tmp_path):
    for base, message in (
        ("status", "status 404"),
        ("html", "not a gzip file"),
        ("good", "exceed the limit"),
    ):
        limit = {"max_file_gib": 1e-4} if base == "good" else {}
        url = server.url(base) + ("?status=404&x=" if base == "status" else "")
        with pytest.raises(
            HafvtError, match=rf"2 of 2 files cannot be downloaded \(.*{message}.*; .*{message}"
        ) as error_info:
            fetch("amazon-2023", out=tmp_path, names=["Baby"], base_url=url, allow_private=True, **limit)
        assert DUMPS["amazon-2023"].page_url in str(error_info.value)
        assert "\n" not in str(error_info.value)
    assert relative_paths(tmp_path) == []


def test_fetch_private_address_is_refused_unless_allowed(server, tmp_path, write_dataset):
    with pytest.raises(HafvtError, match="not a public address"):
        fetch("amazon-2014", out=tmp_path, names=["Books"], base_url=server.url("good"))
    data = write_dataset([("a", server.url("picture?is=jpg"))])
    assert fetch("pictures", data, out=tmp_path / "out").num_failed == 1
    assert "not a public address" in read_csv_rows(tmp_path / "out" / "problems.csv")[0][2]
    assert server.requests == []


@pytest.mark.parametrize("resource", ["amazon-2018", "pictures"])
def test_fetch_after_ctrl_c_resumes(server, tmp_path, write_dataset, resource):
    out = tmp_path / "out"
    if resource == "pictures":
        data = write_dataset([("a", server.url("picture?is=png")), ("b", server.url("interrupts?png"))])
        get = partial(fetch, resource, data, out=out, allow_private=True, parallel=1)
    else:
        base = server.url("interrupts")
        get = partial(fetch, resource, out=out, names=["Baby"], base_url=base, allow_private=True, parallel=1)
    with pytest.raises(KeyboardInterrupt):
        get()
    (partial_path,) = out.rglob("*.part")
    assert partial_path.read_bytes() == (LARGE_PNG if resource == "pictures" else BODY)[:HALF]
    if resource == "pictures":
        assert picture_paths(data) == {"a": "images/a.png"}
    num_requests = len(server.requests)
    result = get()
    assert (result.num_downloaded, result.num_existing) == ((1, 1) if resource == "pictures" else (2, 0))
    assert server.requests[num_requests].headers["Range"] == f"bytes={HALF}-"
    assert list(out.rglob("*.part*")) == []


def test_fetch_pictures_are_named_by_item_and_content(server, tmp_path, write_dataset):
    good = {f"i_{kind}-1": server.url(f"picture/{kind}.exe?is={kind}") for kind in PICTURES}
    unsafe_ids = ["../../up", "/etc/passwd", "a/b", "..", "", ".", "con."]
    unsafe_ids += ["a\0b", "x" * 65, "\u202egpj", "a\nb"]
    hashed = {item: server.url(f"picture?is=png&n={n}") for n, item in enumerate(unsafe_ids)}
    data = write_dataset([*good.items(), *hashed.items(), ("none", None), ("blank", "  ")])
    out = tmp_path / "deep" / "out"
    result = fetch("pictures", data, out=out, allow_private=True, requests_per_second=1e6)
    assert (result.num_failed, result.num_without_url) == (0, 2)
    assert result.num_downloaded == len(good) + len(unsafe_ids)
    assert {f"i_{kind}-1.{kind}" for kind in PICTURES} <= {path.name for path in (out / "images").iterdir()}
    assert all(path.parent == out / "images" for path in tmp_path.rglob("*.png"))
    paths = picture_paths(data)
    assert paths.keys() == good.keys() | hashed.keys()
    assert len(set(paths.values())) == len(paths)
    assert all((out / image).read_bytes() in PICTURES.values() for image in paths.values())
    assert read_json(data / "manifest.json")["image_root"] == str(out.resolve())
    num_requests = len(server.requests)
    second_result = fetch("pictures", data, out=out, allow_private=True)
    assert (second_result.num_downloaded, second_result.num_existing) == (0, len(paths))
    assert len(server.requests) == num_requests
    assert str(second_result).startswith(
        f"downloaded 0 files (0.0 MiB), {len(paths)} existed, 2 items have no URL"
    )


def test_safe_name_any_item_id_is_unique_and_safe():
    assert safe_name("B00-x_9") == "B00-x_9"
    names = [safe_name(item) for item in ("a.b", "a/b", "", "x" * 65, safe_name("a/b"), "é")]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("0123456789abcdefsh+") for name in names)


def test_fetch_failed_pictures_are_listed_and_retried(server, tmp_path, write_dataset):
    out = tmp_path / "out"
    failing = {
        "gone": (server.url("status?status=404"), "status 404"),
        "html": (server.url("html"), "not a picture"),
        "evil": ("file:///etc/passwd", "only http and https URLs"),
        "=cmd": ('http://me:pw@a.org/,"x"', "a user name or a password"),
        "big": (server.url("good"), "not a picture"),
        "huge": (server.url("huge"), "exceed the limit of 1,048,576"),
        "later": (server.url("status?status=500&times=3"), "status 500"),
    }
    data = write_dataset([("fine", server.url("picture?is=gif")), *((k, v[0]) for k, v in failing.items())])
    get = partial(
        fetch, "pictures", data, out=out, allow_private=True, max_picture_mib=1, requests_per_second=1e6
    )
    result = get()
    assert (result.num_downloaded, result.num_failed) == (1, len(failing))
    assert f"7 failed, see {out / 'problems.csv'}" in str(result)
    problems = {item: (url, problem) for item, url, problem in read_csv_rows(out / "problems.csv")}
    assert problems.keys() == {"'=cmd" if item == "=cmd" else item for item in failing}
    for item, (url, message) in failing.items():
        assert problems["'=cmd" if item == "=cmd" else item][0] == url
        assert message in problems["'=cmd" if item == "=cmd" else item][1]
    assert relative_paths(out) == ["images/fine.gif", "problems.csv"]
    data = write_dataset([("fine", server.url("picture?is=gif")), ("gone", server.url("picture?is=jpg"))])
    assert (get().num_downloaded, read_csv_rows(out / "problems.csv")) == (1, [])


@pytest.mark.parametrize(
    ("resource", "options", "message"),
    [
        ("netflix", {}, "movielens-1m, amazon-2014, .*, movie-book, pictures"),
        ("amazon-2014", {}, "needs names of categories"),
        ("amazon-2014", {"names": []}, "needs names of categories"),
        ("amazon-2014", {"names": ["../x"]}, "is not a category"),
        (
            "amazon-2014",
            {"names": ["A"], "parallel": 0},
            "--parallel is 0: choose a whole number from 1",
        ),
        (
            "amazon-2014",
            {"names": ["A"], "requests_per_second": 0},
            "--requests-per-second is 0: choose a number from 0.001",
        ),
        ("amazon-2014", {"names": ["A"], "parallel": 10**9}, "choose a whole number from 1 to 1000"),
        ("amazon-2014", {"names": ["A"], "requests_per_second": 1e-300}, "choose a number from 0.001"),
        ("amazon-2014", {"names": ["A"], "max_file_gib": 1e308}, r"--max-file-gib is 1e\+308: choose"),
        ("amazon-2014", {"names": ["A"], "max_file_gib": float("nan")}, "--max-file-gib is nan: choose"),
        ("amazon-2014", {"names": ["A"], "max_picture_mib": -3}, "--max-picture-mib is -3: choose"),
        ("amazon-2014", {"names": [3]}, "3 is not a category"),
        ("movie-book", {"names": ["A"]}, "takes no names"),
        ("movielens-1m", {"names": ["A"]}, "takes no names"),
        ("pictures", {}, "takes one DATASET"),
        ("pictures", {"names": "x", "base_url": "http://a.org"}, "no --base-url"),
        ("pictures", {"names": ["nowhere"]}, "does not exist"),
    ],
)
def test_fetch_wrong_option_is_refused(server, tmp_path, resource, options, message):
    with pytest.raises(HafvtError, match=message):
        fetch(resource, out=tmp_path, **options)
    assert relative_paths(tmp_path) == []


def test_fetch_pictures_of_a_dataset_without_urls_is_refused(tmp_path, write_dataset):
    data = write_dataset([("a", None)])
    with pytest.raises(HafvtError, match="with URLs in the column image or image_url"):
        fetch("pictures", data, out=tmp_path / "out")
    (data / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(HafvtError, match=r"items.parquet is damaged .*: prepare the dataset again"):
        fetch("pictures", data, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_fetch_pictures_with_urls_in_the_image_column_downloads_them(server, tmp_path):
    log = pl.DataFrame({"user_id": ["u"] * 4, "item_id": [*"abcd"], "timestamp": range(4)})
    items = pl.DataFrame({"item_id": [*"abcd"], "image": [server.url("picture?is=png"), "b.png", None, None]})
    data, out = tmp_path / "data", tmp_path / "out"
    prepare(log, items, data)
    assert fetch("pictures", data, out=out, allow_private=True).num_downloaded == 1
    assert picture_paths(data) == {"a": "images/a.png", "b": "b.png"}
    with pytest.raises(HafvtError, match="use --out"):
        fetch("pictures", data, out=tmp_path / "other", allow_private=True)


def test_fetch_docstring_has_examples():
    assert "\n\nExample: hafvt fetch movielens-1m\n\nExample: hafvt fetch amazon-2023" in inspect.getdoc(
        fetch
    )


def hidden_and_partial_paths(folder):
    return [path.name for path in folder.rglob("*") if path.name.startswith(".") or ".part" in path.name]


def test_fetch_reviews_killed_anywhere_resumes(server, tmp_path):
    out = tmp_path / "out"
    options = {"names": ["Baby"], "base_url": server.url("good"), "allow_private": True}
    options |= {"requests_per_second": 1e6, "parallel": 1}

    def reset():
        shutil.rmtree(out, ignore_errors=True)

    def check(step):
        assert all(path.read_bytes() == BODY for path in out.glob("*.gz"))
        result = fetch("amazon-2014", out=out, **options)
        assert result.num_downloaded + result.num_existing == 2
        assert relative_paths(out) == ["meta_Baby.json.gz", "reviews_Baby.json.gz"]
        assert hidden_and_partial_paths(tmp_path) == []

    action = f"fetch('amazon-2014', out=root / 'out', **{options})"
    imports = "from hafvt.data.sources.fetch import fetch"
    assert crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check) >= 10


@pytest.mark.slow
def test_fetch_pictures_killed_anywhere_leaves_a_valid_dataset_and_resumes(server, tmp_path, write_dataset):
    out = tmp_path / "out"
    urls = [("a", server.url("picture?is=png")), ("b", server.url("picture?is=jpg")), ("c", "file:///x")]

    def reset():
        shutil.rmtree(out, ignore_errors=True)
        write_dataset(urls)

    def check(step):
        paths = Dataset.open(tmp_path / "data").item_table["image"].drop_nulls()
        assert all((out / path).exists() for path in paths)
        result = fetch("pictures", tmp_path / "data", out=out, allow_private=True, requests_per_second=1e6)
        assert result.num_downloaded + result.num_existing == 2
        assert picture_paths(tmp_path / "data") == {"a": "images/a.png", "b": "images/b.jpg"}
        assert Dataset.open(tmp_path / "data").image_root == out.resolve()
        assert relative_paths(out) == ["images/a.png", "images/b.jpg", "problems.csv"]
        assert hidden_and_partial_paths(tmp_path) == []

    options = "out=root / 'out', allow_private=True, requests_per_second=1e6, parallel=1"
    action = f"fetch('pictures', root / 'data', {options})"
    imports = "from hafvt.data.sources.fetch import fetch"
    assert crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check) >= 20


def test_fetch_into_a_folder_in_use_is_refused(server, tmp_path, write_dataset):
    data = write_dataset([("a", server.url("picture?is=png"))])
    out = tmp_path / "out"
    with folder_lock(out), pytest.raises(HafvtError, match="out is in use by another process"):
        fetch("amazon-2014", out=out, names=["A"], base_url=server.url("good"), allow_private=True)
    with folder_lock(data), pytest.raises(HafvtError, match="data is in use by another process"):
        fetch("pictures", data, out=out, allow_private=True)
    assert server.requests == []
    assert fetch("pictures", data, out=data, allow_private=True).num_downloaded == 1


def test_fetch_pictures_on_a_full_disk_names_the_file_and_keeps_the_others(server, tmp_path, write_dataset):
    data = write_dataset([("a", server.url("picture?is=png")), ("b", server.url("picture?is=jpg"))])
    (tmp_path / "out" / "images").mkdir(parents=True)
    (tmp_path / "out" / "images" / "b.part").symlink_to("/dev/full")
    get = partial(fetch, "pictures", data, out=tmp_path / "out", allow_private=True, parallel=1)
    with pytest.raises(HafvtError, match=r"images/b: the disk is full: 0.0 MiB more are needed, .* run the"):
        get()
    assert picture_paths(data) == {"a": "images/a.png"}
    (tmp_path / "out" / "images" / "b.part").unlink()
    result = get()
    assert (result.num_downloaded, result.num_existing) == (1, 1)
