"""`hafvt explain` prints the contributions of all branches to a score."""

from __future__ import annotations

import pytest

from hafvt import explain
from hafvt.cli import main
from hafvt.errors import HafvtError
from hafvt.inference.catalog import Item
from hafvt.inference.recommendations import Explanation


def test_explain_command_prints_shares_and_attention(served_run, capsys):
    history = ["i3", "007", *(f"i{n}" for n in range(30, 44)), "i8"]
    assert main(["explain", str(served_run), "--item", "i5", "--history", *history]) == 0
    output = capsys.readouterr().out
    explanation = explain(served_run, "i5", history=history)
    assert output == f"{explanation}\n"
    lines = output.splitlines()
    assert lines[0] == "i5  Wars of stars"
    assert f"rank {explanation.rank:g} in d0" in lines[1]
    rows = {line.split("  ")[0]: line.split()[-4:] for line in lines[4:8]}
    for sequence in ("d0", "d1", "all domains"):
        shares = [explanation.shares[sequence, modality] for modality in ("id", "image", "title")]
        assert rows[sequence] == [f"{100 * share:.1f}" for share in (*shares, sum(shares))]
    assert rows["total"][3] == "100.0"
    assert "and 6 more" in lines
    assert lines[-1] == "skipped 1 unknown ids: '007'"


def test_explanation_text_sorts_history_by_attention_times_share():
    items = tuple(Item(f"i{n}", "d0", f"film \x1b{n}", None, 1) for n in range(3))
    explanation = Explanation(
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
    assert str(explanation).splitlines() == [
        "i0  film  0",
        "score -1.5000, rank 2.5 in d0",
        "",
        "share of the score in %  choices  total",
        "d0                          20.0   20.0",
        "d1                          50.0   50.0",
        "all domains                 30.0   30.0",
        "total                      100.0  100.0",
        "",
        "      attention in %           all domains    d0",
        "read  item            title",
        "2.    i1              film  1         70.0  20.0",
        "1.    i0              film  0         10.0  80.0",
        "3.    i2              film  2         20.0   0.0",
    ]


def test_explanation_text_has_one_column_for_modalities_of_equal_attention():
    item = Item("i0", "d0", "film", None, 1)
    branches = [("d0", name) for name in ("id", "image", "title")]
    weights = [(1.0,), (1.0,), (0.5,)]
    shares, attention = dict.fromkeys(branches, 1 / 3), dict(zip(branches, weights, strict=True))
    lines = str(Explanation(item, 0.0, 1.0, (item,), shares, attention)).splitlines()
    assert [line.split() for line in lines[-2:]] == [
        ["read", "item", "title", "choices,", "pictures", "titles"],
        ["1.", "i0", "film", "100.0", "50.0"],
    ]
    lines = str(Explanation(item, 0.0, 1.0, (item,), shares, dict.fromkeys(branches, (1.0,)))).splitlines()
    assert [line.split() for line in lines[-2:]] == [["read", "item", "title"], ["1.", "i0", "film", "100.0"]]


def test_explain_user_of_dataset_reads_whole_history(served_run, served_data):
    items = served_data.items[served_data.offsets[4] : int(served_data.offsets[5])]
    history = [served_data.item_table["item_id"][int(n)] for n in items]
    assert explain(served_run, "i5", user="u4") == explain(served_run, "i5", history=history)
    with pytest.raises(HafvtError, match="no user 'nobody'"):
        explain(served_run, "i5", user="nobody")


def test_explain_without_one_history_raises(served_run):
    for settings in ({}, {"history": ["i1"], "user": "u1"}):
        with pytest.raises(HafvtError, match=r"either --history ID ID .* or --user USER"):
            explain(served_run, "i5", **settings)
    with pytest.raises(HafvtError, match="no known item"):
        explain(served_run, "i5", history=[])
