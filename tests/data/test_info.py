from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from hafvt.data.dataset import Dataset
from hafvt.data.info import HistoryLengths, info
from hafvt.data.order import TimeTies
from hafvt.data.prepare import prepare
from hafvt.errors import HafvtError
from hafvt.features.table import write_table

ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c", "x", "y"],
        "domain": ["tea", "tea", "tea", "cups", "cups"],
        "title": ["A", None, "C", "X", None],
        "image": ["a.jpg", None, None, None, None],
    }
)
ROWS = [
    *[("u", item, time) for time, item in enumerate("aabx")],
    *[("v", item, 5) for item in "yay"],
    ("w", "a", 1),
]
DAY = 86_400


def make(folder: Path, start: int = 0) -> Dataset:
    log = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
    return prepare(log.with_columns(pl.col("timestamp") * DAY + start), ITEMS, folder, min_per_domain=0)


def test_info_small_dataset_counts_users_items_and_targets(tmp_path: Path) -> None:
    result = info(make(tmp_path / "out"))
    cups, tea = result.domains
    assert (result.users, result.items, result.interactions) == (3, 5, 8)
    assert result.lengths == HistoryLengths(1, 3.0, 8 / 3, 4)
    assert (
        cups.items,
        cups.interactions,
        cups.users,
        cups.without_interactions,
        cups.with_title,
        cups.with_image,
    ) == (
        2,
        3,
        2,
        0,
        1,
        0,
    )
    assert (
        tea.items,
        tea.interactions,
        tea.users,
        tea.without_interactions,
        tea.with_title,
        tea.with_image,
    ) == (
        3,
        5,
        3,
        1,
        2,
        1,
    )
    assert tea.lengths == HistoryLengths(1, 1.0, 5 / 3, 3)
    assert result.overlap == {("cups", "tea"): 2}
    assert result.tie_counts == TimeTies(adjacent_pairs=5, tied_pairs=2, duplicates=1)
    assert result.tie_order == "random"
    assert result.time_span == (0, 5 * DAY)
    assert cups.valid_targets + tea.valid_targets == 2
    assert cups.test_targets + tea.test_targets == 2
    assert cups.test_targets >= 1  # the last of u


def test_info_path_with_features_counts_items_with_a_vector(tmp_path: Path) -> None:
    data = make(tmp_path / "out")
    present = np.array([True, False, True, False, False])
    folder = data.folder / "features" / "title"
    write_table(folder, np.zeros((5, 4), dtype=np.float16), present, {"encoder": "test"})
    result = info(str(data.folder))
    assert [domain.with_features for domain in result.domains] == [{"title": 1}, {"title": 1}]
    assert "with title features" in str(result)


def test_info_of_damaged_vectors_names_the_file_and_the_remedy(tmp_path: Path) -> None:
    data = make(tmp_path / "a")
    folder = data.folder / "features" / "title"
    write_table(folder, np.zeros((5, 4), np.float16), np.array([True] * 4 + [False]), {"encoder": "test"})
    np.save(folder / "present.npy", np.array([True] * 5))
    with pytest.raises(HafvtError, match=r"present.npy is damaged .*: run hafvt encode for title again"):
        info(data)


def test_info_without_equal_times_names_no_order(tmp_path: Path) -> None:
    log = pl.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "x"], "timestamp": [1, 2, 3]})
    text = str(info(prepare(log, ITEMS, tmp_path / "a", min_per_domain=0)))
    assert "equal times: 0 of 2 adjacent pairs (0.0%)\n" in text


def test_info_text_is_an_aligned_table_with_a_summary(tmp_path: Path) -> None:
    text = str(info(make(tmp_path / "a")))
    assert "3 users, 5 items, 8 interactions" in text
    assert "users of cups and tea: 2 (66.7% of all users)" in text
    assert "merged histories: 1 to 4 interactions, median 3, mean 2.7" in text
    assert "equal times: 2 of 5 adjacent pairs (40.0%), in random order" in text
    assert "duplicates (interactions with the user, item and time of another): 1" in text
    assert f"times: 0 to {5 * DAY:,}" in text
    table = [line for line in text.splitlines()[2:14] if line]
    assert len({len(line) for line in table}) == 1  # aligned
    dated = str(info(make(tmp_path / "b", start=1_700_000_000)))
    assert "times: 2023-11-14 22:13:20 UTC to 2023-11-19 22:13:20 UTC" in dated


def test_info_three_domains_counts_overlap_of_pairs_and_of_all(tmp_path: Path) -> None:
    rows = [("u", "a"), ("u", "b"), ("u", "c"), ("v", "a"), ("v", "b"), ("w", "c")]
    log = pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")
    log = log.with_columns(timestamp=1, domain=pl.col("item_id").str.to_uppercase())
    result = info(prepare(log, None, tmp_path / "out", min_per_domain=0))
    expected = {("A", "B"): 2, ("A", "C"): 1, ("B", "C"): 1, ("A", "B", "C"): 1}
    assert result.overlap == expected


def test_info_one_domain_or_no_manifest_of_prepare_has_defaults(small: Dataset, tmp_path: Path) -> None:
    log = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
    single = info(prepare(log, None, tmp_path / "out"))
    assert single.overlap == {}
    assert [domain.name for domain in single.domains] == ["all"]
    result = info(small)
    assert (result.tie_order, result.tie_counts.tied_pairs) == ("unknown", 0)
    assert "order" not in str(result)


def test_info_movielens_counts_posters(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "movielens-posters"
    result = info(
        prepare(folder / "interactions.csv.gz", folder / "items.csv", tmp_path / "out", min_per_domain=3)
    )
    assert sum(domain.with_image for domain in result.domains) == 2_208
    assert result.overlap[("action", "drama")] == result.users


def test_info_lists_what_prepare_removed(tmp_path: Path) -> None:
    log = pl.DataFrame(ROWS, schema=["user_id", "item_id", "timestamp"], orient="row")
    result = info(prepare(log, ITEMS, tmp_path / "out", domains=["tea"], min_per_item=2, last=1))
    assert result.removed == (
        "domains=tea: 2 of 5 items, 3 of 8 interactions",
        "min_per_domain=0, min_per_item=2: 2 of 3 items, 1 of 5 interactions",
        "last=1: 1 of 4 interactions",
    )
    assert "removed by last=1: 1 of 4 interactions" in str(result)
    assert info(make(tmp_path / "all")).removed == ()


@pytest.mark.parametrize("part", ["valid_targets", "test_targets"])
def test_info_targets_of_domains_add_up(small: Dataset, part: str) -> None:
    assert sum(getattr(domain, part) for domain in info(small).domains) == small.num_users
