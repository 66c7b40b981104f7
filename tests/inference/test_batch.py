"""`hafvt recommend` writes the recommendations of the model, and never half a file."""

from __future__ import annotations

import json
import os

import numpy as np
import polars as pl
import pytest

from hafvt import prepare, recommend, train
from hafvt.cli import main
from hafvt.data.dataset import replace_item_table
from hafvt.data.table_options import TableOptions
from hafvt.errors import ArgumentError, HafvtError, InputError
from hafvt.files import sha256, write_json
from hafvt.inference import batch, request_batches
from hafvt.inference.batch_writer import SCHEMA
from hafvt.inference.histories import HistoryRequest, read_user_history
from hafvt.inference.recommender import Recommender
from tests.conftest import write_small

TITLE = 'a \x1b[31mred\u202e\x85 title, "quoted"\n' + "ü" * 80


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose first item has a hostile title."""
    folder = tmp_path_factory.mktemp("files")
    data = write_small(folder / "data")
    table = data.item_table.with_columns(
        pl.when(pl.col("item_id") == "i0").then(pl.lit(TITLE)).otherwise("title").alias("title")
    )
    replace_item_table(data.folder, table)
    return train("hafvt", data.folder, folder / "run", params={"id_width": 8}, epochs=1, test=False).folder


OBJECTS = [
    {"user_id": "007", "history": ["i3", "i41", "i7"]},
    {"user_id": 7, "history": ["i3", "?", "i41", "i7"], "domain": "d1", "k": 2},
    {"history": []},
    {"history": ["i3", "!", "?"], "exclude": ["i4"], "k": 50},
]


@pytest.fixture
def histories(tmp_path):
    path = tmp_path / "histories.jsonl"
    path.write_text("".join(json.dumps(value) + "\n" for value in OBJECTS))
    return path


def read(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_recommend_file_equals_recommender(run, histories, tmp_path, monkeypatch):
    monkeypatch.setattr(request_batches, "MAX_BATCH_SIZE", 3)
    out = tmp_path / "out.jsonl"
    summary = recommend(run, histories=histories, domain="d0", k=3, out=out, exclude=["i5"])
    rows, recommender = read(out), Recommender.open(run)
    settings = [("d0", 3), ("d1", 2), ("d0", 3), ("d0", 50)]
    for number, (value, row, (domain, k)) in enumerate(zip(OBJECTS, rows, settings, strict=True), start=1):
        exclude = ["i5", *value.get("exclude", [])]
        (expected,) = recommender.recommend([value["history"]], domain, k, exclude=[exclude])
        assert [one["item_id"] for one in row["items"]] == [one.item.item_id for one in expected.items]
        scores = [one.score for one in expected.items]
        assert [one["score"] for one in row["items"]] == pytest.approx(scores, abs=1e-5)
        assert [one["rank"] for one in row["items"]] == list(range(1, len(expected.items) + 1))
        assert (row["history_number"], row["domain"]) == (number, domain)
        assert (row["ranked_by"], row["unknown_ids"]) == (expected.ranked_by, list(expected.unknown_ids))
    assert [row["user_id"] for row in rows] == ["007", "7", None, None]
    assert [row["ranked_by"] for row in rows] == ["model", "model", "popularity", "model"]
    assert len(rows[3]["items"]) == 27  # of 30 without i3, i4 and i5
    assert (summary.num_histories, summary.num_by_popularity) == (4, 1)
    assert (summary.num_with_unknown_ids, summary.num_unknown_ids) == (2, 3)
    assert summary.unknown_id_examples == ("?", "!", "?")
    assert "4 histories (1 without a known item, by popularity)" in str(summary)


def test_recommend_all_file_types_have_equal_rows(run, histories, tmp_path, capsys):
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        recommend(run, histories=histories, domain="d0", out=tmp_path / name)
    csv = pl.read_csv(tmp_path / "a.csv", schema=SCHEMA)
    assert csv.equals(pl.read_parquet(tmp_path / "a.parquet"))
    rows = [
        {**row, **item, "num_unknown_ids": len(row["unknown_ids"])}
        for row in read(tmp_path / "a.jsonl")
        for item in row["items"]
    ]
    assert csv.to_dicts() == [{name: row[name] for name in SCHEMA} for row in rows]
    assert csv["user_id"].to_list()[:1] == ["007"]
    assert TITLE in csv["title"].to_list()
    capsys.readouterr()
    assert main(["recommend", str(run), "--histories", str(histories), "--domain", "d0"]) == 0
    output = capsys.readouterr()
    assert output.out == (tmp_path / "a.jsonl").read_text()
    assert "skipped 3 unknown ids in 2 of 4 histories, such as '?', '!', '?'" in output.err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"a.csv", "a.jsonl", "a.parquet", "histories.jsonl"}


def test_recommend_excludes_items_of_whole_long_history(run, tmp_path):
    history = [f"i{n % 29}" for n in range(500)]  # i29 is all that is left of d0
    (tmp_path / "h.jsonl").write_text(json.dumps({"history": history}))
    options = {"histories": tmp_path / "h.jsonl", "domain": "d0", "k": 40}
    recommend(run, **options, out=tmp_path / "new.jsonl")
    recommend(run, **options, out=tmp_path / "seen.jsonl", exclude_seen=False)
    assert [one["item_id"] for one in read(tmp_path / "new.jsonl")[0]["items"]] == ["i29"]
    assert len(read(tmp_path / "seen.jsonl")[0]["items"]) == 30


def test_recommend_table_of_interactions_groups_by_user(run, tmp_path):
    log = pl.DataFrame({"u": ["b", "a", "b"], "item_id": ["i1", "i2", "i3"], "timestamp": [2, 1, 1]})
    for source in (log, tmp_path / "log.csv.gz"):
        log.write_csv(tmp_path / "log.csv.gz", compression="gzip")
        recommend(run, histories=source, domain="d1", out=tmp_path / "o.jsonl", columns={"user_id": "u"})
        b, a = read(tmp_path / "o.jsonl")
        best = Recommender.open(run).recommend([["i3", "i1"]], "d1")[0].items
        assert (b["user_id"], a["user_id"]) == ("b", "a")
        assert [one["item_id"] for one in b["items"]] == [one.item.item_id for one in best]


def test_recommend_numbers_are_ids_by_their_digits(tmp_path, capsys):
    data = write_small(tmp_path / "data", with_features=False)
    pl.DataFrame({"user_id": [str(n) for n in range(40)]}).write_parquet(data.folder / "users.parquet")
    hashes = {**data.manifest["sha256"], "users.parquet": sha256(data.folder / "users.parquet")}
    write_json(data.folder / "manifest.json", {**data.manifest, "sha256": hashes})
    table = data.item_table.with_columns(pl.col("item_id").str.strip_prefix("i"))
    replace_item_table(data.folder, table)
    run = train("popularity", data.folder, tmp_path / "run", test=False).folder
    outputs = []
    for options in (
        {"history": ["5", "7"], "exclude": ["19"]},
        {"history": [5, np.int64(7)], "exclude": [19]},
        {"history": ("5", "7"), "exclude": np.array([19]).tolist()},
        {"user": "3"},
        {"user": 3},
        {"user": np.int32(3)},
    ):
        recommend(run, domain="d0", **options)
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] == outputs[2] != outputs[3] == outputs[4] == outputs[5]
    assert "popularity" not in outputs[0]
    for options in (
        {"history": "57"},
        {"history": ["5"], "exclude": "19"},
        {"history": [5.0]},
        {"user": 1.5},
    ):
        with pytest.raises(HafvtError, match=r"(choose a list|id cannot be of type float|--user is 1.5)"):
            recommend(run, domain="d0", **options)


def test_recommend_unknown_ids_to_exclude_are_reported(run, histories, tmp_path, capsys):
    summary = recommend(run, histories=histories, domain="d0", exclude=["i5", "y"], out=tmp_path / "o.jsonl")
    assert (summary.num_unknown_excluded_ids, summary.unknown_excluded_id_examples) == (4, ("y",))
    assert [row["unknown_excluded_ids"] for row in read(tmp_path / "o.jsonl")] == [["y"]] * 4
    assert "4 ids to exclude are unknown, such as 'y'" in capsys.readouterr().err
    recommend(run, history=["i3"], domain="d0", exclude=["y"])
    assert capsys.readouterr().out.splitlines()[-1] == "1 ids to exclude are unknown: 'y'"


def test_recommend_csv_has_no_formulas(run, tmp_path):
    starts = ["=1+1", "@sum", "-2+3", "+a", "\t=1", "＝1", "-5", "+4.2", "1=1", "a\n=1"]
    (tmp_path / "h.jsonl").write_text(
        "".join(json.dumps({"user_id": user, "history": []}) + "\n" for user in starts)
    )
    recommend(run, histories=tmp_path / "h.jsonl", domain="d0", k=1, out=tmp_path / "o.csv")
    users = pl.read_csv(tmp_path / "o.csv", schema=SCHEMA)["user_id"].to_list()
    assert users == [f"'{user}" for user in starts[:6]] + starts[6:]


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.parquet"])
def test_recommend_failure_keeps_existing_file(run, histories, tmp_path, name, monkeypatch):
    out = tmp_path / "out" / name
    out.parent.mkdir()
    out.write_text("before")
    monkeypatch.setattr(request_batches, "MAX_BATCH_SIZE", 1)

    def assert_unchanged():
        assert out.read_text() == "before"
        assert [path.name for path in out.parent.iterdir()] == [name]

    recommend_batch = batch.recommend_batch

    def stop_at_second_batch(recommender, requests, *options):
        if requests[0].domain == "d1":
            raise KeyboardInterrupt
        return recommend_batch(recommender, requests, *options)

    with monkeypatch.context() as patch:
        patch.setattr(batch, "recommend_batch", stop_at_second_batch)
        with pytest.raises(KeyboardInterrupt):
            recommend(run, histories=histories, domain="d0", out=out)
        assert_unchanged()
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(HafvtError, match=r"cannot be written \(No space left"):
            recommend(run, histories=histories, domain="d0", out=out)
        assert_unchanged()
    with histories.open("a") as file:
        file.write('{"history": [1.5]}\n')
    with pytest.raises(InputError, match=r"histories.jsonl, row 5, column 'history'.*type float"):
        recommend(run, histories=histories, domain="d0", out=out)
    assert_unchanged()


def test_recommend_checks_all_lines_before_scoring(run, histories, monkeypatch):
    histories.write_text(histories.read_text() + "{\n")
    monkeypatch.setattr(request_batches, "MAX_BATCH_SIZE", 1)
    monkeypatch.setattr(batch, "recommend_batch", lambda *_: pytest.fail("scoring began"))
    with pytest.raises(InputError, match="row 5"):
        recommend(run, histories=histories, domain="d0")


def test_recommend_out_equal_to_input_raises(run, histories, monkeypatch):
    monkeypatch.chdir(histories.parent)
    before = histories.read_text()
    with pytest.raises(HafvtError, match="is the file of histories"):
        recommend(run, histories=histories, domain="d0", out="histories.jsonl")
    assert histories.read_text() == before


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "--histories FILE, --history ID"),
        ({"history": ["i1"], "user": "u1"}, "either --histories"),
        ({"history": ["i1"]}, "no domain: give --domain, one of d0, d1"),
        ({"history": ["i1"], "domain": "x"}, "no domain 'x'"),
        ({"history": ["i1"], "domain": "d0", "k": 0}, "--k is 0: choose a whole number from 1"),
        ({"history": ["i1"], "domain": "d0", "out": "x.xlsx"}, ".jsonl, .csv or .parquet"),
        ({"user": "nobody", "domain": "d0"}, "no user 'nobody'"),
    ],
)
def test_recommend_wrong_options_raises(run, settings, problem):
    with pytest.raises(HafvtError, match=problem):
        recommend(run, **settings)


def test_recommend_command_prints_table_for_history_or_user(run, capsys):
    def run_command(*arguments):
        assert main(["recommend", str(run), *arguments]) == 0
        return capsys.readouterr()

    lines = run_command("--history", "i3", "007", "i41", "--domain", "d0", "--k", "30").out.splitlines()
    best = Recommender.open(run).recommend([["i3", "i41"]], "d0", 30)[0]
    assert [line.split()[:2] for line in lines[1:-1]] == [
        [str(rank), one.item.item_id] for rank, one in enumerate(best.items, start=1)
    ]
    assert lines[-1] == "skipped 1 unknown ids: '007'"
    assert any("a  [31mred   title" in line for line in lines)
    assert max(map(len, lines)) < 90
    assert "\x1b" not in "".join(lines)
    assert "by popularity" in run_command("--history", "--domain", "d1").out
    recommender = Recommender.open(run)
    assert run_command("--user", "u4", "--domain", "d1").err == ""
    output = run_command("--user", "u4", "--domain", "d1", "--exclude", best.items[0].item.item_id, "i44").out
    assert "i44" not in output
    first = recommender.recommend([read_user_history(run, "u4")], "d1", exclude=[["i44"]])[0].items[0]
    assert output.splitlines()[1].split()[1] == first.item.item_id


def test_batches_are_limited_by_histories_and_ids(monkeypatch):
    monkeypatch.setattr(request_batches, "MAX_BATCH_SIZE", 4)
    monkeypatch.setattr(request_batches, "MAX_BATCH_IDS", 100)
    lengths = [1, 1, 1, 1, 1, 95, 1, 300, 1]
    requests = [HistoryRequest(str(n), ["i"] * length, "d", 5, []) for n, length in enumerate(lengths)]
    parts = list(batch.batches(iter(requests)))
    assert [len(part) for part in parts] == [4, 2, 2, 1]
    assert [request for part in parts for request in part] == requests


@pytest.mark.slow
def test_recommend_movielens_histories_by_popularity(shared_data, tmp_path):
    source = shared_data / "movielens-posters"
    data = prepare(source / "interactions.csv.gz", source / "items.csv", tmp_path / "data", min_per_domain=3)
    run = train("popularity", data, tmp_path / "run", test=False).folder
    summary = recommend(
        run, histories=source / "interactions.csv.gz", domain="drama", k=5, out=tmp_path / "top.parquet"
    )
    top = pl.read_parquet(tmp_path / "top.parquet")
    log = pl.read_csv(source / "interactions.csv.gz", infer_schema=False)
    assert summary.num_histories == log["user_id"].n_unique()
    assert summary.num_unknown_ids == 0
    assert top.group_by("history_number").len()["len"].unique().to_list() == [5]
    assert top.join(log, on=["user_id", "item_id"]).is_empty(), "a seen item"
    counts = np.asarray(data.train_counts())
    best = data.item_table.with_columns(count=counts).filter(domain="drama").sort("count")["item_id"][-1]
    users_of_best = set(log.filter(item_id=best)["user_id"])
    assert set(top.filter(item_id=best)["user_id"]) == set(log["user_id"]) - users_of_best


@pytest.mark.parametrize(
    "option", [{"keep": "qty > 0"}, {"separator": ";"}, {"encoding": "cp1252"}, {"strip": True}]
)
def test_recommend_options_of_tables_are_refused_for_other_sources(run, tmp_path, option):
    (tmp_path / "h.jsonl").write_text('{"history": ["i1"]}\n')
    options = TableOptions(**option)
    (name,) = option
    for source in ({"history": ["i1"]}, {"user": "u1"}, {"histories": tmp_path / "h.jsonl"}):
        if name == "strip" and "histories" in source:
            continue
        with pytest.raises(
            ArgumentError, match=f"--{name} is for a table of interactions, not for .*: leave it"
        ):
            recommend(run, **source, domain="d0", table_options=options)
    with pytest.raises(ArgumentError, match="--columns is for a table of interactions, not for --user"):
        recommend(run, user="u1", domain="d0", columns={"user_id": "who"})
