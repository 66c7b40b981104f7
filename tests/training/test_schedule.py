"""Schedules of the learning rate: their values, and trainings that are resumed to the bit."""

from __future__ import annotations

import pytest
import torch

from hafvt.errors import HafvtError
from hafvt.training import trainer
from hafvt.training.schedule import make_scheduler, schedule_factor
from hafvt.training.train import train
from tests.training.conftest import SMALL_SASREC
from tests.training.test_train import read_log, same_weights

SETTINGS = {"params": SMALL_SASREC, "epochs": 4, "batch_size": 8, "patience": 0, "test": False}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.5, 1, 1, 1, 1, 1]),
        ("linear", [0.5, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.5, 1, 1, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_scheduler_after_any_number_of_steps_has_the_rates_of_the_formula(schedule, expected):
    for finished in range(6):
        optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)
        scheduler = make_scheduler(optimizer, schedule, 2, 6, finished)
        rates = []
        for _ in range(finished, 6):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        assert rates == pytest.approx([0.1 * factor for factor in expected[finished:]])
    assert schedule_factor(schedule, 0, 6, 0) == 1


def test_constant_schedule_without_warmup_needs_no_scheduler():
    optimizer = torch.optim.Adam([torch.zeros(1, requires_grad=True)], lr=0.1)
    assert make_scheduler(optimizer, "constant", 0, 6) is None
    with pytest.raises(HafvtError, match="--warmup-steps is 6, but the training has 6 steps: choose fewer"):
        make_scheduler(optimizer, "constant", 6, 6)


def test_train_with_a_schedule_interrupted_in_an_epoch_ends_with_the_same_weights(
    training_data, tmp_path, monkeypatch
):
    options = {**SETTINGS, "schedule": "cosine", "warmup_steps": 7}
    train("sasrec", training_data, tmp_path / "whole", **options)
    original = trainer.Trainer.train_step

    def interrupted_step(self, batch):
        if self.state.step == 8:
            self.write_checkpoint()
            raise KeyboardInterrupt
        return original(self, batch)

    monkeypatch.setattr(trainer.Trainer, "train_step", interrupted_step)
    with pytest.raises(KeyboardInterrupt):
        train("sasrec", training_data, tmp_path / "resumed", **options)
    monkeypatch.setattr(trainer.Trainer, "train_step", original)
    with pytest.raises(HafvtError, match="holds a run of other settings \\(epochs was 4\\)"):
        train("sasrec", training_data, tmp_path / "resumed", **options | {"epochs": 5}, resume=True)
    train("sasrec", training_data, tmp_path / "resumed", **options, resume=True)
    assert same_weights(tmp_path / "whole", tmp_path / "resumed")
    log = read_log(tmp_path / "whole")
    assert log == read_log(tmp_path / "resumed")
    num_steps = log[-1]["step"]
    assert [line["learning_rate"] for line in log] == [
        pytest.approx(1e-3 * schedule_factor("cosine", 7, num_steps, line["step"] - 1)) for line in log
    ]
    train("sasrec", training_data, tmp_path / "constant", **SETTINGS)
    assert not same_weights(tmp_path / "whole", tmp_path / "constant")
