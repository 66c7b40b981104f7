"""Comparisons: equal terms for all, choice by validation alone, resumed without a second training."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from hafvt.data.sources.checks import SCENARIOS
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import MetricValue
from hafvt.experiments import compare as compare_module
from hafvt.experiments import comparison_runner as contest_module
from hafvt.experiments.compare import PARTS, ablate, compare
from hafvt.experiments.comparison_runner import (
    Budget,
    Candidate,
    ModelResult,
    against_best_other,
    searched,
    slug,
)
from hafvt.experiments.paper import paper
from hafvt.experiments.published import TABLES
from hafvt.files import lock_folder, write_json
from hafvt.models import MODELS
from hafvt.models.configs import SasRecConfig
from hafvt.models.popularity import Popularity
from hafvt.reports.comparison import Row, bars_svg, figures_latex, figures_markdown
from hafvt.training.run import fingerprint
from tests.conftest import write_small

QUICK = Budget(2, (1e-3, 1e-2), 1, 2, 6, 16, 1, 0)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setitem(contest_module.BUDGETS, "small", QUICK)


def test_a_comparison_from_search_to_tables(make_small, tmp_path, monkeypatch):
    data = make_small()
    found = compare(data.folder, tmp_path / "out", models=["sasrec", "popularity"], budget="small", jobs=2)
    runs = tmp_path / "out" / "runs"
    assert sorted(path.name for path in runs.glob("*/*/")) == [
        "rate0.001-seed0",
        "rate0.001-seed0",
        *(["rate0.01-seed0", "rate0.01-seed1"] if (runs / "sasrec" / "rate0.01-seed1").exists() else []),
        *(["rate0.001-seed1", "rate0.01-seed0"] if (runs / "sasrec" / "rate0.001-seed1").exists() else []),
    ]
    sasrec = found.model_results[0]
    assert sasrec.learning_rate == max(sasrec.tried, key=sasrec.tried.get)
    worse = min(sasrec.tried, key=sasrec.tried.get)
    assert not (runs / "sasrec" / f"rate{worse:g}-seed0" / "results.json").exists()  # test is not looked at
    values = [
        json.loads((runs / "sasrec" / f"rate{sasrec.learning_rate:g}-seed{s}" / "results.json").read_text())
        for s in (0, 1)
    ]
    mrrs = [100 * value["results"]["d0"]["MRR"]["value"] for value in values]
    assert f"{np.mean(mrrs):.2f} ± {np.std(mrrs, ddof=1):.2f}" in str(found)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {
        "compare.md",
        "compare.tex",
        "compare.json",
    }
    told = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [model["label"] for model in told["models"]] == ["sasrec", "popularity"]
    tests = told["models"][0]["against_best_other"]["d0 MRR"]
    assert tests["difference"] == pytest.approx((np.mean(mrrs) - 100 * figure(told, 1)) / 100, abs=1e-6)
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    again = compare(data.folder, tmp_path / "out", models=["sasrec", "popularity"], budget="small")
    assert str(again) == str(found)
    assert before == {path: path.stat().st_mtime_ns for path in runs.rglob("*.safetensors")}
    with pytest.raises(HafvtError, match="holds a comparison with another protocol"):
        compare(
            data.folder, tmp_path / "out", models=["popularity"], budget="small", protocol="sampled-unseen"
        )
    accumulation_dtype = MODELS["sasrec"]._replace(presets={"default": SasRecConfig(width=16)})
    monkeypatch.setitem(MODELS, "sasrec", accumulation_dtype)  # as a later release may have it
    with pytest.raises(HafvtError, match=r"rate0.*holds a run with width=128, now 16: move it away"):
        compare(data.folder, tmp_path / "out", models=["sasrec"], budget="small")


def figure(told, number):
    return told["models"][number]["results"][0]["d0"]["MRR"]["value"]


def test_settings_of_a_search_take_the_place_of_the_rates(make_small, tmp_path, monkeypatch):
    monkeypatch.setitem(contest_module.BUDGETS, "small", Budget(1, (1e-3, 1e-2), 1, 1, 6, 16, 1, 0))
    data, folder = make_small(), tmp_path / "tune"
    folder.mkdir()
    write_json(folder / "settings.json", {"model": "gru4rec", "dataset": fingerprint(data)})
    best = {"preset": "default", "learning_rate": 0.02, "batch_size": 8, "weight_decay": 1e-6}

    def compared(**changes):
        params = {"width": 8, "layers": 1}
        (folder / "best.yaml").write_text(yaml.safe_dump({**best, "params": params, **changes}))
        settings = {"models": ["gru4rec"], "tuned": {"gru4rec": str(folder)}, "budget": "small"}
        return compare(data.folder, tmp_path / "out", **settings)

    (folder / "report.md").write_text("# Settings\n\nBudget: 30 trials of at most 20 epochs.\n")
    found = compared()
    (run,) = (tmp_path / "out" / "runs" / "gru4rec").glob("*/")
    about = json.loads((run / "model.json").read_text())
    assert {name: about["training"][name] for name in ("learning_rate", "batch_size", "weight_decay")} == {
        "learning_rate": 0.02,
        "batch_size": 8,
        "weight_decay": 1e-6,
    }
    assert about["config"]["width"] == 8
    assert f"gru4rec: settings of the search in {folder}. Budget: 30 trials of at most 20 epochs." in str(
        found
    )
    assert "| gru4rec | 0.02, tuned |" in str(found)
    with pytest.raises(HafvtError, match="holds a run with batch_size=8, now 16"):
        compared(batch_size=16)
    with pytest.raises(HafvtError, match="--tuned sasrec: it takes no part, those are gru4rec"):
        compare(data.folder, tmp_path / "no", models=["gru4rec"], tuned={"sasrec": str(folder)})
    with pytest.raises(HafvtError, match="holds no search for gru4rec on"):
        compare(make_small(seed=1).folder, tmp_path / "no", tuned={"gru4rec": str(folder)})


def test_a_stopped_comparison_goes_on_and_ends_alike(make_small, tmp_path):
    data = make_small(users=300)
    arguments = ["compare", str(data.folder), "--out", str(tmp_path / "a")]
    arguments += ["--models", "gru4rec", "--budget", "small"]
    code = (
        "from hafvt.cli import main\n"
        "from hafvt.experiments import comparison_runner as contest\n"
        f"contest.BUDGETS['small'] = contest.{QUICK!r}\n"
        f"raise SystemExit(main({arguments!r}))\n"
    )

    def epochs() -> int:
        return sum(len(path.read_text().splitlines()) for path in tmp_path.glob("a/runs/*/*/metrics.jsonl"))

    for how in (signal.SIGINT, signal.SIGTERM):
        before = epochs()
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while epochs() <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(how)
        assert process.wait(30) == 130
        for metrics in tmp_path.glob("a/runs/*/*/metrics.jsonl"):
            with lock_folder(metrics.parent):  # nobody trains there any more
                pass
    held = compare(data.folder, tmp_path / "a", models=["gru4rec"], budget="small")
    whole = compare(data.folder, tmp_path / "b", models=["gru4rec"], budget="small")
    assert held.model_results[0].results == whole.model_results[0].results
    assert held.model_results[0].tried == whole.model_results[0].tried


def test_a_training_that_fails_is_named(make_small, tmp_path, monkeypatch):
    monkeypatch.setattr(contest_module, "configure", lambda *_: object())
    with pytest.raises(HafvtError, match=r"popularity ended with 1: .*no model|popularity ended"):
        contest_module.run_comparison(
            make_small(), tmp_path / "out", [Candidate("popularity", "nonsense")], QUICK, "full", 1
        )


def test_wrong_settings(make_small, tmp_path):
    data = make_small()
    for settings, told in (
        ({"budget": "huge"}, "choose small, full"),
        ({"models": ["bert"]}, "no model 'bert'"),
        ({"protocol": "mine"}, "protocol"),
        ({"jobs": 0, "models": ["popularity"], "budget": "small"}, "--jobs 0"),
    ):
        with pytest.raises(HafvtError, match=told):
            compare(data.folder, tmp_path / "out", **settings)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(HafvtError, match="does not hold a comparison"):
        compare(data.folder, tmp_path / "full", models=["popularity"], budget="small")


def test_models_of_two_domains_are_left_out_of_three_and_said_so(make_small, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "MODELS", dict.fromkeys(("popularity", "psjnet")))
    monkeypatch.setattr(Popularity, "notes", ("what it counts",))
    found = compare(make_small(sizes=(20, 15, 10)).folder, tmp_path / "out", budget="small")
    assert [model_result.entry.label for model_result in found.model_results] == ["popularity"]
    assert re.search(r"psjnet is left out: .*two domains", str(found))
    assert "\npopularity: what it counts\n" in str(found)


def test_ablation_switches_what_it_says(tmp_path, monkeypatch):
    data = write_small(tmp_path / "data")
    monkeypatch.setitem(contest_module.BUDGETS, "small", Budget(1, (1e-2,), 1, 1, 6, 64, 1, 0))
    found = ablate(data.folder, tmp_path / "out", budget="small", jobs=2)
    assert [model_result.entry.label for model_result in found.model_results] == list(PARTS)
    sizes = {model_result.entry.label: model_result.parameters for model_result in found.model_results}
    assert sizes["original"] < sizes["+ visual"] < sizes["+ visual, hierarchy"]
    figure = ElementTree.fromstring((tmp_path / "out" / "ablate.svg").read_text())
    texts = [element.text for element in figure.iter() if element.tag.endswith("text")]
    assert set(PARTS) <= set(texts)
    for model_result in found.model_results:
        assert f"{100 * model_result.figure('d0', 'MRR')[0]:.2f}" in texts
    bare = write_small(tmp_path / "bare", with_features=False)
    with pytest.raises(HafvtError, match="no features image"):
        ablate(bare.folder, tmp_path / "none", budget="small")


def test_the_papers_rows_stand_beside_ours_where_they_may(make_small, tmp_path, monkeypatch):
    data = make_small()
    monkeypatch.setattr(compare_module, "MODELS", dict.fromkeys(("popularity", "gru4rec")))
    plain = paper("table2", data=data.folder, out=tmp_path / "plain", budget="small")
    assert "paper" not in str(plain).replace("paper/", "").split("wrote")[0]
    scenario = compare_module.find_scenario(data)
    assert scenario is None
    monkeypatch.setattr(compare_module, "find_scenario", lambda data: SCENARIOS[0])
    told = paper("table2", data=data.folder, out=tmp_path / "plain", budget="small")
    assert "*gru4rec, paper*" in str(told)
    assert all(f"*{value:.2f}*" in str(told) for value in TABLES["food", "kitchen"]["gru4rec"])
    with pytest.raises(HafvtError, match="needs --out"):
        paper("table3", data=data.folder)


def model_result(label, value, users):
    return ModelResult(
        Candidate(label, label),
        1e-3,
        {},
        ({"x": {"MRR": MetricValue(value)}},),
        {("x", "MRR"): users},
    )


def test_each_model_meets_the_best_of_the_others():
    random = np.random.default_rng(0)
    users = {name: random.random(300) + shift for name, shift in (("a", 0.0), ("b", 0.3), ("c", 0.1))}
    tests = against_best_other([model_result(n, float(u.mean()), u) for n, u in users.items()])
    assert tests["b", "x", "MRR"].difference == pytest.approx((users["b"] - users["c"]).mean())
    assert tests["a", "x", "MRR"].difference == pytest.approx((users["a"] - users["b"]).mean())
    assert tests["b", "x", "MRR"].wilcoxon < 0.05
    assert against_best_other([model_result("a", 0.1, users["a"])]) == {}


def test_the_search_looks_at_its_own_epochs_alone(tmp_path):
    lines = [{"epoch": 1, "valid_mrr": 0.2}, {"epoch": 2}, {"epoch": 3, "valid_mrr": 0.1}]
    lines.append({"epoch": 6, "valid_mrr": 0.9})
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert searched(tmp_path, 3) == 0.2
    assert slug("+ textual, Hierarchy/..") == "textual-hierarchy"


def test_tables_escape_and_mark():
    rows = [
        Row("a_b|c", ((12.345, 0.5), (float("nan"), None)), ("significant", "")),
        Row("paper", ((1.0, None), (2.0, None)), ("", ""), published=True),
    ]
    text = figures_markdown(["x&y"], ["MRR", "NDCG@5"], rows)
    assert "| a_b\\|c | **12.35 ± 0.50**\\* | – |" in text or "**12.34 ± 0.50**\\*" in text
    assert "| *paper* | *1.00* | *2.00* |" in text
    tex = figures_latex(["x&y"], ["MRR", "NDCG@5"], rows, "100 % {sure}")
    assert "a\\_b|c" in tex
    assert "x\\&y" in tex
    assert "100 \\% \\{sure\\}" in tex
    assert tex.count("\\\\\n") == 4
    ElementTree.fromstring(bars_svg("a < b", [("x & y", 3.0, 2.0, 4.0), ("z", 0.0, None, None)]))
