"""The content of report.html, collected from a run."""

from __future__ import annotations

from pathlib import Path

import pytest

from hafvt import train
from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.protocols import get_protocol
from hafvt.evaluation.target_ranking import rank_targets
from hafvt.reports.report import read_curve, user_examples, write_run_report


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from tests.conftest import write_small

    root = tmp_path_factory.mktemp("run")
    params = {"max_length": 6}
    return train("hafvt", write_small(root / "data"), root / "run", params=params, epochs=1)


def test_write_run_report_shows_results_and_users(run) -> None:
    page = write_run_report(run).read_text(encoding="utf-8")
    assert "d0 and d1: hafvt" in page
    assert "each ranked among the items of its domain (30 d0" in page
    assert page.count('<article class="user"') == 6


def test_user_examples_of_equal_seed_are_equal(run) -> None:
    data: Dataset = run.data
    users = user_examples(run.models, data, (True, True))
    assert users == user_examples(run.models, data, (True, True))
    for user in users:
        scores = [ranked.score for ranked in user.recommendations]
        assert scores == sorted(scores, reverse=True)
        assert len(user.history) <= 6
        for ranked in user.recommendations:
            assert sum(ranked.shares.values()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_user_examples_list_and_rank_as_evaluation(run, exclude_seen) -> None:
    data: Dataset = run.data
    protocol = get_protocol("full", "unseen" if exclude_seen else "all")
    ranks = rank_targets(run.models, data, "test", protocol).by_protocol
    targets = data.item_table["item_id"].gather(data.items[ranks.positions]).to_list()
    by_target = dict(
        zip(zip(data.user_ids.gather(ranks.users), targets, strict=True), ranks.ranks, strict=True)
    )
    for user in user_examples(run.models, data, (exclude_seen, exclude_seen)):
        assert user.target_rank == by_target[user.user_id, user.target.item_id]
        listed = {ranked.item.item_id for ranked in user.recommendations}
        assert not (exclude_seen and listed & {item.item_id for item in user.history})


def test_write_run_report_without_pillow_says_so(run, monkeypatch) -> None:
    monkeypatch.setattr("hafvt.reports.report.find_spec", lambda name: None)
    monkeypatch.setattr(Dataset, "image_root", Path("pictures"), raising=False)
    assert "pip install &#39;hafvt[classic]&#39;" in write_run_report(run).read_text(encoding="utf-8")


def test_read_curve_of_a_missing_file_is_empty(tmp_path) -> None:
    assert read_curve(tmp_path / "metrics.jsonl") == []


@pytest.mark.parametrize("content", [b"{", b"\xff", b"3\n", b'{"epoch": 1}\n', b'{"epoch": [], "loss": 1}'])
def test_read_curve_of_a_damaged_file_names_the_remedy(tmp_path, content) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(HafvtError, match=r"metrics.jsonl is damaged .*: remove it, and the report") as raised:
        read_curve(tmp_path / "metrics.jsonl")
    assert "\n" not in str(raised.value)
