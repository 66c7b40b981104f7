"""The curve of re-ranking starts at the model's accuracy, and its lists are those of the recommender."""

from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

import hafvt
from hafvt.cli import main
from hafvt.data.dataset import replace_item_table
from hafvt.errors import HafvtError
from tests.conftest import write_small


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("curve")
    data = write_small(folder / "data")
    brands = pl.Series("brand", [["acme", "zeta", "orb"][n % 3] for n in range(50)])
    replace_item_table(data.folder, data.item_table.with_columns(brands))
    return hafvt.train("hafvt", data.folder, folder / "run", params={"id_width": 8}, epochs=1)


def test_rerank_curve_has_the_recommenders_lists_and_is_in_the_report(run, capsys):
    assert main(["rerank-curve", str(run.folder), "--calibrate", "brand", "--k", "5"]) == 0
    output = capsys.readouterr().out
    assert "NDCG@5 (%)" in output
    curves = json.loads((run.folder / "rerank_curve.json").read_text())["curves"]
    assert list(curves) == ["diversity", "calibration brand"]
    recommender, data = hafvt.Recommender.open(run), run.data
    ids = data.item_table["item_id"].to_list()
    by_name = {"diversity": {"diversity": 0.4}, "calibration brand": {"calibrate": {"brand": 0.4}}}
    for name, rules in by_name.items():
        for row, options in ((curves[name][0], {}), (curves[name][4], rules)):
            gains = []
            times = data.request_times(np.asarray(data.valid))
            for n, position in enumerate(np.asarray(data.valid).tolist()):
                start = data.offsets[data.users_at(np.array([position]))[0]]
                history = [ids[i] for i in data.items[start:position]]
                domain = data.domains[int(data.domains_of(data.items[position]))].name
                time = None if times is None else int(times[n])
                (result,) = recommender.recommend([history], domain, 5, time=time, **options)
                listed = [one.item.item_id for one in result.items]
                target = ids[data.items[position]]
                gains.append(1 / np.log2(listed.index(target) + 2) if target in listed else 0.0)
            assert row["NDCG@5"] == pytest.approx(np.mean(gains))
    assert curves["diversity"][9]["diversity"] > curves["diversity"][0]["diversity"]
    first, last = (curves["calibration brand"][n]["calibration brand"] for n in (0, 9))
    assert last < first
    page = (run.folder / "report.html").read_text(encoding="utf-8")
    assert "Diversity and calibration</h2>" in page
    assert "Validation NDCG@5, %" in page


def test_rerank_curve_unknown_column_raises(run):
    with pytest.raises(HafvtError, match="no column 'size' in the items table"):
        hafvt.rerank_curve(run, calibrate=["size"])
