"""Callbacks see every epoch, stop a training, and run once it is finished."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import hafvt
from hafvt.errors import HafvtError
from tests.training.conftest import SMALL_SASREC
from tests.training.test_train import read_log

SETTINGS = {"params": SMALL_SASREC, "batch_size": 8, "test": False}


class RecordingCallback(hafvt.Callback):
    """Records all calls, and stops after an epoch."""

    def __init__(self, last_epoch: int) -> None:
        self.last_epoch, self.settings, self.lines, self.runs = last_epoch, [], [], []

    def on_train_start(self, settings):
        self.settings.append(settings)

    def on_epoch_end(self, epoch, metrics):
        self.lines.append({name: value for name, value in metrics.items() if name != "seconds"})
        return epoch == self.last_epoch

    def on_train_end(self, run):
        self.runs.append(run)


def test_callback_stops_the_training_and_a_resumed_one_goes_on(training_data, tmp_path):
    first = RecordingCallback(2)
    run = hafvt.train("sasrec", training_data, tmp_path / "run", epochs=6, **SETTINGS, callbacks=[first])
    assert run.manifest["best"]["epochs"] == 2
    assert first.lines == read_log(run.folder)
    assert first.settings[0]["batch_size"] == 8
    assert [run.folder for run in first.runs] == [run.folder]
    second = RecordingCallback(9)
    resumed = hafvt.train(
        "sasrec", training_data, run.folder, epochs=4, **SETTINGS, callbacks=[second], resume=True
    )
    assert [line["epoch"] for line in second.lines] == [3, 4]
    assert resumed.manifest["best"]["epochs"] == 4


def test_callback_with_overwrite_gets_the_finished_run_in_its_place(training_data, tmp_path):
    for _ in range(2):
        recorder = RecordingCallback(1)
        hafvt.train(
            "sasrec", training_data, tmp_path / "run", **SETTINGS, callbacks=[recorder], overwrite=True
        )
        assert recorder.runs[0].folder == tmp_path / "run"
        assert recorder.runs[0].manifest["best"]["epoch"] == 1


def test_callbacks_with_devices_are_refused(training_data, tmp_path):
    with pytest.raises(HafvtError, match="use torchrun for callbacks"):
        hafvt.train("sasrec", training_data, tmp_path / "run", devices=2, callbacks=[RecordingCallback(1)])
    assert not (tmp_path / "run").exists()


def test_documented_callback_stops_the_training(training_data, tmp_path, monkeypatch, capsys):
    page = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "track.md"
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    (code,) = (block for block in blocks if "hafvt.Callback" in block)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "movies").symlink_to(training_data.folder)
    small = code.replace("0.2)", "0.01)").replace(
        "callbacks=", "params={'id_width': 8}, epochs=4, callbacks="
    )
    exec(small, {})
    assert capsys.readouterr().out == "best epoch: 2\n"
    assert len(read_log(tmp_path / "runs" / "hafvt")) == 2
