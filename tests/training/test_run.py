"""Runs: opened as they were trained, refused in one line where that is not possible."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hafvt.errors import HafvtError
from hafvt.evaluation.target_ranking import rank_positions
from hafvt.training.checkpoint import load_checkpoint, save_checkpoint
from hafvt.training.run import Run, open_run


def copy_run(run: Run, folder: Path) -> Path:
    """Returns a copy of a run's folder."""
    return shutil.copytree(run.folder, folder)


def change_about(folder: Path, **changes: object) -> None:
    """Changes model.json."""
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_open_run_with_another_dataset_is_refused(sasrec_run, make_small):
    with pytest.raises(HafvtError, match="not the dataset"):
        open_run(sasrec_run.folder, make_small(seed=5))


def test_open_run_with_damaged_weights_is_refused(sasrec_run, tmp_path):
    folder = copy_run(sasrec_run, tmp_path / "run")
    (folder / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(HafvtError, match="damaged"):
        open_run(folder)


def test_open_run_of_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(HafvtError, match="no finished run"):
        open_run(tmp_path)


def test_open_run_ranks_alike_without_computing_similarity(hafvt_run, tmp_path, monkeypatch):
    monkeypatch.setattr("hafvt.features.similarity.with_similar_items", None)
    reopened = open_run(hafvt_run.folder)
    data = hafvt_run.data
    before, after = (
        rank_positions(run.model, data, data.valid).half_ties.ranks for run in (hafvt_run, reopened)
    )
    np.testing.assert_array_equal(before, after)


def test_open_run_without_saved_similarity_is_refused(hafvt_run, tmp_path):
    folder = copy_run(hafvt_run, tmp_path / "run")
    tensors, state = load_checkpoint(folder / "model.safetensors")
    others = {name: tensor for name, tensor in tensors.items() if "neighbor_rows" not in name}
    assert len(others) < len(tensors)
    save_checkpoint(folder / "model.safetensors", others, state)
    with pytest.raises(HafvtError, match=r"model.safetensors: .* of an earlier version: train"):
        open_run(folder)


def test_open_run_with_an_unknown_hyperparameter_is_refused(sasrec_run, tmp_path):
    folder = copy_run(sasrec_run, tmp_path / "run")
    change_about(folder, config={**sasrec_run.about["config"], "gone": 1})
    with pytest.raises(HafvtError, match="with gone, which this version does not know: train it again"):
        open_run(folder)


@pytest.mark.parametrize("number", [None, 1, 3])
def test_open_run_of_another_format_is_refused(sasrec_run, tmp_path, number):
    folder = copy_run(sasrec_run, tmp_path / "run")
    change_about(folder, format=number)
    with pytest.raises(HafvtError, match="reads format 2: train the model again, or use the hafvt version"):
        open_run(folder)
