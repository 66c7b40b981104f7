"""Training: it learns, it can be killed at any moment, it says what is wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.files import lock_folder
from hafvt.models import MODELS
from hafvt.training.checkpoint import load, save
from hafvt.training.run import open_run
from hafvt.training.trainer import train

PARAMS = {
    "hafvt": {"id_width": 8, "content_width": 6},
    "gru4rec": {"width": 8},
    "sasrec": {"width": 8},
    "srgnn": {"width": 8},
    "pinet": {"width": 8},
    "psjnet": {"width": 8},
    "mifn": {"width": 8},
    "tricdr": {"width": 8, "pretrain_steps": 2},
    "c2dsr": {"width": 8},
    "popularity": {},
}


def same_weights(a: Path, b: Path) -> bool:
    first, second = load(a / "model.safetensors")[0], load(b / "model.safetensors")[0]
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def lines(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in found]


@pytest.mark.parametrize("model", PARAMS)
def test_a_run_is_complete_and_learns(small, tmp_path, model):
    run = train(
        model,
        small.folder,
        tmp_path / "run",
        params=PARAMS[model],
        epochs=30,
        batch_size=8,
        patience=0,
        learning_rate=0.01,
    )
    assert not run.model.training
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "model.json",
        "model.safetensors",
        "ranks.parquet",
        "report.html",
    ):
        assert (run.folder / name).stat().st_size > 0, name
    about = json.loads((run.folder / "model.json").read_text())
    best = max(line["valid_mrr"] for line in lines(run.folder) if "valid_mrr" in line)
    assert about["best"]["valid_mrr"] == best
    opened = open_run(run.folder)
    assert mean_mrr(rank_positions(opened.model, small, small.valid).half_ties) == pytest.approx(best)
    if model != "popularity":
        curve = lines(run.folder)
        assert curve[-1]["loss"] < curve[0]["loss"]


@pytest.mark.parametrize("model", [name for name in PARAMS if name != "popularity"])
def test_bfloat16_is_what_the_loss_is_computed_in(small, tmp_path, model, monkeypatch):
    """And it changes the losses a little: not at all would mean that it is not used."""
    seen = set()
    kind = MODELS[model].model_class

    def loss(self, batch):
        seen.add(torch.is_autocast_enabled("cpu"))
        return original(self, batch)

    original = kind.loss
    monkeypatch.setattr(kind, "loss", loss)
    curves = {}
    for precision in ("fp32", "bf16"):
        seen.clear()
        train(
            model,
            small.folder,
            tmp_path / precision,
            params=PARAMS[model],
            epochs=3,
            precision=precision,
            test=False,
        )
        assert seen == {precision == "bf16"}
        curves[precision] = [line["loss"] for line in lines(tmp_path / precision)]
    assert curves["bf16"] != curves["fp32"]
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.02)


def test_the_same_seed_gives_the_same_bits_and_another_does_not(small, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train("hafvt", small, tmp_path / name, params=PARAMS["hafvt"], epochs=2, batch_size=8, seed=seed)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert not same_weights(tmp_path / "a", tmp_path / "c")


SCRIPT = """
import sys
from hafvt.training.trainer import train
train("hafvt", sys.argv[1], sys.argv[2], params={"id_width": 8, "content_width": 6}, epochs=18, batch_size=4,
      validate_every=3, patience=0, resume=True, checkpoint_every=0.05)
"""
PATIENCE = 600  # seconds, where it takes 20: a machine may be busy with much else


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_stopped_run_ends_with_the_same_bits(small, tmp_path, how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCRIPT, str(small.folder), str(out)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "whole").wait(PATIENCE) == 0
    stopped, stops = tmp_path / "stopped", 0
    for wanted in (1, 5, 10):  # three stops, the later ones deeper into the run
        process = start(stopped)
        while process.poll() is None and not deep_enough(stopped, wanted):
            time.sleep(0.005)
        process.send_signal(how)
        stops += process.wait(PATIENCE) != 0
    assert stops >= 2
    assert start(stopped).wait(PATIENCE) == 0
    assert same_weights(tmp_path / "whole", stopped)
    assert lines(stopped) == lines(tmp_path / "whole")


def deep_enough(folder: Path, epochs: int) -> bool:
    path = folder / "metrics.jsonl"
    held = (folder / "checkpoint" / "last.safetensors").exists()
    return held and path.exists() and len(path.read_text().splitlines()) >= epochs


def test_a_finished_run_can_be_trained_longer(small, tmp_path):
    settings = {"params": PARAMS["sasrec"], "batch_size": 8, "patience": 0}
    train("sasrec", small, tmp_path / "long", epochs=6, **settings)
    train("sasrec", small, tmp_path / "grown", epochs=4, **settings)
    train("sasrec", small, tmp_path / "grown", epochs=6, resume=True, **settings)
    assert same_weights(tmp_path / "long", tmp_path / "grown")


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_the_averaged_weights_are_kept(small, tmp_path, ema_decay):
    train("sasrec", small.folder, tmp_path / "run", params={"width": 8}, epochs=2, ema_decay=ema_decay)
    held, _ = load(tmp_path / "run" / "checkpoint" / "last.safetensors")
    kept, _ = load(tmp_path / "run" / "model.safetensors")
    name = "items.weight"
    assert torch.equal(kept[f"model.{name}"], held[f"average.{name}"])
    assert torch.equal(kept[f"model.{name}"], held[f"model.{name}"]) == (ema_decay == 0)


def test_test_targets_are_not_looked_at_in_training(small, tmp_path):
    """Other test targets, same weights and same curve."""
    train("hafvt", small, tmp_path / "a", params=PARAMS["hafvt"], epochs=3, batch_size=8)
    items = np.array(small.items)
    items[small.test] = (items[small.test] + 11) % small.domains[-1].stop
    changed = replace(small, items=items)
    train("hafvt", changed, tmp_path / "b", params=PARAMS["hafvt"], epochs=3, batch_size=8)
    assert same_weights(tmp_path / "a", tmp_path / "b")
    assert lines(tmp_path / "a") == lines(tmp_path / "b")


@pytest.mark.parametrize(
    ("model", "preset", "rate"),
    [
        ("hafvt", "default", 0.003),
        ("hafvt", "unmixed", 0.003),
        ("hafvt", "paper", 0.001),
        ("sasrec", "default", 0.001),
    ],
)
def test_each_model_has_a_usual_rate(small, tmp_path, model, preset, rate):
    settings = {"preset": preset, "params": PARAMS[model], "epochs": 1, "test": False}
    train(model, small, tmp_path / "usual", **settings)
    train(model, small, tmp_path / "same", learning_rate=rate, **settings)
    assert same_weights(tmp_path / "usual", tmp_path / "same")
    held = yaml.safe_load((tmp_path / "usual" / "config.yaml").read_text())
    assert held["learning_rate"] == rate


def test_early_stop_keeps_the_best(small, tmp_path):
    run = train(
        "sasrec",
        small,
        tmp_path / "run",
        params=PARAMS["sasrec"],
        epochs=200,
        batch_size=8,
        learning_rate=0.02,
        validate_every=1,
        patience=2,
    )
    curve = lines(run.folder)
    assert len(curve) < 200
    best = max(range(len(curve)), key=lambda n: curve[n]["valid_mrr"])
    assert run.about["best"]["epoch"] == best + 1 == len(curve) - 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model": "hafvd"}, "choose one of hafvt"),
        ({"preset": "papr"}, "default, unmixed, paper"),
        ({"params": {"temprature": 1}}, "no parameter 'temprature'.*temperature"),
        ({"params": {"id_width": "wide"}}, "id_width is 'wide': choose a whole number from 1 to 8192"),
        ({"params": {"modalities": ["id", "smell"]}}, "has no features smell.*--precomputed smell=FILE"),
        ({"epochs": 0}, "--epochs must be above 0"),
        ({"learning_rate": float("nan")}, "--learning-rate must be above 0"),
        ({"device": "tpu"}, "cpu, cuda or auto"),
        ({"data": "nowhere"}, "does not exist"),
    ],
)
def test_wrong_settings_are_named(small, tmp_path, changes, said):
    settings = {"model": "hafvt", "data": small, "out": tmp_path / "run", "epochs": 1, **changes}
    with pytest.raises(HafvtError, match=said):
        train(**settings)
    assert not (tmp_path / "run").exists()


def test_a_dataset_without_training_histories_leaves_no_run(small, tmp_path):
    short = replace(small, train_lengths=np.ones_like(small.train_lengths))
    with pytest.raises(HafvtError, match="no user has two training interactions"):
        train("sasrec", short, tmp_path / "run", params=PARAMS["sasrec"])
    assert not (tmp_path / "run").exists()


def test_a_run_is_never_overwritten(small, tmp_path):
    settings = {"params": PARAMS["sasrec"], "epochs": 1}
    train("sasrec", small, tmp_path / "run", **settings)
    with pytest.raises(HafvtError, match="holds a run already"):
        train("sasrec", small, tmp_path / "run", **settings)
    with pytest.raises(HafvtError, match="seed was 0"):
        train("sasrec", small, tmp_path / "run", seed=1, resume=True, **settings)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("dear")
    with pytest.raises(HafvtError, match="not empty"):
        train("sasrec", small, tmp_path / "mine", **settings)


def test_two_never_train_in_one_folder(small, tmp_path):
    settings = {"params": PARAMS["sasrec"], "batch_size": 8, "resume": True}
    train("sasrec", small, tmp_path / "run", epochs=1, **settings)
    with (
        lock_folder(tmp_path / "run"),
        pytest.raises(HafvtError, match="in use by another process: wait"),
    ):
        train("sasrec", small, tmp_path / "run", epochs=2, **settings)
    assert len(lines(tmp_path / "run")) == 1
    train("sasrec", small, tmp_path / "run", epochs=2, **settings)
    assert len(lines(tmp_path / "run")) == 2


def test_damage_is_named(small, make_small, tmp_path):
    run = train("sasrec", small, tmp_path / "run", params=PARAMS["sasrec"], epochs=1)
    with pytest.raises(HafvtError, match="not the dataset"):
        open_run(run.folder, make_small(seed=5))
    (run.folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(HafvtError, match="damaged"):
        open_run(run.folder)
    with pytest.raises(HafvtError, match="no finished run"):
        open_run(tmp_path)


def test_a_run_is_opened_without_seeking_what_its_items_are_linked_to(small, tmp_path, monkeypatch):
    run = train("hafvt", small, tmp_path / "run", params=PARAMS["hafvt"], epochs=1, test=False)
    for found_anew in ("nearest_neighbors", "cluster_items"):
        monkeypatch.setattr(f"hafvt.features.similarity.{found_anew}", None)
    opened = open_run(run.folder)
    before, after = (rank_positions(one.model, small, small.valid).half_ties.ranks for one in (run, opened))
    np.testing.assert_array_equal(before, after)
    tensors, state = load(run.folder / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if "rows_near_" not in name}
    save(run.folder / "model.safetensors", kept, state)
    with pytest.raises(HafvtError, match=r"model.safetensors: .* of an earlier version: train anew"):
        open_run(run.folder)


def test_a_run_of_a_hyperparameter_that_is_no_more_is_refused_in_one_line(small, tmp_path):
    folder = train("sasrec", small, tmp_path / "run", params={"width": 8}, epochs=1, test=False).folder
    about = json.loads((folder / "model.json").read_text())
    about["config"]["gone"] = 1
    (folder / "model.json").write_text(json.dumps(about))
    with pytest.raises(HafvtError, match="with gone, which this version does not know: train it anew"):
        open_run(folder)
