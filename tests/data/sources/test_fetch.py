"""`hafvt fetch` against a hostile server on this machine; nothing here touches a real network."""

from __future__ import annotations

import csv
import inspect
from contextlib import closing
from functools import partial

import polars as pl
import pytest

from hafvt.data.http_client import Web
from hafvt.data.prepare import prepare
from hafvt.data.sources import fetch as fetch_module
from hafvt.data.sources.fetch import DUMPS, fetch, safe_name
from hafvt.errors import HafvtError
from hafvt.files import read_json, write_json
from tests.data.sources.hostile_server import BODY, HALF, LARGE_PNG, PICTURES, HostileServer


@pytest.fixture
def server(monkeypatch):
    """A server, and nobody waits between two tries."""
    monkeypatch.setattr(fetch_module, "Web", partial(Web, sleep=lambda seconds: None))
    with closing(HostileServer()) as server:
        yield server


@pytest.fixture
def catalog(tmp_path):
    """Writes a dataset folder with the given items and addresses of pictures."""

    def catalog(items):
        folder = tmp_path / "data"
        folder.mkdir(exist_ok=True)
        table = pl.DataFrame(items, schema={"item_id": pl.String, "image_url": pl.String}, orient="row")
        table.with_columns(image=pl.lit(None, pl.String)).write_parquet(folder / "items.parquet")
        write_json(folder / "manifest.json", {"image_root": None, "sha256": {}})
        return folder

    return catalog


def images(folder):
    """Which item has which picture, as a dataset tells."""
    table = pl.read_parquet(folder / "items.parquet").drop_nulls("image")
    return dict(table.select("item_id", "image").rows())


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def rows(path):
    with path.open(encoding="utf-8", newline="") as file:
        return [tuple(row) for row in csv.reader(file)][1:]


@pytest.mark.parametrize(
    ("what", "addresses"),
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
def test_fetch_dump_uses_the_addresses_of_the_publisher(what, addresses, tmp_path, monkeypatch):
    jobs_run = []
    monkeypatch.setattr(fetch_module, "_run", lambda jobs, *_: (jobs_run.extend(jobs), (0, 0, []))[1])
    fetch(what, tmp_path, categories=["Books"])
    assert [job.url for job in jobs_run] == addresses
    assert [job.path for job in jobs_run] == [tmp_path / url.rpartition("/")[2] for url in addresses]


def test_fetch_started_again_fetches_only_missing_files(server, tmp_path):
    get = partial(fetch, "amazon-2014", tmp_path, base_url=server.url("truncated"), allow_private=True)
    fetched = get(categories=["Books"])
    assert (fetched.files, fetched.present, fetched.failed, fetched.num_bytes) == (2, 0, 0, 2 * len(BODY))
    assert files(tmp_path) == ["meta_Books.json.gz", "reviews_Books.json.gz"]
    assert (tmp_path / "meta_Books.json.gz").read_bytes() == BODY
    fetched_again = get(categories=["Books", "Baby"])
    assert (fetched_again.files, fetched_again.present) == (2, 2)
    assert len(server.requests) == 8
    assert str(fetched_again) == f"fetched 2 files (0.6 MiB), 2 were there\nwrote {tmp_path}"


def test_fetch_failed_downloads_are_listed(server, tmp_path):
    for base, message in (("status", "answers 404"), ("html", "not a gzip file"), ("good", "are allowed")):
        bound = {"max_file_gib": 1e-4} if base == "good" else {}
        url = server.url(base) + ("?status=404&x=" if base == "status" else "")
        with pytest.raises(
            HafvtError, match=f"2 of 2 files cannot be downloaded:\n.*{message}.*\n.*{message}"
        ) as caught:
            fetch("amazon-2023", tmp_path, categories=["Baby"], base_url=url, allow_private=True, **bound)
        assert DUMPS["amazon-2023"].page in str(caught.value)
    assert files(tmp_path) == []


def test_fetch_private_address_is_refused_unless_allowed(server, tmp_path, catalog):
    with pytest.raises(HafvtError, match="not a public address"):
        fetch("amazon-2014", tmp_path, categories=["Books"], base_url=server.url("good"))
    data = catalog([("a", server.url("picture?is=jpg"))])
    assert fetch("pictures", tmp_path / "out", data=data).failed == 1
    assert "not a public address" in rows(tmp_path / "out" / "problems.csv")[0][2]
    assert server.requests == []


@pytest.mark.parametrize("what", ["amazon-2018", "pictures"])
def test_fetch_resumes_after_ctrl_c(server, tmp_path, catalog, what):
    out = tmp_path / "out"
    if what == "pictures":
        data = catalog([("a", server.url("picture?is=png")), ("b", server.url("interrupts?png"))])
        get = partial(fetch, what, out, data=data, allow_private=True, parallel=1)
    else:
        base = server.url("interrupts")
        get = partial(fetch, what, out, categories=["Baby"], base_url=base, allow_private=True, parallel=1)
    with pytest.raises(KeyboardInterrupt):
        get()
    (part,) = out.rglob("*.part")
    assert part.read_bytes() == (LARGE_PNG if what == "pictures" else BODY)[:HALF]
    if what == "pictures":
        assert images(data) == {"a": "images/a.png"}
    before = len(server.requests)
    fetched = get()
    assert (fetched.files, fetched.present) == ((1, 1) if what == "pictures" else (2, 0))
    assert server.requests[before].headers["Range"] == f"bytes={HALF}-"
    assert list(out.rglob("*.part*")) == []


def test_fetch_pictures_are_named_by_item_and_content(server, tmp_path, catalog):
    good = {f"i_{kind}-1": server.url(f"picture/{kind}.exe?is={kind}") for kind in PICTURES}
    hostile = ["../../up", "/etc/passwd", "a/b", "..", "", ".", "con.", "a\0b", "x" * 65, "\u202egpj", "a\nb"]
    hashed = {item: server.url(f"picture?is=png&n={n}") for n, item in enumerate(hostile)}
    data = catalog([*good.items(), *hashed.items(), ("none", None), ("blank", "  ")])
    out = tmp_path / "deep" / "out"
    fetched = fetch("pictures", out, data=data, allow_private=True, per_second=1e6)
    assert (fetched.files, fetched.failed, fetched.without_address) == (len(good) + len(hostile), 0, 2)
    assert {f"i_{kind}-1.{kind}" for kind in PICTURES} <= {path.name for path in (out / "images").iterdir()}
    assert all(path.parent == out / "images" for path in tmp_path.rglob("*.png"))
    has = images(data)
    assert has.keys() == good.keys() | hashed.keys()
    assert len(set(has.values())) == len(has)
    assert all((out / image).read_bytes() in PICTURES.values() for image in has.values())
    assert read_json(data / "manifest.json")["image_root"] == str(out.resolve())
    before = len(server.requests)
    fetched_again = fetch("pictures", out, data=data, allow_private=True)
    assert (fetched_again.files, fetched_again.present, len(server.requests)) == (0, len(has), before)
    assert str(fetched_again).startswith(
        f"fetched 0 files (0.0 MiB), {len(has)} were there, 2 items have no address"
    )


def test_safe_name_is_unique_and_harmless():
    assert safe_name("B00-x_9") == "B00-x_9"
    names = [safe_name(item) for item in ("a.b", "a/b", "", "x" * 65, safe_name("a/b"), "é")]
    assert len(set(names)) == len(names)
    assert all(set(name) <= set("0123456789abcdefsh+") for name in names)


def test_fetch_failed_pictures_are_listed_and_tried_again(server, tmp_path, catalog):
    out = tmp_path / "out"
    dead = {
        "gone": (server.url("status?status=404"), "answers 404"),
        "html": (server.url("html"), "not a picture"),
        "evil": ("file:///etc/passwd", "only http and https"),
        "=cmd": ('http://me:pw@a.org/,"x"', "a user or a password"),
        "big": (server.url("good"), "not a picture"),
        "huge": (server.url("huge"), "more than the 1,048,576 that are allowed"),
        "later": (server.url("status?status=500&times=3"), "answers 500"),
    }
    data = catalog([("fine", server.url("picture?is=gif")), *((k, v[0]) for k, v in dead.items())])
    get = partial(fetch, "pictures", out, data=data, allow_private=True, max_picture_mib=1, per_second=1e6)
    fetched = get()
    assert (fetched.files, fetched.failed) == (1, len(dead))
    assert f"7 failed, see {out / 'problems.csv'}" in str(fetched)
    problems = {item: (address, problem) for item, address, problem in rows(out / "problems.csv")}
    assert problems.keys() == dead.keys()
    for item, (address, message) in dead.items():
        assert problems[item][0] == address
        assert message in problems[item][1]
    assert files(out) == ["images/fine.gif", "problems.csv"]
    data = catalog([("fine", server.url("picture?is=gif")), ("gone", server.url("picture?is=jpg"))])
    assert (get().files, rows(out / "problems.csv")) == (1, [])


@pytest.mark.parametrize(
    ("what", "settings", "message"),
    [
        ("netflix", {}, "amazon-2014, .*, movie-book or pictures"),
        ("amazon-2014", {}, "needs --categories"),
        ("amazon-2014", {"categories": []}, "needs --categories"),
        ("amazon-2014", {"categories": ["../x"]}, "is no category"),
        ("amazon-2014", {"categories": ["A"], "data": "x"}, "no --data"),
        ("amazon-2014", {"categories": ["A"], "parallel": 0}, "above zero"),
        ("amazon-2014", {"categories": ["A"], "per_second": 0}, "above zero"),
        ("pictures", {}, "--data DATASET"),
        ("pictures", {"data": "x", "base_url": "http://a.org"}, "neither"),
        ("pictures", {"data": "nowhere"}, "does not exist"),
    ],
)
def test_fetch_wrong_setting_is_refused(server, tmp_path, what, settings, message):
    with pytest.raises(HafvtError, match=message):
        fetch(what, tmp_path, **settings)
    assert files(tmp_path) == []


def test_fetch_pictures_of_a_dataset_without_addresses_is_refused(tmp_path, catalog):
    data = catalog([("a", None)])
    with pytest.raises(HafvtError, match="with addresses as image or image_url"):
        fetch("pictures", tmp_path / "out", data=data)
    (data / "items.parquet").write_bytes(b"PAR1")
    with pytest.raises(HafvtError, match="cannot be read"):
        fetch("pictures", tmp_path / "out", data=data)
    assert not (tmp_path / "out").exists()


def test_fetch_pictures_with_addresses_in_the_image_column(server, tmp_path):
    log = pl.DataFrame({"user_id": ["u"] * 4, "item_id": [*"abcd"], "timestamp": range(4)})
    items = pl.DataFrame({"item_id": [*"abcd"], "image": [server.url("picture?is=png"), "b.png", None, None]})
    data, out = tmp_path / "data", tmp_path / "out"
    prepare(log, items, data)
    assert fetch("pictures", out, data=data, allow_private=True).files == 1
    assert images(data) == {"a": "images/a.png", "b": "b.png"}
    with pytest.raises(HafvtError, match="say --out"):
        fetch("pictures", tmp_path / "other", data=data, allow_private=True)


def test_fetch_docstring_has_an_example():
    assert "\n\nExample: hafvt fetch food-kitchen --out raw" in inspect.getdoc(fetch)
