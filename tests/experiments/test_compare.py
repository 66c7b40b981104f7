"""Comparisons: equal terms for all models, selection by validation alone, resumable."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from xml.etree import ElementTree

import numpy as np
import polars as pl
import pytest
import yaml

from hafvt.data.sources.checks import SCENARIOS
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import MetricValue
from hafvt.evaluation.protocols import FULL
from hafvt.experiments import compare as compare_module
from hafvt.experiments.compare import ABLATION_VARIANTS, ablate, compare
from hafvt.experiments.comparison_runner import (
    BUDGETS,
    Budget,
    ComparedModel,
    ModelResult,
    best_valid_mrr,
    compare_with_best_other,
    read_user_metrics,
    require_tuned_is_best,
    run_comparison,
    slug,
)
from hafvt.experiments.paper import paper
from hafvt.experiments.published import TABLES
from hafvt.files import write_json
from hafvt.folders import folder_lock
from hafvt.models import MODELS
from hafvt.models.popularity import Popularity
from hafvt.training.run import FORMAT, fingerprint
from tests.conftest import write_small
from tests.experiments.conftest import QUICK_BUDGET

ONE_EPOCH = Budget(1, (1e-2,), 1, 1, 6, 64, 1, 0)


def read_mrr(folder):
    return json.loads((folder / "results.json").read_text())["results"]["d0"]["MRR"]["value"]


def test_compare_takes_the_learning_rate_with_the_best_validation(compared):
    _, out, comparison = compared
    runs = out / "runs"
    gru4rec = comparison.model_results[0]
    rate = gru4rec.learning_rate
    assert rate == max(gru4rec.search_mrrs, key=gru4rec.search_mrrs.get)
    other = min(gru4rec.search_mrrs, key=gru4rec.search_mrrs.get)
    assert sorted(path.name for path in (runs / "gru4rec").glob("*/")) == sorted(
        [f"rate{other:g}-seed0", f"rate{rate:g}-seed0", f"rate{rate:g}-seed1"]
    )
    assert [path.name for path in (runs / "popularity").glob("*/")] == ["rate0.001-seed0"]
    assert not (runs / "gru4rec" / f"rate{other:g}-seed0" / "results.json").exists()  # no test targets read


def test_compare_writes_means_and_tests_of_the_runs(compared):
    _, out, comparison = compared
    rate = comparison.model_results[0].learning_rate
    mrrs = [read_mrr(out / "runs" / "gru4rec" / f"rate{rate:g}-seed{seed}") for seed in (0, 1)]
    assert f"{100 * np.mean(mrrs):.2f} ± {100 * np.std(mrrs, ddof=1):.2f}" in str(comparison)
    assert {path.name for path in out.iterdir()} >= {"compare.md", "compare.tex", "compare.json"}
    content = json.loads((out / "compare.json").read_text())
    assert [model["label"] for model in content["models"]] == ["gru4rec", "popularity"]
    test = content["models"][0]["against_best_other"]["d0 MRR"]
    popularity = content["models"][1]["results"][0]["d0"]["MRR"]["value"]
    assert test["difference"] == pytest.approx(np.mean(mrrs) - popularity, abs=1e-6)


def test_compare_shows_recommended_lists_and_other_candidates(compared):
    _, out, comparison = compared
    assert "coverage@10 (%)" in comparison.text
    assert "| popularity |" in comparison.text
    assert "Some targets are repeats" in comparison.text
    content = json.loads((out / "compare.json").read_text())
    assert {"coverage@10", "popularity rank", "novelty"} < set(content["models"][0]["lists"][0]["overall"])


def test_read_user_metrics_of_a_split_by_time_weighs_users_by_their_targets(tmp_path):
    rows = {"user_id": ["a", "a", "b", "b"], "domain": "x", "rank": [1.0, 2.0, 4.0, 1.0]}
    pl.DataFrame({**rows, "candidates": [9, 9, 9, 1]}).write_parquet(tmp_path / "ranks.parquet")
    metrics, targets = read_user_metrics([tmp_path, tmp_path])
    assert metrics["x", "MRR"].tolist() == [0.75, 0.25]  # the target without another candidate does not count
    assert targets["x"].tolist() == [2.0, 1.0]
    mean = np.average(metrics["x", "MRR"], weights=targets["x"])
    assert mean == pytest.approx((1 + 1 / 2 + 1 / 4) / 3)


def test_compare_repeated_trains_nothing(compared):
    data, out, comparison = compared
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    repeated = compare(data.folder, out, models=["gru4rec", "popularity"], budget="small")
    assert str(repeated) == str(comparison)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}


def test_compare_in_a_folder_of_other_settings_names_them(compared, monkeypatch):
    data, out, _ = compared
    with pytest.raises(HafvtError, match="holds a comparison with another protocol"):
        compare(data.folder, out, models=["popularity"], budget="small", protocol="sampled-unseen")
    other = ComparedModel("gru4rec", "gru4rec", params={"width": 16})
    with pytest.raises(HafvtError, match=r"rate0.*holds a run with width=\d+, now 16: move it away"):
        run_comparison(data, out, [other], QUICK_BUDGET, FULL, 1)


@pytest.mark.slow
def test_compare_with_tuned_settings_searches_no_learning_rate(make_small, tmp_path, monkeypatch):
    monkeypatch.setitem(BUDGETS, "small", Budget(1, (1e-3, 1e-2), 1, 1, 6, 16, 1, 0))
    data, folder = make_small(), tmp_path / "tune"
    folder.mkdir()
    mrrs = {"gru4rec": 0.2, "gru4rec-with-default-settings": 0.1}
    monkeypatch.setattr(
        "hafvt.experiments.comparison_runner.best_valid_mrr", lambda folder, _: mrrs[folder.parent.name]
    )
    budget = "Budget: 30 trials of at most 20 epochs."
    settings = {"format": 3, "model": "gru4rec", "dataset": fingerprint(data), "budget": budget}
    settings["params"] = {"width": 8}
    write_json(folder / "settings.json", settings)
    best = {"preset": "default", "learning_rate": 0.02, "batch_size": 8, "weight_decay": 1e-6}

    def run(**changes):
        params = {"width": 8, "layers": 1}
        (folder / "best.yaml").write_text(yaml.safe_dump({**best, "params": params, **changes}))
        settings = {"models": ["gru4rec"], "tuned": {"gru4rec": str(folder)}, "budget": "small"}
        return compare(data.folder, tmp_path / "out", **settings)

    comparison = run()
    (run_folder,) = (tmp_path / "out" / "runs" / "gru4rec").glob("*/")
    about = json.loads((run_folder / "model.json").read_text())
    assert {name: about["training"][name] for name in best if name != "preset"} == {
        "learning_rate": 0.02,
        "batch_size": 8,
        "weight_decay": 1e-6,
    }
    assert about["config"]["width"] == 8
    assert f"gru4rec: settings of the search in {folder}. {budget}" in str(comparison)
    assert "| gru4rec | 0.02, tuned |" in str(comparison)
    (default_folder,) = (tmp_path / "out" / "runs" / "gru4rec-with-default-settings").glob("*/")
    default = json.loads((default_folder / "model.json").read_text())
    assert (default["training"]["learning_rate"], default["training"]["batch_size"]) == (1e-3, 64)
    assert default["config"]["width"] == 8  # fixed in the search
    assert not (default_folder / "results.json").exists()  # no test targets read
    with pytest.raises(HafvtError, match="holds a run with batch_size=8, now 16"):
        run(batch_size=16)
    mrrs["gru4rec"] = 0.05
    with pytest.raises(
        HafvtError, match=r"gru4rec: the tuned settings have a validation MRR of 5.00%, the de"
    ):
        run()


def test_require_tuned_is_best_compares_means_over_seeds():
    require_tuned_is_best("sasrec", [0.12, 0.14], [0.13, 0.13])
    with pytest.raises(
        HafvtError, match=r"^sasrec: .* 12.00%, the default settings 13.00%: tune it with more"
    ):
        require_tuned_is_best("sasrec", [0.12, 0.12], [0.14, 0.12])


def test_compare_with_a_wrong_search_names_the_remedy(make_small, tmp_path):
    data = make_small()
    write_json(tmp_path / "settings.json", {"model": "gru4rec", "dataset": fingerprint(data)})
    with pytest.raises(HafvtError, match="holds a search of an earlier version: tune gru4rec again"):
        compare(data.folder, tmp_path / "out", tuned={"gru4rec": str(tmp_path)})
    write_json(tmp_path / "settings.json", {"model": "gru4rec", "dataset": "other"})
    with pytest.raises(HafvtError, match="--tuned sasrec: choose among the compared models, gru4rec"):
        compare(data.folder, tmp_path / "out", models=["gru4rec"], tuned={"sasrec": str(tmp_path)})
    with pytest.raises(HafvtError, match="holds no search for gru4rec on"):
        compare(data.folder, tmp_path / "out", tuned={"gru4rec": str(tmp_path)})


@pytest.mark.slow
def test_compare_stopped_and_repeated_ends_as_without_a_stop(make_small, tmp_path):
    data = make_small(users=300)
    arguments = ["compare", str(data.folder), "--out", str(tmp_path / "a")]
    arguments += ["--models", "gru4rec", "--budget", "small"]
    code = (
        "from hafvt.cli import main\n"
        "from hafvt.experiments import comparison_runner\n"
        f"comparison_runner.BUDGETS['small'] = comparison_runner.{QUICK_BUDGET!r}\n"
        f"raise SystemExit(main({arguments!r}))\n"
    )

    def epochs() -> int:
        return sum(len(path.read_text().splitlines()) for path in tmp_path.glob("a/runs/*/*/metrics.jsonl"))

    for signal_number in (signal.SIGINT, signal.SIGTERM):
        epochs_before = epochs()
        process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while epochs() <= epochs_before and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal_number)
        assert process.wait(30) == 130
        for metrics in tmp_path.glob("a/runs/*/*/metrics.jsonl"):
            with folder_lock(metrics.parent):  # no training runs there
                pass
    resumed = compare(data.folder, tmp_path / "a", models=["gru4rec"], budget="small")
    without_stop = compare(data.folder, tmp_path / "b", models=["gru4rec"], budget="small")
    assert resumed.model_results[0].seed_results == without_stop.model_results[0].seed_results
    assert resumed.model_results[0].search_mrrs == without_stop.model_results[0].search_mrrs


def test_run_comparison_with_a_failing_training_names_the_model(make_small, tmp_path, monkeypatch):
    monkeypatch.setattr("hafvt.experiments.comparison_runner.configure", lambda *_: object())
    monkeypatch.setitem(MODELS, "nonsense", MODELS["gru4rec"])  # the process of the training lacks it
    compared_models = [ComparedModel("label", "nonsense")]
    with pytest.raises(HafvtError, match=r"label ended with 2: .*nonsense"):
        run_comparison(make_small(), tmp_path / "out", compared_models, QUICK_BUDGET, FULL, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget": "huge", "models": ["popularity"]}, "choose small or full"),
        ({"models": ["bert"]}, "no model 'bert'"),
        ({"protocol": "mine"}, "protocol"),
        ({"jobs": 0, "models": ["popularity"], "budget": "small"}, "--jobs is 0"),
    ],
)
def test_compare_with_wrong_settings_names_the_option(small, tmp_path, settings, message):
    with pytest.raises(HafvtError, match=message):
        compare(small.folder, tmp_path / "out", **settings)


def test_compare_in_a_folder_of_other_files_is_refused(small, tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(HafvtError, match="does not hold a comparison"):
        compare(small.folder, tmp_path, models=["popularity"], budget="small")


@pytest.mark.slow
def test_compare_with_three_domains_leaves_out_models_of_two(make_small, tmp_path, monkeypatch):
    monkeypatch.setattr(compare_module, "MODELS", dict.fromkeys(("popularity", "psjnet")))
    monkeypatch.setattr(Popularity, "notes", ("what it counts",))
    comparison = compare(make_small(sizes=(20, 15, 10)).folder, tmp_path / "out", budget="small")
    assert [result.label for result in comparison.model_results] == ["popularity"]
    assert re.search(r"psjnet is left out: .*two domains", str(comparison))
    assert "\npopularity: what it counts\n" in str(comparison)


@pytest.mark.slow
def test_ablate_switches_modalities_and_hierarchy(tmp_path, monkeypatch):
    data = write_small(tmp_path / "data")
    monkeypatch.setitem(BUDGETS, "small", ONE_EPOCH)
    comparison = ablate(data.folder, tmp_path / "out", budget="small", jobs=2)
    assert [result.label for result in comparison.model_results] == list(ABLATION_VARIANTS)
    sizes = {result.label: result.num_parameters for result in comparison.model_results}
    assert sizes["original"] < sizes["+ visual"] < sizes["+ visual, hierarchy"]
    figure = ElementTree.fromstring((tmp_path / "out" / "ablate.svg").read_text())
    texts = [element.text for element in figure.iter() if element.tag.endswith("text")]
    assert set(ABLATION_VARIANTS) <= set(texts)
    for result in comparison.model_results:
        assert f"{100 * result.mean_and_std('d0', 'MRR')[0]:.2f}" in texts


def test_ablate_without_features_names_the_missing_one(make_small, tmp_path):
    data = make_small(with_features=False)
    with pytest.raises(HafvtError, match="no features image"):
        ablate(data.folder, tmp_path / "out", budget="small")


@pytest.mark.slow
def test_paper_on_a_scenario_of_the_paper_shows_published_rows(make_small, tmp_path, monkeypatch):
    data, out = make_small(), tmp_path / "out"
    monkeypatch.setitem(BUDGETS, "small", ONE_EPOCH)
    monkeypatch.setattr(compare_module, "MODELS", dict.fromkeys(("popularity", "gru4rec")))
    table = paper("table2", data.folder, out=out, budget="small")
    assert "*gru4rec, paper*" not in str(table)
    monkeypatch.setattr("hafvt.experiments.comparison_report.find_scenario", lambda data: SCENARIOS[0])
    table = paper("table2", data.folder, out=out, budget="small")
    assert "*gru4rec, paper*" in str(table)
    assert all(f"*{value:.2f}*" in str(table) for value in TABLES["food", "kitchen"]["gru4rec"])


def test_paper_without_out_names_the_option(small):
    with pytest.raises(HafvtError, match="needs --out"):
        paper("table3", small.folder)


def make_result(label, value, user_values):
    results = ({"x": {"MRR": MetricValue(value)}},)
    return ModelResult(ComparedModel(label, label), 1e-3, {}, results, {("x", "MRR"): user_values})


def test_compare_with_best_other_tests_against_the_best_of_the_others():
    random = np.random.default_rng(0)
    users = {name: random.random(300) + shift for name, shift in (("a", 0.0), ("b", 0.3), ("c", 0.1))}
    tests = compare_with_best_other([make_result(n, float(u.mean()), u) for n, u in users.items()])
    assert tests["b", "x", "MRR"].difference == pytest.approx((users["b"] - users["c"]).mean())
    assert tests["a", "x", "MRR"].difference == pytest.approx((users["a"] - users["b"]).mean())
    assert tests["b", "x", "MRR"].wilcoxon < 0.05
    assert compare_with_best_other([make_result("a", 0.1, users["a"])]) == {}


def test_best_valid_mrr_reads_only_the_first_epochs(tmp_path):
    write_json(
        tmp_path / "model.json",
        {"format": FORMAT, "config": {}, "valid_mrrs": {"1": 0.2, "3": 0.1, "6": 0.9}},
    )
    assert best_valid_mrr(tmp_path, 3) == 0.2


def test_slug_replaces_all_but_letters_and_digits():
    assert slug("+ textual, Hierarchy/..") == "textual-hierarchy"
