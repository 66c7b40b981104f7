"""`--metric` selects what validation and a search maximize."""

from __future__ import annotations

import json
import sys

import pytest

from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import get_metric, mean_metric
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.experiments import training_pool
from hafvt.experiments.compare import compare
from hafvt.experiments.tune import tune
from hafvt.files import write_json
from hafvt.training.run import open_run
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS
from tests.experiments.test_tune import FAKE_TRAINING

OPTIONS = {"params": SMALL_PARAMS["sasrec"], "batch_size": 8, "learning_rate": 0.02, "validate_every": 1}


def read_log(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_train_keeps_the_epoch_with_the_best_metric_and_stops_early_by_it(small, tmp_path):
    run = train("sasrec", small, tmp_path / "run", metric="HR@3", epochs=8, patience=2, test=False, **OPTIONS)
    log = read_log(run.folder)
    best = max(log, key=lambda line: line["valid_hr@3"])
    assert run.manifest["best"]["epoch"] == best["epoch"]
    assert len(log) == min(best["epoch"] + 2, 8)
    assert run.manifest["best"]["valid_hr@3"] == best["valid_hr@3"]
    ranks = rank_positions(run.model, small, small.valid).half_ties
    assert mean_metric(ranks, get_metric("HR@3")) == pytest.approx(best["valid_hr@3"])
    assert all("valid_mrr" in line for line in log)
    assert f"validation HR@3 {best['valid_hr@3']:.2%}" in str(open_run(run.folder))
    with pytest.raises(HafvtError, match=r"holds a run of other settings \(metric was 'HR@3'\)"):
        train("sasrec", small, run.folder, epochs=8, patience=2, test=False, resume=True, **OPTIONS)


def test_train_and_tune_with_a_wrong_metric_list_the_others(small, tmp_path):
    for call in (train, tune):
        with pytest.raises(HafvtError, match="no metric 'AUC': choose MRR, or NDCG, HR, recall"):
            call("sasrec", small, tmp_path / "out", metric="AUC")
    assert not (tmp_path / "out").exists()


def test_tune_maximizes_the_metric(small, tmp_path, monkeypatch):
    script = tmp_path / "fake.py"
    source = FAKE_TRAINING.format(pause=0.0, max_rate=1.0)
    script.write_text(source.replace("epoch=epoch,", 'epoch=epoch, **{"valid_hr@5": 0.5 - mrr / 10},'))
    monkeypatch.setattr(training_pool, "HAFVT", [sys.executable, "-S", str(script)])
    monkeypatch.setattr("hafvt.experiments.tune.POLL_S", 0.02)
    out = tmp_path / "out"
    result = tune("sasrec", small, out, metric="HR@5", trials=4, epochs=2, jobs=1)
    for trial in result.trials:
        values = [line["valid_hr@5"] for line in read_log(out / "trials" / f"{trial.number:04d}")]
        assert trial.valid_value == max(values)
    assert result.best.valid_value == max(trial.valid_value for trial in result.trials)
    assert "Best validation HR@5" in str(result)
    assert "metric: HR@5" in (out / "best.yaml").read_text()
    assert "valid_hr@5" in (out / "trials.csv").read_text()
    with pytest.raises(HafvtError, match="holds a search with another metric"):
        tune("sasrec", small, out, trials=4, epochs=2, jobs=1)
    with pytest.raises(HafvtError, match="is a search by HR@5, but compare selects epochs by MRR"):
        compare(small, tmp_path / "compare", models=["sasrec"], tuned={"sasrec": str(out)})


def test_search_of_an_earlier_version_has_the_metric_mrr(tmp_path):
    write_json(tmp_path / "settings.json", {"seed": 0}, checksum=True)
    settings, defaults = {"seed": 0, "metric": "MRR"}, {"metric": "MRR"}
    training_pool.save_or_check_settings(tmp_path, settings, "a search", defaults)
    with pytest.raises(HafvtError, match="holds a search with another metric"):
        training_pool.save_or_check_settings(tmp_path, settings | {"metric": "HR@5"}, "a search", defaults)
