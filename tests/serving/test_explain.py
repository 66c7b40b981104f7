"""`hafvt explain`: where a score comes from, as a table."""

from __future__ import annotations

import pytest

from hafvt import explain, train
from hafvt.cli import main
from hafvt.errors import HafvtError
from hafvt.serving.recommender import Explanation
from hafvt.serving.shelf import Item
from tests.conftest import write_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explain")
    small = {"id_width": 8, "content_width": 6}
    return train("hafvt", write_small(folder / "data"), folder / "run", params=small, epochs=1, test=False)


def test_the_table_holds_the_shares_and_what_was_attended_to(run, capsys):
    history = ["i3", "007", *(f"i{n}" for n in range(30, 44)), "i7"]
    assert main(["explain", str(run.folder), "--item", "i5", "--history", *history]) == 0
    said = capsys.readouterr().out
    told = explain(run.folder, "i5", history=history)
    assert said == f"{told}\n"
    lines = said.splitlines()
    assert lines[0] == "i5  title 5"
    assert f"rank {told.rank:g} in d0" in lines[1]
    shares = {line.split("  ")[0]: line.split()[-4:] for line in lines[4:8]}
    for sequence in ("d0", "d1", "all domains"):
        parts = [told.shares[sequence, modality] for modality in ("id", "image", "title")]
        assert shares[sequence] == [f"{100 * part:.1f}" for part in (*parts, sum(parts))]
    assert shares["together"][3] == "100.0"
    assert "and 6 more" in lines
    assert lines[-1] == "skipped 1 unknown ids: '007'"


def test_what_weighs_most_stands_first():
    items = tuple(Item(f"i{n}", "d0", f"film \x1b{n}", None, 1) for n in range(3))
    told = Explanation(
        item=items[0],
        score=-1.5,
        rank=2.5,
        history=items,
        shares={("d0", "id"): 0.2, ("d1", "id"): 0.5, ("all domains", "id"): 0.3},
        attention={
            ("d0", "id"): (0.8, 0.2, 0.0),
            ("d1", "id"): (0.0, 0.0, 1.0),
            ("all domains", "id"): (0.1, 0.7, 0.2),
        },
    )
    assert str(told).splitlines() == [
        "i0  film  0",
        "score -1.5000, rank 2.5 in d0",
        "",
        "share of the score in %     id  together",
        "d0                        20.0      20.0",
        "d1                        50.0      50.0",
        "all domains               30.0      30.0",
        "together                 100.0     100.0",
        "",
        "      attention in %           all domains    d0",
        "read  item            title             id    id",
        "2.    i1              film  1         70.0  20.0",
        "1.    i0              film  0         10.0  80.0",
        "3.    i2              film  2         20.0   0.0",
    ]


def test_a_user_of_the_dataset(run):
    stop = int(run.data.offsets[5])
    history = [f"i{n}" for n in run.data.items[run.data.offsets[4] : stop]]
    assert explain(run.folder, "i5", user="u4") == explain(run.folder, "i5", history=history)
    with pytest.raises(HafvtError, match="no user 'nobody'"):
        explain(run.folder, "i5", user="nobody")


def test_whose_history_must_be_clear(run):
    for settings in ({}, {"history": ["i1"], "user": "u1"}):
        with pytest.raises(HafvtError, match=r"either --history ID ID .* or --user USER"):
            explain(run.folder, "i5", **settings)
    with pytest.raises(HafvtError, match="no known item"):
        explain(run.folder, "i5", history=[])
