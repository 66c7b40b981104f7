"""The examples of docs/how-to/extend.md add a protocol and a metric that work."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hafvt
from hafvt.evaluation import metrics, negatives, protocols

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")


def code_blocks(section: str) -> tuple[str, str]:
    """Returns the function and the table line that a section shows."""
    text = re.split(r"^## ", TEXT.partition(f"## {section}\n")[2], flags=re.MULTILINE)[0]
    function, line = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(line.splitlines()) == 1
    return function, line


@pytest.fixture
def popularity_run(make_small, tmp_path: Path) -> Any:
    """Returns a run of popularity on a small dataset."""
    return hafvt.train("popularity", make_small(), tmp_path / "run", test=False)


def test_documented_protocol_ranks_among_popular_negatives(popularity_run, monkeypatch):
    function, line = code_blocks("A new protocol")
    names = {**vars(negatives), **vars(protocols)}
    exec(function, names)
    for name, protocol in eval(f"{{{line}}}", names).items():
        monkeypatch.setitem(protocols.PROTOCOLS, name, protocol)
    evaluation = hafvt.evaluate(popularity_run.folder, protocol="sampled-popular")
    data = popularity_run.data
    drawn = np.load(data.folder / "negatives" / "sampled-popular-test.npy")
    targets = np.asarray(data.items)[data.test]
    assert (data.train_counts()[drawn[drawn >= 0]] > 0).all()
    assert not (drawn == targets[:, None]).any()
    assert (evaluation.ranks.candidates == 1 + (drawn >= 0).sum(1)).all()


def test_documented_metric_is_reported(popularity_run, monkeypatch):
    function, line = code_blocks("A new metric")
    names = dict(vars(metrics))
    exec(function, names)
    for name, metric in eval(f"{{{line}}}", names).items():
        monkeypatch.setitem(metrics.METRICS, name, metric)
    evaluation = hafvt.evaluate(popularity_run.folder)
    ranks, domains = evaluation.ranks.ranks, evaluation.ranks.domains
    expected = np.mean([np.mean(0.2 * 0.8 ** (ranks[domains == number] - 1)) for number in (0, 1)])
    assert evaluation.results["overall"]["RBP"].value == pytest.approx(expected)
