"""What `hafvt doctor` reports of a dataset."""

from __future__ import annotations

import pytest

from hafvt.cli import main
from hafvt.experiments import doctor as module


def test_doctor_of_a_dataset_prints_memory_and_commands(small, capsys, monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 16)
    monkeypatch.setattr(module, "available_bytes", lambda: 64 * 2**30)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    assert main(["doctor", str(small.folder)]) == 0
    output = capsys.readouterr().out
    assert "gloo (cpu)" in output
    assert "50 items, 40 users, vectors: image (12), title (8)" in output
    assert "hafvt needs about 0.5 GiB per process of 64.0 GiB" in output
    assert f"hafvt train hafvt {small.folder} --out runs/hafvt --devices 4" in output
    assert "torchrun --nnodes M --nproc-per-node 4" in output


@pytest.mark.parametrize("data", ["nowhere", ""])
def test_doctor_without_that_dataset_is_refused_in_one_line(data, capsys):
    assert main(["doctor", data]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_doctor_of_a_large_dataset_says_that_memory_is_not_enough(small, monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda: 2**28)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    assert "NOT ENOUGH" in module.doctor(small)
