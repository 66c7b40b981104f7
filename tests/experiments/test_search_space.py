"""The search space as users write it."""

from __future__ import annotations

import re

import optuna
import pytest

from hafvt.errors import HafvtError
from hafvt.experiments.search_space import (
    DEFAULT_SPACE,
    TRAINING_OPTIONS,
    Choices,
    Range,
    build_search_space,
    default_settings,
)
from hafvt.models import MODELS


def build(model="gru4rec", params=(), **space):
    return build_search_space(model, "default", dict(params), space)


def test_build_search_space_reads_ranges_and_choices():
    space = build_search_space(
        "hafvt",
        "default",
        {},
        {
            "temperature": [0.05, 0.5, "log"],
            "dropout": [0, 1e-1],
            "weight_decay": [0.1, 0.3, "choices"],
            "id_width": [8, 16],
            "max_length": [8, 64, "range"],
            "hierarchy": [True, False],
            "modalities": [["id"], ["id", "title"]],
            "batch_size": [16],
        },
    )
    assert space["temperature"] == Range(0.05, 0.5, log=True)
    assert space["dropout"] == Range(0.0, 0.1, log=False)
    assert space["weight_decay"] == Choices((0.1, 0.3))
    assert space["id_width"] == Choices((8, 16))
    assert space["max_length"] == Range(8, 64, log=False)
    assert space["hierarchy"] == Choices((True, False))
    assert space["batch_size"] == Choices((16,))
    trial = optuna.create_study().ask()
    drawn = {name: values.suggest(trial, name) for name, values in space.items()}
    assert all(drawn[name] in values for name, values in space.items())
    assert type(drawn["max_length"]) is int
    assert drawn["modalities"] in (["id"], ["id", "title"])
    assert drawn == {name: values.suggest(trial, name) for name, values in space.items()}


@pytest.mark.parametrize("model", [name for name in MODELS if name != "popularity"])
def test_build_search_space_by_default_contains_the_default_settings(model):
    space = build(model)
    assert set(space) <= set(DEFAULT_SPACE)
    assert MODELS[model].has_weights == (set(TRAINING_OPTIONS) < set(space))
    defaults = default_settings(model, "default", {})
    assert all(defaults[name] in values for name, values in space.items())
    if not MODELS[model].has_weights:
        return
    assert defaults["learning_rate"] == (0.003 if model == "hafvt" else 0.001)


def test_build_search_space_leaves_out_fixed_hyperparameters():
    assert "dropout" not in build("sasrec", {"dropout": 0.1})


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"temprature": [0.1, 1.0]},
            "no such hyperparameter, it has learning_rate, batch_size, .*temperature",
        ),
        ({"temperature": 0.1}, r"--space.temperature 0.1: give \[low, high\]"),
        ({"temperature": []}, "give"),
        ({"temperature": [0.5, 0.1]}, "the lower one first"),
        ({"temperature": [0.1, 0.2, 0.3, "log"]}, "two numbers"),
        ({"dropout": [0.0, 0.5, "log"]}, "two numbers above 0"),
        ({"dropout": [0.1, float("inf")]}, "two numbers"),
        ({"hierarchy": [0, 1, "range"]}, "hierarchy is not a number, so list its choices"),
        ({"id_width": [8.5, 16]}, "id_width is 8.5: choose a whole number from 1 to 8192"),
        ({"id_width": [8, 8]}, "each choice once"),
        ({"batch_size": [0, 16]}, "batch_size is 0: choose a whole number from 1"),
        ({"learning_rate": [0.0, 0.1]}, "learning_rate is 0.0: choose a number above 0"),
        ({"weight_decay": [-1.0, 0.1]}, "weight_decay is -1.0: choose a number from 0"),
    ],
)
def test_build_search_space_with_a_wrong_entry_explains_it_in_one_line(space, message):
    with pytest.raises(HafvtError, match=message) as raised:
        build("hafvt", **space)
    assert "\n" not in str(raised.value)


def test_build_search_space_checks_values_beside_the_fixed_hyperparameters():
    assert "elu" in build(params={"loss": "bpr-max"}, elu=[0.1, 1.0])
    with pytest.raises(HafvtError, match="elu has no effect with the loss catalog"):
        build(elu=[0.1, 1.0])


def test_build_search_space_without_anything_to_search_is_refused():
    with pytest.raises(HafvtError, match="nothing to tune"):
        build("popularity")
    with pytest.raises(HafvtError, match="search or fix a hyperparameter, not both"):
        build("sasrec", {"dropout": 0.1}, dropout=[0.0, 0.5])
    single = {
        name: values.values[:1] for name, values in build("srgnn").items() if isinstance(values, Choices)
    }
    with pytest.raises(HafvtError, match="nothing to search"):
        build("srgnn", **{**single, "learning_rate": [0.1]})
    with pytest.raises(HafvtError, match=re.escape("no preset 'mine'")):
        build_search_space("sasrec", "mine", {}, {})
