"""The paper's scenarios from raw dumps of three years, made here in the publishers' formats."""

from __future__ import annotations

import gzip
import inspect
import json
import tracemalloc
from contextlib import closing
from functools import partial

import numpy as np
import polars as pl
import pytest

from hafvt.data import lines
from hafvt.data.dataset import Dataset
from hafvt.data.http_client import HttpClient
from hafvt.data.sources import fetch as fetch_module
from hafvt.data.sources.amazon import cut_blocks, prepare_amazon
from hafvt.data.sources.amazon_dumps import parse_product, parse_review
from hafvt.data.sources.fetch import fetch
from hafvt.errors import HafvtError, InputError
from hafvt.features.encode import encode
from hafvt.training.train import train
from tests.data.sources.hostile_server import HostileServer
from tests.data.sources.miniature import CATEGORIES, DAY, START, asin, dump, gzipped, ratings, reviews

YEARS = (2014, 2018, 2023)
EASY = {"domains": CATEGORIES, "min_interactions": 5}


@pytest.fixture
def raw(tmp_path):
    """Writes the files of a year as they come, names as the publisher's."""

    def raw(year, **changed):
        folder = tmp_path / f"raw{year}"
        folder.mkdir(exist_ok=True)
        for name, body in dump(year, "http://a.org").items():
            if not name.startswith("p/"):
                (folder / name.rpartition("/")[2]).write_bytes(body)
        for name, body in changed.items():
            (folder / name.replace("__", ".")).write_bytes(body)
        return folder

    return raw


def histories(data):
    """Each sequence: name -> item ids and times."""
    ids = data.item_table["item_id"].to_numpy()
    bounds = zip(data.user_ids, data.offsets[:-1], data.offsets[1:], strict=True)
    return {n: list(zip(ids[data.items[a:b]], data.times[a:b].tolist(), strict=True)) for n, a, b in bounds}


@pytest.mark.parametrize("year", YEARS)
def test_amazon_dump_is_fetched_prepared_encoded_and_trained(year, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch_module, "HttpClient", partial(HttpClient, sleep=lambda seconds: None))
    with closing(HostileServer()) as server:
        base = server.url("files")
        server.files = dump(year, base)
        get = partial(fetch, allow_private=True, requests_per_second=1e6)
        categories = list(CATEGORIES.values())
        get(f"amazon-{year}", out=tmp_path / "raw", names=categories, base_url=base)
        prepared = prepare_amazon(tmp_path / "raw", tmp_path / "data", **EASY)
        pictures = get("pictures", tmp_path / "data", out=tmp_path / "pictures")
    assert str(prepared).count("1 malformed (row 12)") == 2
    assert str(prepared).count("1 malformed (row 10)") == 2
    data = Dataset.open(tmp_path / "data")
    table = data.item_table
    assert len(table) == 48
    assert table["domain"].unique(maintain_order=True).to_list() == list(CATEGORIES)
    items = {row["item_id"]: row for row in table.iter_rows(named=True)}
    assert items[asin("food", 3)]["title"] == "Food & more no. 3"
    assert items[asin("food", 1)]["title"] is None
    assert items[asin("food", 2)]["title"] == (None if year == 2018 else 'It\'s a "q"')
    assert items[asin("food", 2)]["brand"] == "Acme"
    assert items[asin("kitchen", 0)]["categories"] == ["All", "kitchen"]
    related = items[asin("kitchen", 0)]["also_bought"]
    assert related == (None if year == 2023 else [asin("kitchen", 1)])
    tiffs, dead = 2 * len(range(4, 23, 5)), 2
    assert (pictures.num_downloaded, pictures.num_failed) == (48 - tiffs - dead, tiffs + dead)
    assert pictures.num_without_url == 0
    tables = encode(data.folder, image="classic", title="classic")
    assert int(tables["image"].present.sum()) == 48 - tiffs - dead
    untitled = int(table["title"].is_null().sum())
    assert untitled == (12 if year == 2018 else 6)
    assert int(tables["title"].present.sum()) == 48 - untitled
    train("hafvt", data=data.folder, out=tmp_path / "run", epochs=1, protocol="sampled-unseen")
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results


def test_prepare_amazon_sequences_follow_the_rules_of_the_paper(raw, tmp_path):
    prepared = prepare_amazon(raw(2014), tmp_path / "data", **EASY)
    data = prepared.dataset
    log = {name: {(u, i): t for u, i, t in rows} for name, rows in reviews().items()}
    food = data.domains[0].stop
    users = []
    for row, (name, events) in enumerate(histories(data).items()):
        user = name.rpartition("#")[0]
        times = [time for _, time in events]
        assert times == sorted(times)
        assert times[-1] - times[0] <= 365 * DAY
        assert len({item for item, _ in events}) == len(events) <= 15
        items = data.items[data.offsets[row] : data.offsets[row + 1]]
        assert min((items < food).sum(), (items >= food).sum()) >= 3
        assert all(log["food" if item[1:3] == "FO" else "kitchen"][user, item] == t for item, t in events)
        users.append(user)
    assert set(users) == {user for user, _, _ in reviews()["kitchen"]}
    targets = np.sort(np.concatenate([data.valid, data.test]))
    assert len(targets) == len(set(users)) == 60
    assert abs(len(data.valid) - len(data.test)) <= 1
    last = {user: row for row, user in enumerate(users)}
    assert (targets == np.sort(data.offsets[1:][list(last.values())] - 1)).all()
    trained = np.diff(data.offsets) * ~np.isin(np.arange(data.num_users), list(last.values()))
    assert (data.train_lengths == trained).all()
    assert "training sequences" in str(prepared)


def test_prepare_amazon_same_seed_gives_same_bytes_and_ties_c2dsr_the_later_domain(raw, tmp_path):
    folder = raw(2014)
    rows = {name: [(u, i, START + 5 * DAY) for u, i, _ in log][:400] for name, log in reviews().items()}
    for name, category in CATEGORIES.items():
        (folder / f"reviews_{category}.json.gz").unlink()
        (folder / f"ratings_{category}.csv").write_text(ratings(2014, rows[name]))
    easy = EASY | {"min_interactions": 1}
    one = prepare_amazon(folder, tmp_path / "a", **easy).dataset
    two = prepare_amazon(folder, tmp_path / "b", **easy).dataset
    assert one.manifest["sha256"] == two.manifest["sha256"]
    tied = prepare_amazon(folder, tmp_path / "c", ties="c2dsr", **easy).dataset
    targets = [np.concatenate([d.valid, d.test]) for d in (one, tied)]
    assert (tied.items[targets[1]] >= tied.domains[0].stop).all()
    assert 0.2 < (one.items[targets[0]] >= one.domains[0].stop).mean() < 0.8


def test_cut_blocks_end_by_length_or_time_and_extend_backwards():
    users = np.array([0] * 7 + [1] * 5, dtype=np.int32)
    times = DAY * np.array([0, 1, 2, 3, 4, 5, 6, 0, 100, 300, 400, 900])
    starts, stops = cut_blocks(users, times, 365, 3)
    assert list(zip(starts, stops, strict=True)) == [(0, 3), (3, 6), (4, 7), (7, 10), (8, 11), (11, 12)]
    starts, stops = cut_blocks(users, times, None, 4)
    assert list(zip(starts, stops, strict=True)) == [(0, 4), (3, 7), (7, 11), (8, 12)]
    assert len(cut_blocks(users[:0], times[:0], 365, 3)[0]) == 0


def test_prepare_amazon_keeps_users_and_items_with_enough_reviews(raw, tmp_path):
    prepared = prepare_amazon(raw(2018), tmp_path / "data", domains=CATEGORIES, min_interactions=15)
    assert len(np.unique(prepared.dataset.items)) == sum(map(len, prepared.dataset.domains))
    assert not any(name.startswith("ALONE") for name in prepared.dataset.user_ids)
    assert prepared.notes[0].startswith("read: 80 users, 48 items, 1,")
    with pytest.raises(HafvtError, match=r"no sequence is left \(read: .* users"):
        prepare_amazon(raw(2018), tmp_path / "none", domains=CATEGORIES, min_interactions=1000)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("year", YEARS)
def test_prepare_amazon_ratings_give_the_same_histories_as_reviews(raw, tmp_path, year):
    folder = raw(year)
    expected = histories(prepare_amazon(folder, tmp_path / "json", **EASY).dataset)
    for path in folder.iterdir():
        if "meta" not in path.name:
            path.unlink()
    for name, category in CATEGORIES.items():
        body = ratings(year, reviews()[name]).encode()
        (folder / f"ratings_{category}.csv.gz").write_bytes(gzip.compress(body))
    actual = histories(prepare_amazon(folder, tmp_path / "csv", **EASY).dataset)
    assert {k: sorted(v) for k, v in actual.items()} == {k: sorted(v) for k, v in expected.items()}


def test_prepare_amazon_malformed_line_is_counted_with_its_row(raw, tmp_path):
    rows = reviews()["food"]
    lines = [f"{u},{i},5.0,{t}" for u, i, t in rows * 20]
    lines[9000] = "A,B"
    lines[9001] = f'A,"{"B" * 200_000}",5.0,1'
    lines[9002] = 'A,"B\r"x,5.0,1'
    folder = raw(2014)
    (folder / "reviews_Grocery_and_Gourmet_Food.json.gz").unlink()
    (folder / "ratings_Grocery_and_Gourmet_Food.csv.gz").write_bytes(gzipped(lines))
    report = str(prepare_amazon(folder, tmp_path / "data", **EASY))
    assert f"{len(lines):,} lines, 3 malformed (row 9001, 9002, 9003)" in report


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>\n" * 500, "100 of the first 100 lines are not in a format of the publisher"),
        (b"PK\x03\x04" + bytes(5000), "first 1 lines"),
        (b"", "empty"),
        (gzip.compress(b'{"a": 1}\n' * 300), "not in a format of the publisher"),
        (
            gzip.compress(b'{"reviewerID": "A"}\n' * 900)[:60],
            "cannot be read|not in a format",
        ),
        (b"__import__('os').system('touch /tmp/owned')\n" * 200, "not in a format of the publisher"),
    ],
    ids=["html", "zip", "empty", "other fields", "cut", "code"],
)
def test_prepare_amazon_file_of_another_format_is_refused(raw, tmp_path, body, message):
    folder = raw(2014, reviews_Home_and_Kitchen__json__gz=body)
    with pytest.raises(InputError, match=f"reviews_Home_and_Kitchen.json.gz.*({message})"):
        prepare_amazon(folder, tmp_path / "data", **EASY)
    folder = raw(2014, meta_Home_and_Kitchen__json__gz=body)
    with pytest.raises(InputError, match=f"meta_Home_and_Kitchen.json.gz.*({message})"):
        prepare_amazon(folder, tmp_path / "data", **EASY)
    assert not (tmp_path / "data").exists()


def test_prepare_amazon_file_that_unpacks_beyond_the_memory_is_refused(raw, tmp_path, monkeypatch):
    line = json.dumps(
        {"reviewerID": "A0001USER", "asin": "B000000001", "unixReviewTime": START, "x": "y" * 999}
    )
    bomb = gzip.compress((line + "\n").encode() * 100_000)
    assert len(bomb) < 1_000_000
    monkeypatch.setattr(lines, "available_bytes", lambda: 2**27)
    for file in ("reviews", "meta"):
        folder = raw(2014, **{f"{file}_Home_and_Kitchen__json__gz": bomb})
        with pytest.raises(
            InputError,
            match=r"Kitchen.json.gz: 6\d,\d{3} or more rows take 0.1 GiB of memory or more, but 0.1 GiB",
        ):
            prepare_amazon(folder, tmp_path / "data", **EASY)
    assert not (tmp_path / "data").exists()


def test_prepare_amazon_endless_line_is_counted_as_malformed_in_little_memory(raw, tmp_path):
    folder = raw(2014)
    path = folder / "reviews_Home_and_Kitchen.json.gz"
    path.write_bytes(path.read_bytes() + gzip.compress(b'{"reviewerID": "' + b"A" * 2**28))
    tracemalloc.start()
    prepared = prepare_amazon(folder, tmp_path / "data", **EASY)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**26
    assert "reviews_Home_and_Kitchen.json.gz: " in str(prepared)
    assert "2 malformed" in str(prepared)


def test_prepare_amazon_missing_products_and_shared_items_are_noted(raw, tmp_path):
    folder = raw(2014)
    (folder / "meta_Home_and_Kitchen.json.gz").unlink()
    path = folder / "reviews_Home_and_Kitchen.json.gz"
    shared = json.dumps({"reviewerID": "A0001USER", "asin": asin("food", 0), "unixReviewTime": START})
    path.write_bytes(path.read_bytes() + gzipped([shared]))
    report = str(prepare_amazon(folder, tmp_path / "data", **EASY))
    assert "no products of Home_and_Kitchen" in report
    assert "1 items are in two categories" in report


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": "week"}, "choose year or month or none"),
        ({"domains": {}}, "NAME=CATEGORY"),
        ({"domains": {"a": "Books", "b": "Books"}}, "a name of its own"),
        ({"domains": {"a": "Books", "b": "Music"}}, "has no reviews of Books"),
        ({"max_length": 1}, "--max-length is 1: choose a whole number from 2 to 1000000"),
        ({"max_length": 10**20}, "--max-length is 100000000000000000000: choose a whole number"),
        ({"min_interactions": -1}, "--min-interactions is -1: choose a whole number from 0"),
        ({"min_per_domain": 2.5}, r"--min-per-domain is 2\.5: choose a whole number"),
        ({"ties": "c2"}, "--ties is 'c2': choose random or c2dsr"),
        ({"domains": {" ": "Books"}}, "an empty id"),
        ({"domains": {"a": "Books", "a ": "Music"}}, "--domains a a: give each domain a name of its own"),
        ({"domains": {"a": "../Books"}}, r"'../Books' is not a category"),
        ({"domains": {"a": "B\0"}}, "is not a category"),
        ({"domains": {"a": "B" * 999}}, "is not a category"),
    ],
)
def test_prepare_amazon_wrong_setting_is_refused(raw, tmp_path, settings, message):
    with pytest.raises(HafvtError, match=message):
        prepare_amazon(raw(2014), tmp_path / "data", **(EASY | settings))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("dear")
    with pytest.raises(HafvtError, match="is not a dataset"):
        prepare_amazon(raw(2014), tmp_path / "data", overwrite=True, **EASY)


def test_prepare_amazon_two_files_of_one_category_are_refused(raw, tmp_path):
    folder = raw(2014)
    (folder / "ratings_Home_and_Kitchen.csv").write_text("x")
    with pytest.raises(HafvtError, match="are of the same category"):
        prepare_amazon(folder, tmp_path / "data", **EASY)


def test_parsers_accept_lines_of_any_year_and_refuse_others():
    line = '{"user_id": "U1", "parent_asin": "B1", "asin": "V", "timestamp": 1588687728923}'
    assert parse_review(line) == ("U1", "B1", 1588687728)
    spaced = '{"user_id": "a b", "asin": "B", "timestamp": 5}'
    true = '{"user_id": "a", "asin": "B", "timestamp": true}'
    for line in (true, '{"user_id": "U"}', "[]", "{" * 9000, spaced, "1", ""):
        with pytest.raises((ValueError, TypeError, SyntaxError, RecursionError, MemoryError)):
            parse_review(line)
    product = parse_product("{'asin': 'B1', 'title': 'Caf\\u00e9 &lt;b&gt;\\n x', 'imUrl': 'ftp://x'}", None)
    assert product[:3] == ("B1", "Café <b> x", None)
    assert parse_product("{'asin': 'B1'}", {"B2"}) is None
    with pytest.raises(ValueError, match="cut off"):
        parse_product("{'asin': 'B1', 'ti", {"B2"})


def test_prepare_amazon_item_table_has_columns_of_products(raw, tmp_path):
    data = prepare_amazon(raw(2018), tmp_path / "data", **EASY).dataset
    schema = data.item_table.schema
    assert schema["also_bought"] == schema["bought_together"] == pl.List(pl.String)
    assert {"image_url", "categories", "brand", "also_viewed", "buy_after_viewing"} <= set(schema)


def test_prepare_amazon_docstring_has_an_example():
    assert "\n\nExample: hafvt prepare-amazon raw" in inspect.getdoc(prepare_amazon)
