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
    assert "hafvt needs about 0.5 GiB per process, of 64.0 GiB" in output
    assert f"hafvt train hafvt {small.folder} --out runs/hafvt --devices 4" in output
    assert "torchrun --nnodes M --nproc-per-node 4 --rdzv-id hafvt" in output
    assert "with --shard-catalog: about 0.5 in each of 2, 0.5 in each of 4" in output


@pytest.mark.parametrize("data", ["nowhere", ""])
def test_doctor_without_that_dataset_is_refused_in_one_line(data, capsys):
    assert main(["doctor", data]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_doctor_of_a_large_dataset_says_that_memory_is_not_enough(small, monkeypatch):
    monkeypatch.setattr(module, "available_bytes", lambda: 2**28)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    output = module.doctor(small)
    assert "NOT ENOUGH" in output
    assert "none fits this machine" in output


def test_doctor_names_the_machines_or_the_shards_that_suffice(small, monkeypatch):
    monkeypatch.setattr(module.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(module.torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(module, "available_bytes", lambda: 8 * 2**30)

    def training_bytes(num_items, widths, num_shards, *, is_gpu):
        return whole_gib * 2**30 / num_shards

    monkeypatch.setattr(module, "training_bytes", training_bytes)
    whole_gib = 6
    assert "runs/hafvt --devices 2 --shard-catalog\n" in module.doctor(small)
    whole_gib = 20
    output = module.doctor(small)
    assert "on each of 3: torchrun --nnodes 3 --nproc-per-node 2" in output
    assert output.endswith("--shard-catalog")


def test_training_bytes_of_shards_are_a_share_of_the_tables():
    total = module.training_bytes(10_000_000, [512], 1, is_gpu=False)
    thirds = module.training_bytes(10_000_000, [512], 3, is_gpu=False)
    assert thirds - module.BASE_BYTES < 0.7 * (total - module.BASE_BYTES)
    gpus = [module.training_bytes(10_000_000, [512], n, is_gpu=True) for n in (1, 3, 8)]
    assert total == gpus[0] > gpus[1] > gpus[2]
