"""Several processes train and rank as one does, end together, and continue with another number of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.experiments.evaluate import evaluate
from hafvt.folders import folder_lock
from hafvt.training.launch import launch_processes
from hafvt.training.run import open_run
from hafvt.training.train import train
from tests.training.conftest import SMALL_SASREC
from tests.training.distributed_worker import FEW_STEPS, OTHER_STEPS, OTHERS, PARITY, STEPS

pytestmark = pytest.mark.distributed

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
ROOT = Path(__file__).parents[2]
TIMEOUT = 240  # seconds, where it takes 20: the machine may be busy


def environment() -> dict[str, str]:
    """Returns the environment of a process of one thread, which imports this package and these tests."""
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


def start(*arguments: object, processes: int = 1) -> subprocess.Popen[str]:
    """Starts a module with its arguments, under torchrun for several processes."""
    program = [sys.executable] if processes == 1 else [*TORCHRUN, f"--nproc-per-node={processes}"]
    command = [*program, "-m", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def run(*arguments: object, processes: int = 1) -> str:
    """Returns what a module prints."""
    process = start(*arguments, processes=processes)
    output, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def parity(training_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the losses and gradients of 1, 2 and 3 processes."""
    out = tmp_path_factory.mktemp("parity")
    worker = "tests.training.distributed_worker"
    for processes in (1, 2, 3):
        run(worker, training_data.folder, out, processes=processes)
    return out


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("case", PARITY)
def test_train_step_of_several_processes_equals_that_of_one(parity, case, processes):
    cases = {1: case.removesuffix("-sharded"), processes: case}
    expected, actual = (load_file(parity / f"{n}-{name}.safetensors") for n, name in cases.items())
    assert expected.keys() == actual.keys()
    assert any(name.endswith(("items.weight", "ids.weight")) for name in expected)
    total = torch.stack([grad.norm() for grad in expected.values()]).norm()
    for name, grad in expected.items():
        assert (actual[name] - grad).norm() <= 1e-5 * max(grad.norm(), 1e-2 * total), name
    losses = [json.loads((parity / f"{n}.json").read_text())[name] for n, name in cases.items()]
    assert len(losses[1]) == (OTHER_STEPS if case in FEW_STEPS else STEPS)
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_train_step_of_all_other_models_runs_in_several_processes(parity):
    for processes in (2, 3):
        losses = json.loads((parity / f"{processes}.json").read_text())
        assert all(0 < loss < 20 for model in OTHERS[:-1] for loss in losses[model])


def train_options(data: Dataset, out: Path, epochs: int = 3) -> list[object]:
    settings = f"--epochs={epochs} --batch-size=7 --validate-every=1 --precision=fp32 --device=cpu --resume"
    return ["hafvt", "train", "sasrec", data.folder, "--out", out, "--params.width=8", *settings.split()]


def test_train_by_torchrun_writes_the_same_ranks_once(training_data, tmp_path):
    """With dropout in one process or several, only the loss differs; then all rank the same weights."""
    outputs = {
        n: run(*train_options(training_data, tmp_path / str(n)), "--params.dropout=0", processes=n)
        for n in (1, 2)
    }
    assert outputs[2].count("best epoch 3 of 3") == 1
    assert len(outputs[2].splitlines()) == len(outputs[1].splitlines())
    about = [json.loads((tmp_path / str(n) / "model.json").read_text()) for n in (1, 2)]
    assert [content["processes"] for content in about] == [1, 2]
    names = [sorted(path.name for path in (tmp_path / str(n)).rglob("*")) for n in (1, 2)]
    assert names[0] == names[1]
    ranks = (tmp_path / "1" / "ranks.parquet").read_bytes()
    for processes in (2, 3):
        run("hafvt", "evaluate", tmp_path / "1", processes=processes)
        assert (tmp_path / "1" / "ranks.parquet").read_bytes() == ranks


@pytest.mark.parametrize("model", ["sasrec", "hafvt"])
def test_train_with_a_sharded_catalog_equals_whole_tables_and_resumes_with_another_number(
    model, training_data, tmp_path
):
    params = {"sasrec": {"width": 8}, "hafvt": {"id_width": 8}}[model] | {"dropout": 0}
    options = ["hafvt", "train", model, training_data.folder, "--out", tmp_path / "run", "--resume"]
    options += [f"--params.{name}={value}" for name, value in params.items()]
    options += ["--batch-size=7", "--validate-every=1", "--precision=fp32", "--device=cpu"]
    run(*options, "--epochs=2", "--shard-catalog", processes=2)
    ranks = (tmp_path / "run" / "ranks.parquet").read_bytes()
    evaluate(tmp_path / "run")
    assert (tmp_path / "run" / "ranks.parquet").read_bytes() == ranks
    if model == "hafvt":
        run(*options, "--epochs=3", "--shard-catalog", "--no-test", processes=3)
    settings = {"params": params, "batch_size": 7, "validate_every": 1, "precision": "fp32", "test": False}
    settings |= {"device": "cpu", "resume": True, "epochs": 4}
    runs = [train(model, training_data, tmp_path / name, **settings) for name in ("run", "whole")]
    losses, expected = (
        [json.loads(line)["loss"] for line in (one.folder / "metrics.jsonl").read_text().splitlines()]
        for one in runs
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    assert len(losses) == 4
    assert runs[0].manifest["parameters"] == runs[1].manifest["parameters"]


def test_train_with_devices_returns_the_run(training_data, tmp_path, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    handler = signal.getsignal(signal.SIGINT)
    result = train(
        "sasrec", training_data, tmp_path / "run", params=SMALL_SASREC, epochs=1, batch_size=8, devices=2
    )
    assert result.manifest["processes"] == 2
    assert signal.getsignal(signal.SIGINT) == handler
    with pytest.raises(HafvtError, match="holds a run already: continue it with --resume"):
        train("sasrec", training_data, tmp_path / "run", params=SMALL_SASREC, epochs=1, devices=2)


def test_evaluate_with_devices_returns_what_one_process_returns(sasrec_run, monkeypatch):
    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    one, two = (evaluate(sasrec_run.folder, protocol="c2dsr", devices=n) for n in (1, 2))
    assert str(two) == str(one)
    assert two.half_tie_results == one.half_tie_results != {}
    for name in ("positions", "users", "domains", "ranks", "candidates", "is_repeat"):
        assert getattr(two.ranks, name).tolist() == getattr(one.ranks, name).tolist()
    with pytest.raises(HafvtError, match="leave it out with torchrun, and with --cold"):
        evaluate(sasrec_run.folder, cold=True, devices=2)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    """Waits until a process has written a file that is not empty."""
    while not (path.exists() and path.stat().st_size) and process.poll() is None:
        time.sleep(0.05)
    assert path.exists(), process.communicate()


def workers(process: subprocess.Popen[str]) -> list[int]:
    """Returns the processes that a launcher has started."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_train_after_a_killed_process_ends_in_one_line_and_resumes_with_another_number(
    training_data, tmp_path
):
    options = train_options(training_data, tmp_path / "run", epochs=4000)
    process = start(*options, "--devices=2", "--checkpoint-every=0.5")
    wait_for(tmp_path / "run" / "checkpoint" / "last.safetensors", process)
    os.kill(workers(process)[-1], signal.SIGKILL)
    killed_at = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - killed_at < 60
    assert process.returncode == 1
    lines = [line for line in errors.splitlines() if "histories/s" not in line]
    assert len(lines) == 1
    assert "hafvt train: process" in lines[0]
    assert "was killed (SIGKILL" in lines[0]
    assert "--resume" in lines[0]
    epochs = len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) + 1
    run(*train_options(training_data, tmp_path / "run", epochs=epochs), processes=3)
    finished = open_run(tmp_path / "run")
    assert finished.manifest["processes"] == 3
    assert finished.manifest["best"]["epochs"] == epochs


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("target", ["launcher", "process 1"])
def test_train_with_devices_terminated_writes_a_checkpoint_and_one_line(training_data, tmp_path, target):
    process = start(*train_options(training_data, tmp_path / "run", epochs=4000), "--devices=2")
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    os.kill(process.pid if target == "launcher" else workers(process)[1], signal.SIGTERM)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if not line.startswith("train sasrec")]
    assert lines == ["stopped; start the command again to continue where it was (train: with --resume)"]
    assert (tmp_path / "run" / "checkpoint" / "last.safetensors").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_train_with_devices_whose_launcher_is_killed_ends_without_a_trace(training_data, tmp_path):
    process = start(*train_options(training_data, tmp_path / "run", epochs=4000), "--devices=2")
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    process.kill()
    _, errors = process.communicate(timeout=TIMEOUT)  # until the processes have ended, too
    assert all(line.startswith("train sasrec") for line in errors.splitlines()), errors
    with folder_lock(tmp_path / "run"):
        pass


def test_explain_of_a_process_killed_after_the_training_names_evaluate(tmp_path, monkeypatch):
    def launch(*arguments):
        (tmp_path / "model.json").write_text("{}")
        raise ChildFailedError("", {1: ProcessFailure(1, 1, -9, "")})

    monkeypatch.setattr("hafvt.training.launch.elastic_launch", lambda config, program: launch)
    with pytest.raises(
        HafvtError, match=r"^process 1 was killed .*: the training had finished; hafvt evalua"
    ):
        launch_processes([], 2, tmp_path)
    with pytest.raises(HafvtError, match="start the command again with --resume"):
        launch_processes([], 2, tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_train_with_devices_stopped_by_ctrl_c_writes_a_checkpoint(training_data, tmp_path):
    options = train_options(training_data, tmp_path / "run", epochs=4000)
    process = start(*options, "--devices=2", "--checkpoint-every=1e6")
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    for pid in [*workers(process), process.pid]:  # as a terminal does
        os.kill(pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; start the command again" in errors
    assert (tmp_path / "run" / "checkpoint" / "last.safetensors").exists()


def test_train_with_an_error_in_all_processes_prints_one_line(training_data, tmp_path):
    options = ["--out", tmp_path / "run", "--params.modalities=[id, smell]", "--device=cpu", "--devices=2"]
    process = start("hafvt", "train", "hafvt", training_data.folder, *options)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert len(errors.splitlines()) == 1
    assert "has no features smell" in errors


def test_compare_by_torchrun_is_refused_in_one_line(training_data, tmp_path):
    process = start("hafvt", "compare", training_data.folder, "--out", tmp_path / "x", processes=2)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert errors.count("hafvt compare: it runs in one process: start it without torchrun") == 1
    assert not (tmp_path / "x").exists()
