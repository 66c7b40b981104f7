"""The catalog of a run: what the run keeps of its dataset."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
import torch

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.models import MODELS
from hafvt.training.run import open_run
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS, write_small

HISTORIES = [["i1", "i8", "i31"], ["i40"], ["unknown"]]


def recommendations(folder, **options):
    """Returns ids and scores for some histories in both domains."""
    recommender = Recommender.open(folder, **options)
    return [
        [(scored.item.item_id, scored.score) for scored in result.items]
        for domain in ("d0", "d1")
        for result in recommender.recommend(HISTORIES, domain, 5, time=1_500_400_000)
    ]


@pytest.mark.parametrize("model", [name for name in MODELS if name != "hafvt-paper"])
def test_run_recommends_alike_after_its_dataset_was_prepared_again_or_removed(model, tmp_path):
    data, params = write_small(tmp_path / "data"), SMALL_PARAMS[model]
    params = params | {"use_request_date": True} if model == "hafvt" else params
    run = train(model, data, tmp_path / "run", params=params, epochs=1, test=False)
    expected = recommendations(run.folder)
    shutil.rmtree(data.folder)
    assert recommendations(run.folder) == expected
    write_small(data.folder, sizes=(31, 22), users=50, seed=3)
    reopened = open_run(run.folder)
    assert reopened.data.is_catalog
    assert reopened.data.num_items == 50
    assert recommendations(run.folder) == expected
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, reopened.model.state_dict()[name]), name


def test_catalog_has_counts_links_to_vectors_and_no_histories(hafvt_run):
    catalog = Dataset.open(hafvt_run.folder / "catalog", catalog=True)
    np.testing.assert_array_equal(catalog.train_counts(), hafvt_run.data.train_counts())
    assert catalog.repeats == hafvt_run.data.repeats
    assert len(catalog.items) == catalog.num_users == 0
    for name in ("image", "title"):
        path, other = (data.folder / "features" / name / "rows.npy" for data in (catalog, hafvt_run.data))
        assert path.samefile(other)


def test_catalog_of_a_model_of_ids_has_no_vectors(sasrec_run):
    assert not (sasrec_run.folder / "catalog" / "features").exists()


def test_dataset_open_of_a_catalog_says_what_it_is(hafvt_run):
    with pytest.raises(HafvtError, match="is the catalog of a run, without histories: name a dataset"):
        Dataset.open(hafvt_run.folder / "catalog")


def test_train_copies_vectors_where_links_are_impossible(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", refuse)
    data = write_small(tmp_path / "data")
    run = train("hafvt", data, tmp_path / "run", params=SMALL_PARAMS["hafvt"], epochs=1, test=False)
    expected = recommendations(run.folder)
    shutil.rmtree(data.folder)
    assert recommendations(run.folder) == expected
