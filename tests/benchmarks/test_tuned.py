"""Tuned models: a table in which tuned settings are worse than the default ones is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "benchmarks")]

import tuned  # noqa: E402


def make_piece(valid_mrrs, **entry):
    runs = [{"valid_mrr": mrr} for mrr in valid_mrrs]
    none = np.zeros(0)
    return tuned.Piece({"data": "films", "settings": {}, "runs": runs, **entry}, none, none, none)


def test_require_tuned_pieces_worse_than_defaults_stops_with_the_model():
    good = make_piece([0.14, 0.13], defaults=[0.13, 0.13])
    tuned.require_tuned_pieces({"sasrec": good, "hafvt, unmixed": make_piece([0.1])})
    worse = make_piece([0.12, 0.13], defaults=[0.13, 0.13])
    with pytest.raises(SystemExit, match=r"^gru4rec on films: the tuned settings have .* 12.50%.* 13.00%"):
        tuned.require_tuned_pieces({"sasrec": good, "gru4rec": worse})
    with pytest.raises(SystemExit, match=r"sasrec\.json: made without its default settings: delete it"):
        tuned.require_tuned_pieces({"sasrec": make_piece([0.14])})


def test_models_of_the_benchmark_include_the_baselines_and_equal_numbers_of_trials():
    assert {"item-knn", "popularity", "recent-popularity", "seasonal-popularity"} <= set(tuned.MODELS)
    assert tuned.TRIALS >= 16
