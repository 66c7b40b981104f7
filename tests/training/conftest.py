"""One dataset and one run of each kind for all tests of training that only read them."""

from __future__ import annotations

import pytest

from hafvt.data.dataset import Dataset
from hafvt.training.run import Run
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS, write_small

SMALL_SASREC, SMALL_HAFVT = SMALL_PARAMS["sasrec"], SMALL_PARAMS["hafvt"]


@pytest.fixture(scope="session")
def training_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Returns two domains, forty users, pictures and titles."""
    return write_small(tmp_path_factory.mktemp("training") / "data")


@pytest.fixture(scope="session")
def sasrec_run(training_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns a small SASRec of six epochs, to be read only."""
    folder = tmp_path_factory.mktemp("sasrec") / "run"
    return train(
        "sasrec", training_data, folder, params=SMALL_SASREC, epochs=6, batch_size=8, patience=0, test=False
    )


@pytest.fixture(scope="session")
def hafvt_run(training_data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns a small HAF-VT of two epochs, to be read only."""
    folder = tmp_path_factory.mktemp("hafvt") / "run"
    return train("hafvt", training_data, folder, params=SMALL_HAFVT, epochs=2, batch_size=8, test=False)
