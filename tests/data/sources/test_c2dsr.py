"""C2DSR's release: a small one made here, and the real one where it is at hand."""

from __future__ import annotations

import gzip
import random
import re
from collections import Counter
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from hafvt.data.sources.c2dsr import prepare_c2dsr
from hafvt.errors import HafvtError, InputError
from hafvt.experiments.paper import paper

SIZES = (30, 40)
DAY = 86_400


def line(user, number, events):
    return "\t".join(
        [str(user), str(number), *(f"{item}|{time}|2014-01-01 08:00:00|" for item, time in events)]
    )


def events(source, *, tie=False):
    """Six to nine items in disorder, three of each domain at least, then the last X and the last Y item."""
    x = source.sample(range(SIZES[0]), source.randint(3, 4))
    y = [SIZES[0] + n for n in source.sample(range(SIZES[1]), source.randint(3, 5))]
    times = [DAY * source.randint(10, 20) for _ in range(len(x) + len(y) - 2)]
    body = list(zip([*x[1:], *y[1:]], times, strict=True))
    return [*body, (x[0], 30 * DAY), (y[0], 30 * DAY if tie else (31 - 2 * source.randint(0, 1)) * DAY)]


@pytest.fixture
def release(tmp_path):
    """Twenty users with two training sequences each; eight go to validation, twelve to test."""
    folder, source = tmp_path / "release", random.Random(0)
    folder.mkdir()
    for name, size, offset in (("Alist", SIZES[0], 0), ("Blist", SIZES[1], 1000)):
        rows = [f"{offset + 7 * n}\t{name[0]}{n:04}\t{n}" for n in range(size)]
        (folder / f"{name}.txt").write_text("\n".join(rows) + "\n")
    (folder / "userlist.txt").write_text("".join(f"U{n}\t{n}\n" for n in range(20)))
    train = [line(n, 10 * n + k, events(source)) for n in range(20) for k in range(2)]
    (folder / "traindata_new.txt").write_text("\n".join(train) + "\n")
    rows = [line(n, 10 * n + 5, events(source, tie=n % 2 == 0)) for n in range(20)]
    (folder / "validdata_new.txt").write_text("\n".join(rows[:8]) + "\n")
    (folder / "testdata_new.txt.gz").write_bytes(gzip.compress(("\n".join(rows[8:]) + "\n").encode()))
    return folder


def test_prepare_c2dsr_sequences_equal_the_files_sorted_stably(release, tmp_path):
    data = prepare_c2dsr(release, tmp_path / "data").dataset
    assert [d.name for d in data.domains] == ["x", "y"]
    assert [len(d) for d in data.domains] == list(SIZES)
    assert (len(data.valid), len(data.test), data.num_users) == (8, 12, 60)
    expected = {}
    for path in (release / "traindata_new.txt", release / "validdata_new.txt"):
        for row in path.read_text().splitlines():
            user, number, *fields = row.split("\t")
            pairs = [tuple(map(int, field.split("|")[:2])) for field in fields]
            names = [(f"A{i:04}" if i < SIZES[0] else f"B{i - SIZES[0]:04}", t) for i, t in pairs]
            expected[f"U{user}#{number}"] = sorted(names, key=lambda pair: pair[1])
    ids = data.item_table["item_id"]
    for row, name in enumerate(data.user_ids[:48]):
        part = slice(data.offsets[row], data.offsets[row + 1])
        actual = list(zip(ids.gather(data.items[part]), data.times[part].tolist(), strict=True))
        assert actual == expected[name]
    assert (data.train_lengths[:40] == np.diff(data.offsets)[:40]).all()
    assert (data.train_lengths[40:] == 0).all()
    assert (np.diff(data.offsets)[40:48] + data.offsets[40:48] - 1 == data.valid).all()


def test_prepare_c2dsr_tied_last_items_make_y_the_target(release, tmp_path):
    data = prepare_c2dsr(release, tmp_path / "data").dataset
    last = [t for t in np.concatenate([data.valid, data.test]) if data.times[t] == data.times[t - 1]]
    assert len(last) >= 10
    assert all(data.items[t] >= SIZES[0] for t in last)


def test_prepare_c2dsr_numbers_items_at_random(release, tmp_path):
    one = prepare_c2dsr(release, tmp_path / "a").dataset
    two = prepare_c2dsr(release, tmp_path / "b").dataset
    other = prepare_c2dsr(release, tmp_path / "c", seed=1).dataset
    assert (one.items == two.items).all()
    assert not (one.items == other.items).all()
    ids = one.item_table["item_id"].to_list()
    assert ids != sorted(ids)
    neighbors = [int(b[1:]) - int(a[1:]) for a, b in pairwise(ids)]
    assert Counter(neighbors)[1] < 8


def test_prepare_c2dsr_training_in_parts_with_titles_is_checked(release, tmp_path):
    rows = (release / "traindata_new.txt").read_text().splitlines()
    (release / "traindata_new.txt").unlink()
    (release / "traindata_new.part1.txt").write_text("\n".join(rows[:10]))
    (release / "traindata_new.part2.txt.gz").write_bytes(gzip.compress("\n".join(rows[10:]).encode()))
    pl.DataFrame({"item_id": ["A0003", "B0000"], "title": ["tea", "pan"]}).write_csv(tmp_path / "items.csv")
    prepared = prepare_c2dsr(
        release, tmp_path / "data", domains=["food", "pots"], items=tmp_path / "items.csv"
    )
    table = prepared.dataset.item_table
    assert dict(table.filter(pl.col("title").is_not_null()).select("item_id", "title").rows()) == {
        "A0003": "tea",
        "B0000": "pan",
    }
    assert [d.name for d in prepared.dataset.domains] == ["food", "pots"]
    report = str(prepared)
    assert "repeats (next items that the history contains): " in report
    assert "targets at the time of the last item of their history: " in report
    assert "2 of 70 items have a title, 0 a picture" in report
    assert re.search(r"training sequences +- +40", report)
    assert re.search(r"repeated items in one +0 +0 +ok", report)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("validdata_new.txt", "3\t9\t5|1|x|\t70|2|x|\n", r"validdata_new.txt, row 1, value '70\|2"),
        ("validdata_new.txt", "3\t9\t5|yesterday|x|\n", "row 1"),
        ("validdata_new.txt", f"3\t9\t5|{10**19}|x|\n", "not an item below 70 and its time"),
        ("validdata_new.txt", "9" * 5000 + "\t9\t5|1|x|\n", "not user, sequence, items"),
        ("validdata_new.txt", "99\t9\t5|1|x|\n", "not user, sequence, items"),
        ("userlist.txt", "U0\t0\nU1\t5\n", "userlist.txt, row 2"),
        ("Alist.txt", "0\tA\t0\n0\tA\t1\n", "Alist.txt, row 2"),
        ("Blist.txt", "", "empty"),
    ],
)
def test_prepare_c2dsr_malformed_file_is_refused_with_the_row(release, tmp_path, name, text, message):
    (release / name).write_text(text)
    with pytest.raises(InputError, match=message):
        prepare_c2dsr(release, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("domains", "message"),
    [
        (["tea"], "a release has two domains"),
        (["tea", "tea "], "--domains tea tea: give each domain a name of its own"),
        (["tea", " "], "an empty id"),
    ],
)
def test_prepare_c2dsr_wrong_domains_are_refused(release, tmp_path, domains, message):
    with pytest.raises(HafvtError, match=message):
        prepare_c2dsr(release, tmp_path / "data", domains=domains)
    with pytest.raises(HafvtError, match="nowhere is not a folder"):
        prepare_c2dsr(tmp_path / "nowhere", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_prepare_c2dsr_missing_file_or_repeated_sequence_is_refused(release, tmp_path):
    train = release / "traindata_new.txt"
    train.write_text(train.read_text() + train.read_text())
    with pytest.raises(InputError, match="is there twice"):
        prepare_c2dsr(release, tmp_path / "data")
    (release / "testdata_new.txt.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(InputError, match="cannot be read"):
        prepare_c2dsr(release, tmp_path / "data")
    (release / "testdata_new.txt.gz").unlink()
    with pytest.raises(InputError, match=r"testdata_new.txt: no such file"):
        prepare_c2dsr(release, tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "thesis.txt").write_text("dear")
    with pytest.raises(HafvtError, match="is not a dataset"):
        prepare_c2dsr(release, tmp_path / "data", overwrite=True)


def test_prepare_c2dsr_real_release_has_the_published_counts(shared_data, tmp_path):
    prepared = prepare_c2dsr(shared_data / "c2dsr-food-kitchen", tmp_path / "data")
    verdicts = {check.name: (check.actual, check.verdict) for check in prepared.checks}
    assert verdicts["items of food"] == ("29,207", "ok")
    assert verdicts["items of kitchen"] == ("34,886", "ok")
    assert verdicts["validation targets in food"] == ("2,722", "ok")
    assert verdicts["validation targets in kitchen"] == ("5,451", "ok")
    assert verdicts["test targets in food"] == ("2,747", "ok")
    assert verdicts["test targets in kitchen"] == ("5,659", "ok")
    assert verdicts["training sequences"] == ("5,731", "differs")
    assert {verdict for what, (_, verdict) in verdicts.items() if "in one" in what or "users" in what} == {
        "ok"
    }
    assert verdicts["lengths of validation and test"] == ("6 to 15", "ok")
    assert "28,386 training sequences are missing" in str(prepared)
    data = prepared.dataset
    targets = np.concatenate([data.valid, data.test])
    tied = data.times[targets] == data.times[targets - 1]
    x = data.items < data.domains[0].stop
    mixed = tied & (x[targets] != x[targets - 1])
    assert mixed.sum() == 4_369
    assert not x[targets[mixed]].any()
    text = paper("table1", data=tmp_path / "data")
    assert "Food-Kitchen" in text
    assert "5,731 of the paper's 34,117 training sequences" in text
