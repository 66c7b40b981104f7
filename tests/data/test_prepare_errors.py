from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from hafvt.data.dataset import Dataset
from hafvt.data.prepare import prepare
from hafvt.errors import HafvtError, InputError
from hafvt.files import write_json
from tests.data.helpers import items_of, log_of

ITEMS = items_of(tea="ab", cups="xy")
LOG = log_of(("u", "a", 1), ("u", "x", 2), ("v", "b", 1), ("v", "y", 2))


@pytest.mark.parametrize(
    ("log", "items", "row", "problem"),
    [
        (pl.concat([LOG, log_of(("w", "q", 1))]), ITEMS, 5, "value 'q': unknown item; 1 of 5 interactions"),
        (LOG, pl.concat([ITEMS, ITEMS.slice(1, 1)]), 5, "value 'b': this item is listed before"),
        (LOG, pl.concat([ITEMS, items_of(cups="b")]), 5, "value 'b': this item is in two domains"),
        (
            LOG.with_columns(domain=pl.Series(["tea", "cups", "cups", "cups"])),
            ITEMS,
            3,
            "the items table says 'tea'",
        ),
        (
            LOG.with_columns(domain=pl.Series(["tea", "cups", "tea", "pots"])),
            ITEMS,
            4,
            "the items table says 'cups'",
        ),
        (
            pl.concat([LOG, LOG.head(1)]).with_columns(domain=pl.Series(["p", "q", "p", "q", "q"])),
            None,
            5,
            "value 'a': this item is in two domains",
        ),
        (
            LOG.with_columns(domain=pl.Series(["tea", "cups", "tea", "cups"])),
            pl.DataFrame({"item_id": ["a", "z", "b", "x", "y"]}),
            2,
            "this item has no interaction",
        ),
    ],
)
def test_prepare_tables_that_disagree_are_refused_with_the_row(
    tmp_path: Path, log: pl.DataFrame, items: pl.DataFrame | None, row: int, problem: str
) -> None:
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        prepare(log, items, tmp_path / "out")
    assert caught.value.row == row
    log.write_csv(tmp_path / "log.csv")
    if items is not None:
        items.write_csv(tmp_path / "items.csv")
    with pytest.raises(InputError, match=re.escape(problem)) as caught:
        prepare(tmp_path / "log.csv", None if items is None else tmp_path / "items.csv", tmp_path / "out")
    assert caught.value.row == row + 1
    assert not (tmp_path / "out").exists()


def test_prepare_empty_domain_names_the_filter(tmp_path: Path) -> None:
    apart = log_of(("u", "a", 1), ("v", "x", 1), ("w", "x", 1))
    with pytest.raises(
        HafvtError,
        match=r"no user has interactions in every domain .*cups 2 users, tea 1 users.*ids of users",
    ):
        prepare(apart, ITEMS, tmp_path / "out", min_per_domain=1)
    with pytest.raises(HafvtError, match=r"no user has 2 interactions in every domain .*4 interactions"):
        prepare(LOG, ITEMS, tmp_path / "out", min_per_domain=2)
    with pytest.raises(HafvtError, match=r"--min-per-domain 1 and --min-per-item 3 together"):
        prepare(LOG, ITEMS, tmp_path / "out", min_per_domain=1, min_per_item=3)
    with pytest.raises(HafvtError, match=r"--min-per-domain 0 and --min-per-item 2 together"):
        prepare(pl.concat([LOG, LOG.head(1)]), ITEMS, tmp_path / "out", min_per_domain=0, min_per_item=2)
    with pytest.raises(HafvtError, match=r"domain 'pans' has items but no interactions.*--domains"):
        prepare(LOG, pl.concat([ITEMS, items_of(pans="p")]), tmp_path / "out")


def test_prepare_setting_out_of_range_is_refused(tmp_path: Path) -> None:
    wrong: list[dict[str, Any]] = [
        {"min_per_domain": -1},
        {"min_per_item": -1},
        {"last": 0},
        {"split": "time", "valid_share": 0.0},
        {"split": "time", "valid_share": 0.5, "test_share": 0.5},
        {"domains": []},
    ]
    for settings in wrong:
        with pytest.raises(HafvtError):
            prepare(LOG, ITEMS, tmp_path / "out", **settings)


def test_prepare_existing_folder_is_replaced_only_if_a_dataset(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = prepare(LOG, ITEMS, out)
    with pytest.raises(HafvtError, match="exists already"):
        prepare(LOG, ITEMS, out)
    with pytest.raises(InputError):
        prepare(tmp_path / "missing.csv", ITEMS, out, overwrite=True)
    assert Dataset.open(out).manifest == first.manifest
    assert prepare(LOG.head(2), ITEMS, out, overwrite=True).num_users == 1
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letters.txt").touch()
    with pytest.raises(HafvtError, match="is not a dataset"):
        prepare(LOG, ITEMS, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "letters.txt").exists()


def test_open_dataset_of_an_older_format_asks_to_prepare_again(tmp_path: Path) -> None:
    data = prepare(LOG, ITEMS, tmp_path / "out")
    write_json(data.folder / "manifest.json", data.manifest | {"format": 1})
    with pytest.raises(HafvtError, match=r"has dataset format 1, .*: prepare the dataset again"):
        Dataset.open(data.folder)
