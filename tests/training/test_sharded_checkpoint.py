"""Checkpoints of slices: any number of processes reads them, and whole tables are written as by one."""

from __future__ import annotations

import pytest
import torch

from hafvt.errors import HafvtError
from hafvt.ops.shards import Shard
from hafvt.training import checkpoint, sharded_checkpoint
from hafvt.training.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from hafvt.training.sharded_checkpoint import load_slices, save_slices, save_unsharded

RANGES, TABLES = [(0, 7), (7, 20)], {"ids", "steps", "another model's"}
REMEDY = "train again"


def whole_tensors() -> dict[str, torch.Tensor]:
    ids = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    return {"ids": ids, "steps": torch.arange(20), "scale": torch.tensor(0.5), "empty": torch.zeros(0, 2)}


def slices(tensors, shard):
    return {name: shard.rows(tensor) if name in TABLES else tensor for name, tensor in tensors.items()}


def save_as(path, tensors, count, monkeypatch, step=5):
    """Writes a checkpoint as `count` processes do, process 0 last."""
    monkeypatch.setattr(sharded_checkpoint, "num_processes", lambda: count)
    for number in [*range(1, count), 0]:
        monkeypatch.setattr(sharded_checkpoint, "process_index", lambda number=number: number)
        part = slices(tensors, Shard.of_ranges(RANGES, number, count))
        save_slices(path, part, TABLES, {"step": step})


@pytest.mark.parametrize("count", [2, 3])
def test_slices_are_read_by_another_number_of_processes(count, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 40)
    path, tensors = tmp_path / "last.safetensors", whole_tensors()
    save_as(path, tensors, count, monkeypatch)
    for readers in (1, 2, 4):
        for number in range(readers):
            shard = None if readers == 1 else Shard.of_ranges(RANGES, number, readers)
            actual, state = load_slices(path, (), RANGES, shard, REMEDY)
            assert state == {"step": 5}
            expected = slices(tensors, shard or Shard.of_ranges(RANGES, 0, 1))
            assert actual.keys() == expected.keys()
            assert all(actual[name].equal(tensor) for name, tensor in expected.items())


def test_whole_tables_are_read_as_slices(tmp_path):
    path, tensors = tmp_path / "last.safetensors", whole_tensors()
    save_checkpoint(path, tensors, {"step": 1})
    shard = Shard.of_ranges(RANGES, 1, 3)
    actual, _ = load_slices(path, TABLES, RANGES, shard, REMEDY)
    assert all(actual[name].equal(tensor) for name, tensor in slices(tensors, shard).items())


def test_slices_of_earlier_checkpoints_are_removed(tmp_path, monkeypatch):
    path, tensors = tmp_path / "last.safetensors", whole_tensors()
    save_as(path, tensors, 3, monkeypatch, step=5)
    save_as(path, tensors, 2, monkeypatch, step=6)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "last-6-1-of-2.safetensors",
        "last.safetensors",
    ]
    save_slices(path, tensors, (), {"step": 7})
    assert [file.name for file in tmp_path.iterdir()] == ["last.safetensors"]
    assert load_checkpoint(path)[1] == {"step": 7}


def test_a_missing_or_damaged_slice_is_named_with_the_remedy(tmp_path, monkeypatch):
    path, tensors = tmp_path / "last.safetensors", whole_tensors()
    save_as(path, tensors, 2, monkeypatch)
    other = tmp_path / "last-5-1-of-2.safetensors"
    content = bytearray(other.read_bytes())
    content[-1] ^= 1
    other.write_bytes(content)
    with pytest.raises(HafvtError, match=r"last-5-1-of-2.safetensors is damaged .*: train again"):
        load_slices(path, (), RANGES, None, REMEDY)
    other.unlink()
    with pytest.raises(HafvtError, match=r"last-5-1-of-2.safetensors does not exist: train again"):
        load_slices(path, (), RANGES, None, REMEDY)


def test_slices_of_other_processes_or_checkpoints_are_refused(tmp_path, monkeypatch):
    tensors = whole_tensors()
    for name, factor in (("other", 2), ("run", 1)):
        (tmp_path / name).mkdir()
        save_as(
            tmp_path / name / "last.safetensors", {**tensors, "ids": factor * tensors["ids"]}, 3, monkeypatch
        )
    path, first, second = (
        tmp_path / "run" / f"last{part}.safetensors" for part in ("", "-5-1-of-3", "-5-2-of-3")
    )
    good = first.read_bytes()
    for wrong in ((tmp_path / "other" / first.name).read_bytes(), second.read_bytes()):
        first.write_bytes(wrong)
        with pytest.raises(HafvtError, match=r"last-5-1-of-3.* \(it is of another checkpoint\): train again"):
            load_slices(path, (), RANGES, None, REMEDY)
    first.write_bytes(good)
    assert load_slices(path, (), RANGES, None, REMEDY)[0]["ids"].equal(tensors["ids"])


def test_whole_tables_of_slices_are_a_file_of_safetensors(tmp_path):
    tensors, shard = whole_tensors(), Shard.of_ranges(RANGES, 0, 1)
    save_unsharded(tmp_path / "slices", tensors, TABLES, shard, {"epoch": 2})
    save_checkpoint(tmp_path / "whole", tensors, {"epoch": 2})
    verify_checkpoint(tmp_path / "slices")
    (actual, state), (expected, _) = (load_checkpoint(tmp_path / name) for name in ("slices", "whole"))
    assert state == {"epoch": 2}
    assert all(actual[name].equal(tensor) for name, tensor in expected.items())
    assert len((tmp_path / "slices").read_bytes()) == len((tmp_path / "whole").read_bytes())
    content = bytearray((tmp_path / "slices").read_bytes())
    content[-1] ^= 1
    (tmp_path / "slices").write_bytes(content)
    with pytest.raises(HafvtError, match="is damaged"):
        verify_checkpoint(tmp_path / "slices")
