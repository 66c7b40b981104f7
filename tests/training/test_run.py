"""Runs: opened as they were trained, refused in one line where that is not possible."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.files import sha256
from hafvt.training.checkpoint import DTYPES, load_checkpoint, save_checkpoint
from hafvt.training.run import Run, open_run
from hafvt.training.train import train


def copy_run(run: Run, folder: Path) -> Path:
    """Returns a copy of a run's folder."""
    return shutil.copytree(run.folder, folder)


def change_manifest(folder: Path, **changes: object) -> None:
    """Changes model.json."""
    path = folder / "model.json"
    about = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({name: value for name, value in about.items() if name != "checksum"}))


def test_open_run_without_a_catalog_refuses_another_dataset(sasrec_run, make_small, tmp_path):
    folder = copy_run(sasrec_run, tmp_path / "run")
    shutil.rmtree(folder / "catalog")
    with pytest.raises(HafvtError, match="not the dataset"):
        open_run(folder, make_small(seed=5))


def test_open_run_with_damaged_weights_is_refused(sasrec_run, tmp_path):
    folder = copy_run(sasrec_run, tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(HafvtError, match="damaged"):
        open_run(folder)


def test_run_without_models_in_memory_says_how_to_open_them(sasrec_run):
    run = open_run(sasrec_run.folder, sasrec_run.data, ())
    assert str(run) == str(sasrec_run)
    with pytest.raises(HafvtError, match=r"not in memory: open them with hafvt.Recommender.open"):
        _ = run.model


def test_open_run_of_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(HafvtError, match="no finished run"):
        open_run(tmp_path)


def test_dataset_open_of_a_run_says_that_it_is_a_run(hafvt_run):
    with pytest.raises(HafvtError, match=r"is a run, not a dataset: hafvt evaluate .* prints its results"):
        Dataset.open(hafvt_run.folder)


def test_open_run_ranks_alike_without_computing_clusters(hafvt_run, tmp_path, monkeypatch):
    monkeypatch.setattr("hafvt.features.clusters.with_clusters", None)
    reopened = open_run(hafvt_run.folder)
    data = hafvt_run.data
    before, after = (
        rank_positions(run.model, data, data.valid).half_ties.ranks for run in (hafvt_run, reopened)
    )
    np.testing.assert_array_equal(before, after)


def test_open_run_without_saved_clusters_is_refused(hafvt_run, tmp_path):
    folder = copy_run(hafvt_run, tmp_path / "run")
    tensors, state = load_checkpoint(folder / "model.safetensors")
    others = {name: tensor for name, tensor in tensors.items() if "cluster_rows" not in name}
    assert len(others) < len(tensors)
    save_checkpoint(folder / "model.safetensors", others, state)
    change_manifest(folder, sha256={"model.safetensors": sha256(folder / "model.safetensors")})
    with pytest.raises(HafvtError, match=r"model.safetensors: .* of an earlier version: train"):
        open_run(folder)


def test_open_run_with_an_unknown_hyperparameter_is_refused(sasrec_run, tmp_path):
    folder = copy_run(sasrec_run, tmp_path / "run")
    change_manifest(folder, config={**sasrec_run.manifest["config"], "gone": 1})
    with pytest.raises(HafvtError, match="with gone, which this version does not know: train it again"):
        open_run(folder)


@pytest.mark.parametrize("number", [None, 1, 4])
def test_open_run_of_another_format_is_refused(sasrec_run, tmp_path, number):
    folder = copy_run(sasrec_run, tmp_path / "run")
    change_manifest(folder, format=number)
    with pytest.raises(HafvtError, match="reads format 3: train the model again, or use the hafvt version"):
        open_run(folder)


def test_open_run_of_the_format_before_has_the_new_names_of_hyperparameters(writable_run):
    run = open_run(writable_run)
    config = dict(run.manifest["config"])
    config["request_time"] = config.pop("use_request_date")
    change_manifest(writable_run, format=2, config=config)
    assert open_run(writable_run).config == run.config


def test_open_run_takes_the_knots_of_time_from_the_weights(served_run, monkeypatch):
    monkeypatch.setattr("hafvt.features.item_features.time_knots", None)  # a call would raise TypeError
    run = open_run(served_run)
    saved = load_file(served_run / "model.safetensors")
    name = "encoders.0.time_offset.knots"
    assert torch.equal(run.model.state_dict()[name], saved[f"model.{name}"])


def test_open_run_of_an_export_says_so(tmp_path):
    (tmp_path / "export.json").write_text("{}")
    with pytest.raises(HafvtError, match="is an export, for recommend, explain and serve: name the run"):
        open_run(tmp_path)


def test_open_run_of_an_unfinished_run_says_how_to_finish_it(tmp_path):
    (tmp_path / "config.yaml").write_text("{}")
    with pytest.raises(HafvtError, match=r"finish it with hafvt train .* --resume"):
        open_run(tmp_path)


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeroed": lambda content: content[:-64] + bytes(64),
    "changed": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_open_run_with_any_damaged_file_is_refused_in_one_line(sasrec_run, tmp_path, damage):
    folder = copy_run(sasrec_run, tmp_path / "run")
    data = shutil.copytree(sasrec_run.data.folder, tmp_path / "data")
    open_run(folder, data)
    names = ["items.npy", "offsets.npy", "train_lengths.npy", "valid.npy", "test.npy", "times.npy"]
    names += ["items.parquet", "users.parquet", "manifest.json"]
    files = [data / name for name in names] + [folder / "model.json", folder / "model.safetensors"]
    for file in files:
        content = file.read_bytes()
        file.write_bytes(DAMAGES[damage](content))
        with pytest.raises(HafvtError, match=f"{file.name} is damaged .*: ") as refusal:
            open_run(folder, data)
        assert "\n" not in str(refusal.value)
        file.unlink()
        with pytest.raises(HafvtError, match=r"does not exist: |holds no finished run: "):
            open_run(folder, data)
        file.write_bytes(content)
    open_run(folder, data)


def test_load_checkpoint_with_a_changed_tensor_or_state_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    save_checkpoint(path, {"a": torch.zeros(100), "b": torch.tensor(1)}, {"epoch": 12})
    content = path.read_bytes()
    assert load_checkpoint(path)[1] == {"epoch": 12}
    for old, new in ((bytes(40), bytes(39) + b"\1"), (b": 12", b": 13")):
        position = content.rfind(old)
        assert position > 0
        path.write_bytes(content[:position] + new + content[position + len(old) :])
        with pytest.raises(HafvtError, match=r"x.safetensors is damaged .*: train the model again"):
            load_checkpoint(path)


def test_load_checkpoint_cut_short_while_it_is_read_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    source = f"""
import sys, threading, torch
from pathlib import Path
from hafvt.errors import HafvtError
from hafvt.training import checkpoint
path = Path({str(path)!r})
checkpoint.save_checkpoint(path, {{"a": torch.zeros(10**6), "b": torch.zeros(10**6)}}, {{}})
torch.frombuffer = lambda *arguments, original=torch.frombuffer, **options: (
    open(path, "r+b").truncate(2000), original(*arguments, **options))[1]
try:
    checkpoint.load_checkpoint(path)
except HafvtError as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert result.stdout == f"{path} is damaged (it is cut short): train the model again\n"


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"a": ("F32", [4], [0, 16]), "b": ("F32", [4], [8, 24])}, "its tensors overlap, or have gaps"),
        ({f"t{n}": ("U8", [64], [0, 64]) for n in range(9)}, "its tensors overlap, or have gaps"),
        ({"a": ("F32", [4], [8, 24])}, "its tensors overlap, or have gaps"),
        ({"a": ("F32", [4], [0, 16])}, "it is not as long as its tensors"),
        ({"a": ("F32", [-1], [0, 64])}, "its tensors overlap, or have gaps or negative"),
        ({"a": ("F32", [2**60], [0, 2**62])}, "it is not as long as its tensors"),
        ({"a": ("F32", [2], [0, 64])}, "a tensor has another size than its shape"),
        ({"a": ("F8_E5M2", [64], [0, 64])}, "it lacks 'F8_E5M2'"),
    ],
)
def test_load_checkpoint_with_a_wrong_header_is_refused(tmp_path, entries, reason):
    names = ("dtype", "shape", "data_offsets")
    header = {name: dict(zip(names, entry, strict=True)) for name, entry in entries.items()}
    text = json.dumps({"__metadata__": {"state": "{}"}, **header}).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    with pytest.raises(HafvtError, match=rf"x.safetensors is damaged \({reason}.*: train the model again"):
        load_checkpoint(path)
    path.write_bytes((2**63).to_bytes(8, "little") + text)
    with pytest.raises(HafvtError, match="it is cut short"):
        load_checkpoint(path)


def test_save_checkpoint_writes_tied_weights(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    tensors = {"a": weight, "b": weight, "c": torch.zeros(0), "d": torch.zeros(0, 4)}
    save_checkpoint(tmp_path / "x.safetensors", tensors, {"epoch": 1})
    loaded, _ = load_checkpoint(tmp_path / "x.safetensors")
    assert {name: tensor.tolist() for name, tensor in loaded.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }


def test_load_checkpoint_equals_safetensors_for_every_type(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES.values()}
    tensors |= {"empty": torch.zeros(0, 4), "number": torch.tensor(2.5)}
    save_checkpoint(path, tensors, {})
    loaded, _ = load_checkpoint(path)
    expected = load_file(path)
    assert loaded.keys() == expected.keys()
    for name, tensor in expected.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor)


@pytest.mark.parametrize("content", ["", "[", "3", "format: 2", "format: 2\nconfig: 3", "\0", "a: *b"])
def test_train_resumed_with_a_damaged_config_is_refused_in_one_line(sasrec_run, tmp_path, content):
    folder = copy_run(sasrec_run, tmp_path / "run")
    (folder / "config.yaml").write_text(content)
    with pytest.raises(HafvtError, match=r"config.yaml is damaged|is a run of format") as refusal:
        train("sasrec", sasrec_run.data, folder, resume=True)
    assert "\n" not in str(refusal.value)
