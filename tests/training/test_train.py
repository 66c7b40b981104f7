"""Training: it learns, resumes bit for bit after any stop, and refuses wrong settings in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from hafvt import files
from hafvt.errors import HafvtError
from hafvt.evaluation.metrics import mean_mrr
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.folders import folder_lock
from hafvt.models import MODELS
from hafvt.training import session
from hafvt.training.checkpoint import load_checkpoint
from hafvt.training.run import FORMAT, open_run
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS
from tests.crash import crash_before_each_operation
from tests.training.conftest import SMALL_HAFVT, SMALL_SASREC

SLOW_MODELS = ("hafvt", "pinet", "psjnet", "mifn", "tricdr", "c2dsr")
MARKED_MODELS = [
    pytest.param(name, marks=pytest.mark.slow if name in SLOW_MODELS else ()) for name in SMALL_PARAMS
]


def same_weights(a: Path, b: Path) -> bool:
    first, second = (load_checkpoint(folder / "model.safetensors")[0] for folder in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def read_log(folder: Path) -> list[dict]:
    """Returns the lines of metrics.jsonl without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("model", MARKED_MODELS)
def test_train_each_model_writes_a_run_and_lowers_the_loss(training_data, tmp_path, model):
    run = train(
        model,
        training_data.folder,
        tmp_path / "run",
        params=SMALL_PARAMS[model],
        epochs=6,
        batch_size=8,
        patience=0,
        learning_rate=0.01,
    )
    assert not run.model.training
    names = "config.yaml metrics.jsonl model.json model.safetensors ranks.parquet results.json"
    for name in names.split():
        assert (run.folder / name).stat().st_size > 0, name
    assert json.loads((run.folder / "model.json").read_text())["format"] == FORMAT
    curve = read_log(run.folder)
    best = max(line["valid_mrr"] for line in curve if "valid_mrr" in line)
    assert run.manifest["best"]["valid_mrr"] == best
    valid = training_data.valid
    assert mean_mrr(rank_positions(run.model, training_data, valid).half_ties) == pytest.approx(best)
    if MODELS[model].has_weights:
        assert curve[-1]["loss"] < curve[0]["loss"]


@pytest.mark.parametrize("model", [model for model in MARKED_MODELS if MODELS[model.values[0]].has_weights])
def test_train_with_bf16_computes_the_loss_in_autocast(training_data, tmp_path, model, monkeypatch):
    """The losses change a little; no change at all would mean that bfloat16 is not used."""
    model_class = MODELS[model].model_class
    original, autocast = model_class.loss, set()

    def loss(self, batch):
        autocast.add(torch.is_autocast_enabled("cpu"))
        return original(self, batch)

    monkeypatch.setattr(model_class, "loss", loss)
    curves = {}
    for precision in ("fp32", "bf16"):
        autocast.clear()
        settings = {"params": SMALL_PARAMS[model], "epochs": 2, "precision": precision, "test": False}
        train(model, training_data.folder, tmp_path / precision, **settings)
        assert autocast == {precision == "bf16"}
        curves[precision] = [line["loss"] for line in read_log(tmp_path / precision)]
    assert curves["bf16"] != curves["fp32"]
    assert curves["bf16"] == pytest.approx(curves["fp32"], rel=0.02)


def test_train_with_the_same_seed_gives_the_same_weights(hafvt_run, training_data, tmp_path):
    for name, seed in (("same", 0), ("other", 1)):
        settings = {"params": SMALL_HAFVT, "epochs": 2, "batch_size": 8, "test": False}
        train("hafvt", training_data, tmp_path / name, seed=seed, **settings)
    assert same_weights(hafvt_run.folder, tmp_path / "same")
    assert not same_weights(hafvt_run.folder, tmp_path / "other")


def test_train_with_the_largest_seed_ends_well(training_data, tmp_path):
    settings = {"params": SMALL_SASREC, "epochs": 1, "test": False}
    run = train("sasrec", training_data, tmp_path / "run", seed=2**32 - 1, **settings)
    assert run.manifest["training"]["seed"] == 2**32 - 1


SCRIPT = """
import sys
from hafvt.training.train import train
train("hafvt", sys.argv[1], sys.argv[2], params={"id_width": 8}, epochs=12, batch_size=4,
      validate_every=3, patience=0, resume=True, checkpoint_every=0.05, test=False)
"""
TIMEOUT = 280  # seconds, where it takes 20: the machine may be busy


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_train_stopped_three_times_ends_with_the_same_weights(training_data, tmp_path, how):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(out: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", SCRIPT, str(training_data.folder), str(out)]
        return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)

    assert start(tmp_path / "uninterrupted").wait(TIMEOUT) == 0
    stopped, stops = tmp_path / "stopped", 0
    for epochs in (1, 4, 7):
        process = start(stopped)
        while process.poll() is None and not has_trained(stopped, epochs):
            time.sleep(0.005)
        process.send_signal(how)
        stops += process.wait(TIMEOUT) != 0
    assert stops >= 2
    assert start(stopped).wait(TIMEOUT) == 0
    assert same_weights(tmp_path / "uninterrupted", stopped)
    assert read_log(stopped) == read_log(tmp_path / "uninterrupted")


def has_trained(folder: Path, epochs: int) -> bool:
    """Returns whether a training has a checkpoint and so many finished epochs."""
    log = folder / "metrics.jsonl"
    has_checkpoint = (folder / "checkpoint" / "last.safetensors").exists()
    return has_checkpoint and log.exists() and len(log.read_text().splitlines()) >= epochs


def test_train_resumed_with_more_epochs_equals_a_longer_training(sasrec_run, training_data, tmp_path):
    settings = {"params": SMALL_SASREC, "batch_size": 8, "patience": 0, "test": False}
    train("sasrec", training_data, tmp_path / "run", epochs=4, **settings)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"epoch": 1, "lo')  # the checkpoint has its lines, too
    train("sasrec", training_data, tmp_path / "run", epochs=6, resume=True, **settings)
    assert same_weights(sasrec_run.folder, tmp_path / "run")
    assert read_log(sasrec_run.folder) == read_log(tmp_path / "run")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["epochs"] == 6


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_train_with_ema_saves_the_averaged_weights(training_data, tmp_path, ema_decay):
    settings = {"params": SMALL_SASREC, "epochs": 2, "ema_decay": ema_decay, "test": False}
    train("sasrec", training_data.folder, tmp_path / "run", **settings)
    last, _ = load_checkpoint(tmp_path / "run" / "checkpoint" / "last.safetensors")
    saved, _ = load_checkpoint(tmp_path / "run" / "model.safetensors")
    name = "items.weight"
    assert torch.equal(saved[f"model.{name}"], last[f"average.{name}"])
    assert torch.equal(saved[f"model.{name}"], last[f"model.{name}"]) == (ema_decay == 0)


def test_train_with_other_test_targets_gives_the_same_weights(hafvt_run, training_data, tmp_path):
    items = np.array(training_data.items)
    items[training_data.test] = (items[training_data.test] + 11) % training_data.domains[-1].stop
    changed = replace(training_data, items=items)
    train("hafvt", changed, tmp_path / "run", params=SMALL_HAFVT, epochs=2, batch_size=8)
    assert same_weights(hafvt_run.folder, tmp_path / "run")
    assert read_log(hafvt_run.folder) == read_log(tmp_path / "run")


@pytest.mark.parametrize(
    ("model", "preset", "rate"),
    [
        ("hafvt", "default", 0.003),
        ("hafvt", "unmixed", 0.003),
        ("hafvt-paper", "default", 0.001),
        ("sasrec", "default", 0.001),
    ],
)
def test_train_without_a_learning_rate_uses_the_models_default(training_data, tmp_path, model, preset, rate):
    settings = {"preset": preset, "params": {"max_length": 4}, "epochs": 1, "test": False}
    train(model, training_data, tmp_path / "run", **settings)
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["learning_rate"] == rate


def test_train_with_patience_stops_early_and_keeps_the_best(training_data, tmp_path):
    settings = {"learning_rate": 0.02, "validate_every": 1, "patience": 2, "test": False}
    run = train(
        "sasrec", training_data, tmp_path / "run", params=SMALL_SASREC, epochs=200, batch_size=8, **settings
    )
    curve = read_log(run.folder)
    assert len(curve) < 200
    best = max(range(len(curve)), key=lambda n: curve[n]["valid_mrr"])
    assert run.manifest["best"]["epoch"] == best + 1 == len(curve) - 2
    assert f"\nstopped early, after {len(curve)} of at most 200 epochs: 2 validations in a row " in str(run)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "hafvd"}, "choose one of hafvt"),
        ({"preset": "papr"}, "default, unmixed"),
        ({"params": {"temprature": 1}}, "no parameter 'temprature'.*temperature"),
        ({"params": {"id_width": "wide"}}, "id_width is 'wide': choose a whole number"),
        ({"params": {"modalities": ["id", "smell"]}}, "has no features smell.*--precomputed smell=FILE"),
        ({"epochs": 0}, "epochs is 0: choose a whole number from 1"),
        ({"batch_size": 0}, "batch-size is 0: choose a whole number from 1 to 1000000"),
        ({"batch_size": 2.5}, "batch-size is 2.5: choose a whole number"),
        ({"learning_rate": float("nan")}, "learning-rate is nan: choose a number above 0"),
        ({"learning_rate": 0.0}, "learning-rate is 0.0: choose a number above 0"),
        ({"weight_decay": -1.0}, "weight-decay is -1.0: choose a number from 0"),
        ({"ema_decay": 1.0}, "ema-decay is 1.0: choose a number from 0 and below 1"),
        ({"validate_every": 0}, "validate-every is 0: choose a whole number from 1"),
        ({"patience": -1}, "patience is -1: choose a whole number from 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808: choose a whole number from 0"),
        ({"checkpoint_every": 0.0}, "checkpoint-every is 0.0: choose a number above 0"),
        ({"precision": "fp8"}, "precision is 'fp8': choose auto or bf16 or fp32"),
        ({"protocol": "strict"}, "no protocol 'strict': choose full, sampled-unseen, c2dsr"),
        ({"device": "tpu"}, "--device tpu: choose auto, cpu, cuda, cuda:N or mps"),
        ({"device": "cuda:99"}, "--device cuda:99: torch finds"),
        ({"data": "nowhere"}, "does not exist"),
    ],
)
def test_train_with_a_wrong_setting_is_refused_before_anything_is_written(
    training_data, tmp_path, changes, message
):
    settings = {"model": "hafvt", "data": training_data, "out": tmp_path / "run", "epochs": 1, **changes}
    with pytest.raises(HafvtError, match=message) as refusal:
        train(**settings)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_train_without_training_histories_leaves_no_run(training_data, tmp_path):
    short = replace(training_data, train_lengths=np.ones_like(training_data.train_lengths))
    with pytest.raises(HafvtError, match="no user has two training interactions"):
        train("sasrec", short, tmp_path / "run", params=SMALL_SASREC)
    assert not (tmp_path / "run").exists()


def test_train_into_a_finished_run_is_refused(sasrec_run, training_data):
    with pytest.raises(HafvtError, match="holds a run already"):
        train("sasrec", training_data, sasrec_run.folder, params=SMALL_SASREC, epochs=6, batch_size=8)


def test_train_resumed_with_fewer_epochs_than_trained_is_refused(sasrec_run, training_data):
    before = (sasrec_run.folder / "config.yaml").read_text()
    num_epochs = len(read_log(sasrec_run.folder))
    settings = {"params": SMALL_SASREC, "batch_size": 8, "resume": True}
    with pytest.raises(HafvtError, match=f"has trained {num_epochs} epochs already: resume with --epochs"):
        train("sasrec", training_data, sasrec_run.folder, epochs=num_epochs - 1, **settings)
    assert (sasrec_run.folder / "config.yaml").read_text() == before


def test_train_resumed_with_another_seed_is_refused(sasrec_run, training_data):
    settings = {"params": SMALL_SASREC, "epochs": 6, "batch_size": 8, "resume": True}
    with pytest.raises(HafvtError, match=r"\(seed was 0\): resume with"):
        train("sasrec", training_data, sasrec_run.folder, seed=1, **settings)


def test_train_resumed_with_other_hyperparameters_names_those_that_differ(sasrec_run, training_data):
    settings = {"params": {"width": 16, "dropout": 0.1}, "epochs": 6, "batch_size": 8, "resume": True}
    with pytest.raises(HafvtError, match=r"\(params.width was 8, params.dropout was 0\.\d+\): resume with"):
        train("sasrec", training_data, sasrec_run.folder, **settings)


def test_train_resumed_on_another_dataset_is_refused(sasrec_run, make_small):
    settings = {"params": SMALL_SASREC, "epochs": 6, "batch_size": 8, "resume": True}
    with pytest.raises(HafvtError, match=r"\(the dataset changed\): resume with"):
        train("sasrec", make_small(seed=5), sasrec_run.folder, **settings)


@pytest.mark.slow
def test_train_killed_before_any_file_operation_resumes_to_the_same_weights(training_data, tmp_path):
    settings = f"params={SMALL_SASREC}, epochs=2, batch_size=20, validate_every=1, checkpoint_every=0.01"
    action = f"train('sasrec', {str(training_data.folder)!r}, root / 'run', {settings}, resume=True)"
    imports = "from hafvt.training.train import train\nimport hafvt.training.session, torch"
    imports += "\ntorch.set_num_threads(2)"  # as in this process, for equal sums
    exec(action, {"train": train, "root": tmp_path / "whole"})

    def reset() -> None:
        shutil.rmtree(tmp_path / "run", ignore_errors=True)

    def check(step: int) -> None:
        exec(action, {"train": train, "root": tmp_path})
        assert same_weights(tmp_path / "whole" / "run", tmp_path / "run"), step
        assert read_log(tmp_path / "whole" / "run") == read_log(tmp_path / "run")
        names = [sorted(p.name for p in (tmp_path / f).rglob("*")) for f in ("whole/run", "run")]
        assert names[0] == names[1]

    kills = crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check, stride=3)
    assert kills > 20


def test_train_into_a_folder_with_other_files_is_refused(training_data, tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(HafvtError, match="not empty"):
        train("sasrec", training_data, tmp_path, params=SMALL_SASREC, epochs=1)


def test_train_in_a_locked_folder_is_refused(training_data, tmp_path):
    settings = {"params": SMALL_SASREC, "batch_size": 8, "resume": True, "test": False}
    with (
        folder_lock(tmp_path / "run"),
        pytest.raises(HafvtError, match="in use by another process: wait"),
    ):
        train("sasrec", training_data, tmp_path / "run", epochs=1, **settings)
    train("sasrec", training_data, tmp_path / "run", epochs=1, **settings)
    assert len(read_log(tmp_path / "run")) == 1


def test_train_without_extras_ends_well(training_data, tmp_path):
    """A fresh interpreter, in which no package of an extra can be imported, trains and opens a run."""
    script = (
        "import sys\n"
        "for name in ('PIL', 'sklearn', 'scipy', 'skimage', 'fastapi', 'optuna', 'tensorboard'):\n"
        "    sys.modules[name] = None\n"
        "import hafvt\n"
        "hafvt.train('popularity', sys.argv[1], sys.argv[2], device='cpu')\n"
    )
    folder = tmp_path / "run"
    subprocess.run([sys.executable, "-c", script, str(training_data.folder), str(folder)], check=True)
    assert open_run(folder).manifest["best"]["epochs"] == 1


def test_train_longer_killed_before_the_model_file_is_replaced_leaves_a_run(
    sasrec_run, training_data, tmp_path, monkeypatch
):
    shutil.copytree(sasrec_run.folder, tmp_path / "run")
    options = {"params": SMALL_SASREC, "epochs": 16, "batch_size": 8, "patience": 0, "test": False}
    written = []

    def write_json(path: Path, *arguments: object, **settings: object) -> None:
        written.append(path.name)
        if written == ["model.json", "model.json"]:
            raise KeyboardInterrupt
        files.write_json(path, *arguments, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(session, "write_json", write_json)
        with pytest.raises(KeyboardInterrupt):
            train("sasrec", training_data, tmp_path / "run", resume=True, **options)
    assert not same_weights(sasrec_run.folder, tmp_path / "run")
    assert open_run(tmp_path / "run").manifest["best"] == sasrec_run.manifest["best"]
    run = train("sasrec", training_data, tmp_path / "run", resume=True, **options)
    assert (run.manifest["best"]["epochs"], len(run.manifest["sha256"]["model.safetensors"])) == (16, 64)


@contextmanager
def interrupted_after(num_steps: int) -> Iterator[Callable[[], bool]]:
    """Stands in for `deferred_interrupts`: Ctrl-C arrives in a step."""
    calls = iter([False] * num_steps)
    yield lambda: next(calls, True)


@pytest.mark.parametrize("name", [pytest.param("hafvt", marks=pytest.mark.slow), "sasrec"])
def test_train_with_sampled_softmaxes_stopped_twice_ends_with_the_same_weights(
    training_data, tmp_path, name, monkeypatch
):
    settings = {
        "params": SMALL_PARAMS[name] | {"num_negatives": 6},
        "epochs": 3,
        "batch_size": 8,
        "test": False,
    }
    train(name, training_data, tmp_path / "uninterrupted", **settings)
    for num_steps in (4, 9):
        with monkeypatch.context() as patch:
            patch.setattr("hafvt.training.trainer.deferred_interrupts", partial(interrupted_after, num_steps))
            with pytest.raises(KeyboardInterrupt):
                train(name, training_data, tmp_path / "stopped", resume=True, **settings)
    train(name, training_data, tmp_path / "stopped", resume=True, **settings)
    assert same_weights(tmp_path / "uninterrupted", tmp_path / "stopped")
