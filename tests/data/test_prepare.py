from __future__ import annotations

import gzip
import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest

from hafvt.cli import main
from hafvt.data.dataset import Dataset
from hafvt.data.prepare import prepare
from hafvt.data.table_options import TableOptions
from hafvt.errors import HafvtError, HafvtWarning, InputError
from tests.data.helpers import items_of, log_of

ARRAYS = ("items", "times", "offsets", "train_lengths", "valid", "test")


def world(users: int = 30, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A log of two shops and their items: ids with leading zeros, tied times."""
    random = np.random.default_rng(seed)
    ids = [f"{n:03}" for n in range(20)]
    items = pl.DataFrame(
        {
            "item_id": ids,
            "domain": ["tea" if n % 3 else "cups" for n in range(20)],
            "title": [f"item {n}" if n % 4 else None for n in range(20)],
            "image": [f"pictures/{n}.jpg" if n % 5 else None for n in range(20)],
        }
    )
    rows = 12 * users
    log = pl.DataFrame(
        {
            "user_id": [f"u{n}" for n in random.integers(0, users, rows)],
            "item_id": [ids[n] for n in random.integers(0, 20, rows)],
            "timestamp": random.integers(0, 60, rows),
        }
    )
    return log, items


def same(one: Dataset, other: Dataset) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ARRAYS)
    return arrays and one.item_table.equals(other.item_table) and one.user_ids.equals(other.user_ids)


def histories(data: Dataset) -> dict[str, list[tuple[str, int]]]:
    """User id -> item ids and times, oldest first."""
    ids = data.item_table["item_id"].to_list()
    spans = zip(data.user_ids, data.offsets[:-1], data.offsets[1:], strict=True)
    return {
        user: [(ids[item], int(time)) for item, time in zip(data.items[a:b], data.times[a:b], strict=True)]
        for user, a, b in spans
    }


def test_prepare_histories_equal_the_log(tmp_path: Path) -> None:
    log, items = world()
    data = prepare(log, items, tmp_path / "out", ties="input", min_per_domain=0)
    expected: dict[str, list[tuple[str, int]]] = {}
    for user, item, time in log.sort("timestamp", maintain_order=True).iter_rows():
        expected.setdefault(user, []).append((item, time))
    assert histories(data) == expected
    assert [domain.name for domain in data.domains] == ["cups", "tea"]
    for domain in data.domains:
        assert set(data.item_table["domain"][domain.start : domain.stop]) == {domain.name}
    assert data.item_table.sort("item_id").equals(items)
    assert data.image_root is None


def test_prepare_any_input_type_gives_the_same_dataset(tmp_path: Path) -> None:
    log, items = world()
    log.write_csv(tmp_path / "log.csv")
    log.write_ndjson(tmp_path / "log.jsonl")
    log.write_parquet(tmp_path / "log.parquet")
    items.write_csv(tmp_path / "items.csv")
    (tmp_path / "items.jsonl.gz").write_bytes(gzip.compress(items.write_ndjson().encode()))
    items.write_parquet(tmp_path / "items.parquet")
    dated = log.with_columns(pl.from_epoch("timestamp"))
    sources: list[tuple[Any, Any]] = [
        (tmp_path / "log.csv", tmp_path / "items.jsonl.gz"),
        (str(tmp_path / "log.jsonl"), str(tmp_path / "items.parquet")),
        (tmp_path / "log.parquet", tmp_path / "items.csv"),
        (pd.DataFrame(log.to_dict(as_series=False)), items),
        (dated, pd.DataFrame(items.to_dict(as_series=False))),
        (dated.with_columns(pl.col("timestamp").dt.to_string("%Y-%m-%dT%H:%M:%SZ")), items),
    ]
    for ties in ("random", "input"):
        first = prepare(log, items, tmp_path / f"first-{ties}", ties=ties, seed=3)
        for number, (one, other) in enumerate(sources):
            assert same(first, prepare(one, other, tmp_path / f"{ties}{number}", ties=ties, seed=3))


def test_prepare_depends_on_seed_but_not_on_row_order(tmp_path: Path) -> None:
    log, items = world()
    first = prepare(log, items, tmp_path / "a", last=6, min_per_item=2)
    mixed = prepare(
        log.sample(fraction=1.0, shuffle=True, seed=1),
        items.reverse(),
        tmp_path / "b",
        last=6,
        min_per_item=2,
    )
    assert same(first, mixed)
    other = prepare(log, items, tmp_path / "c", last=6, min_per_item=2, seed=1)
    assert not first.user_ids.equals(other.user_ids)
    assert not first.item_table.equals(other.item_table)


def test_prepare_numbers_are_independent_of_id_time_and_popularity(tmp_path: Path) -> None:
    # Item n is met first at time n, and more often than item n + 1.
    count = 400
    rows = [
        (f"u{user:02}", f"i{item:03}", item)
        for item in range(count)
        for user in range(1 + (count - item) // 10)
    ]
    data = prepare(log_of(*rows), None, tmp_path / "out")
    places = data.item_table["item_id"].str.slice(1).cast(pl.Int64).to_numpy()
    users = data.user_ids.str.slice(1).cast(pl.Int64).to_numpy()
    assert abs(np.corrcoef(places, np.arange(count))[0, 1]) < 0.2
    assert abs(np.corrcoef(users, np.arange(len(users)))[0, 1]) < 0.5


def test_prepare_without_items_uses_those_of_the_interactions(tmp_path: Path) -> None:
    rows = log_of(("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "b", 1))
    data = prepare(rows, None, tmp_path / "one")
    assert [(d.name, d.start, d.stop) for d in data.domains] == [("all", 0, 2)]
    named = rows.with_columns(domain=pl.Series(["z", "y", "z", "y"]))
    assert [d.name for d in prepare(named, None, tmp_path / "two").domains] == ["y", "z"]
    log, _ = world()
    titles = pl.DataFrame({"item_id": ["b", "a"], "title": ["B", "A"]})
    both = prepare(named, titles, tmp_path / "three")
    assert both.item_table.rows() == [("b", "y", "B", None), ("a", "z", "A", None)]
    assert prepare(log, None, tmp_path / "four").item_table.height == 20


def test_prepare_domains_selects_and_orders_them(tmp_path: Path) -> None:
    items = items_of(tea="ab", cups="xy", pans="p")
    log = log_of(("u", "a", 1), ("u", "x", 2), ("u", "p", 3), ("v", "a", 1), ("v", "b", 2), ("v", "y", 3))
    data = prepare(log, items, tmp_path / "out", domains=["tea", "cups"])
    assert [(d.name, len(d)) for d in data.domains] == [("tea", 2), ("cups", 2)]
    assert histories(data) == {"u": [("a", 1), ("x", 2)], "v": [("a", 1), ("b", 2), ("y", 3)]}
    assert [c["interactions"] for c in data.manifest["counts"]] == [6, 5, 5]
    assert data.manifest["inputs"]["interactions"]["rows"] == 6
    only = prepare(log, items, tmp_path / "only", domains=["pans"])
    assert histories(only) == {"u": [("p", 3)]}
    with pytest.raises(HafvtError, match=r"no item is of domain 'pots': choose from cups, pans, tea"):
        prepare(log, items, tmp_path / "none", domains=["tea", "pots"])


def test_prepare_filters_users_and_items(tmp_path: Path) -> None:
    items = items_of(tea="abc", cups="xyz")
    log = log_of(
        *[("u", item, time) for time, item in enumerate("aabxxy")],
        *[("v", item, time) for time, item in enumerate("axaxa")],
        *[("w", item, time) for time, item in enumerate("abab")],
    )
    everyone = prepare(log, items, tmp_path / "everyone")
    assert (everyone.num_users, everyone.domains[-1].stop) == (3, 6)
    shared = prepare(log, items, tmp_path / "shared", min_per_domain=1)
    assert set(histories(shared)) == {"u", "v"}
    assert shared.domains[-1].stop == 6  # never met, still candidates
    frequent = prepare(log, items, tmp_path / "frequent", min_per_domain=1, min_per_item=2, last=3)
    assert sorted(frequent.item_table["item_id"]) == ["a", "x"]
    assert {user: [i for i, _ in h] for user, h in histories(frequent).items()} == {
        "u": list("axx"),
        "v": list("axa"),
    }
    counts = [(c["users"], c["items"], c["interactions"]) for c in frequent.manifest["counts"]]
    assert counts == [(3, 6, 15), (2, 2, 9), (2, 2, 6)]


def test_prepare_split_options_set_targets(tmp_path: Path) -> None:
    log, items = world()
    one = prepare(log, items, tmp_path / "one")
    assert np.array_equal(one.test, np.asarray(one.offsets[1:]) - 1)
    assert np.array_equal(one.valid, one.test - 1)
    two = prepare(log, items, tmp_path / "two", split="time", valid_share=0.2, test_share=0.1)
    starts = np.repeat(two.offsets[:-1], np.diff(two.offsets))
    trained = np.arange(len(two.items)) < starts + np.repeat(two.train_lengths, np.diff(two.offsets))
    assert two.times[trained].max() < two.times[two.valid].min()
    assert two.times[two.valid].max() < two.times[two.test].min()
    assert 0.2 < len(two.valid) / len(two.test) < 5
    assert two.manifest["settings"]["valid_share"] == 0.2


def test_prepare_fractions_of_seconds_decide_the_order(tmp_path: Path) -> None:
    log = log_of(("u", "a", 0), ("u", "b", 0), ("u", "c", 0))
    for number, times in enumerate([[-0.5, -0.25, -1.5], [0.3, 0.4, 0.2]]):
        data = prepare(log.with_columns(timestamp=pl.Series(times)), None, tmp_path / str(number))
        assert [item for item, _ in histories(data)["u"]] == ["c", "a", "b"]
        assert data.times.tolist() == [np.floor(time) for time in sorted(times)]
        assert data.manifest["ties"]["tied_pairs"] == 0


def test_prepare_manifest_has_settings_and_provenance(tmp_path: Path) -> None:
    log, items = world()
    log = pl.concat([log, log.head(2)])
    log.write_csv(tmp_path / "log.csv")
    items.write_csv(tmp_path / "items.csv")
    data = prepare(tmp_path / "log.csv", tmp_path / "items.csv", tmp_path / "out", min_per_domain=0)
    manifest = data.manifest
    digest = hashlib.sha256((tmp_path / "log.csv").read_bytes()).hexdigest()
    size = (tmp_path / "log.csv").stat().st_size
    expected = {"file": "log.csv", "bytes": size, "sha256": digest, "rows": 362}
    assert manifest["inputs"]["interactions"] == expected
    assert manifest["inputs"]["items"]["rows"] == 20
    assert manifest["ties"]["order"] == "random"
    assert manifest["ties"]["tied_pairs"] == len(log) - log.select("user_id", "timestamp").n_unique()
    assert manifest["duplicates"] == len(log) - log.n_unique()
    assert len(data.items) == len(log)  # duplicates are kept
    assert manifest["settings"]["seed"] == 0
    assert data.image_root == tmp_path.resolve()
    assert prepare(log, items, tmp_path / "frames").manifest["inputs"]["items"] == {"file": None, "rows": 20}


def test_prepare_ids_that_look_alike_are_warned_of_or_stripped(tmp_path: Path) -> None:
    log = log_of(("u", "a", 1), ("u ", "b", 2), ("v", "a", 1), ("v", "b", 2), ("v\u200b", "b", 3))
    log = log.with_columns(domain=pl.Series(["x", "y", "x ", "y", "y"])).with_columns(
        item_id=pl.concat_str("item_id", "domain").str.strip_chars()
    )
    log = log.with_columns(item_id=pl.concat_str("item_id", pl.Series(["", "", "2", "", ""])))
    with pytest.warns(HafvtWarning) as warned:
        data = prepare(log, None, tmp_path / "out", min_per_domain=0)
    messages = [str(warning.message) for warning in warned]
    assert data.num_users == 4
    assert messages[0].startswith("user_id: 4 values only differ by outer blanks or invisible characters")
    assert re.match("domain: 2 values .*'x' and 'x ': use --strip", messages[1])
    stripped = prepare(log, None, tmp_path / "stripped", table_options=TableOptions(strip=True))
    assert set(histories(stripped)) == {"u", "v"}
    assert [domain.name for domain in stripped.domains] == ["x", "y"]


def test_prepare_command_prints_warnings_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,a,1\nu ,b,2\n")
    words = ["prepare", "--interactions", str(tmp_path / "log.csv"), "--out", str(tmp_path / "out")]
    assert main(words) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(lines) == 1
    assert lines[0].startswith("hafvt prepare: warning: user_id: 2 values only differ by outer blanks")


def test_prepare_unknown_item_that_only_differs_by_blanks_names_the_remedy(tmp_path: Path) -> None:
    log = log_of(("u", "a ", 1), ("u", "b", 2))
    with pytest.raises(InputError, match=r"row 1, .*'a ': unknown item.*use --strip"):
        prepare(log, items_of(tea="ab"), tmp_path / "out")
    assert (
        prepare(log, items_of(tea="ab"), tmp_path / "out", table_options=TableOptions(strip=True)).num_items
        == 2
    )


def test_prepare_prints_nothing_on_stdout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare(*world(), tmp_path / "out")
    assert capsys.readouterr().out == ""


def test_prepare_real_data_has_known_counts(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "movielens-posters"
    posters = prepare(
        folder / "interactions.csv.gz", folder / "items.csv", tmp_path / "posters", min_per_domain=3, last=50
    )
    assert (len(posters.domains[0]), len(posters.domains[1])) == (965, 1356)
    assert posters.manifest["inputs"]["interactions"]["rows"] == 635_208
    assert posters.image_root is not None
    assert (posters.image_root / posters.item_table["image"].drop_nulls()[0]).is_file()
    folder = shared_data / "amazon-food-kitchen"
    shops = prepare(folder / "interactions.csv.gz", folder / "items.csv", tmp_path / "shops")
    assert (shops.num_users, len(shops.items)) == (7_144, 173_548)
    assert round(shops.manifest["ties"]["tied_pairs"] / shops.manifest["ties"]["adjacent_pairs"], 2) == 0.31
