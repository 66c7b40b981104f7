"""What a search may choose from, as people write it."""

from __future__ import annotations

import re

import optuna
import pytest

from hafvt.errors import HafvtError
from hafvt.experiments.search_space import RANGES, TRAINING, Choices, Range, as_it_stands, read_space
from hafvt.models import MODELS


def space(**wanted):
    return read_space("hafvt", "default", {}, wanted)


def test_each_way_of_writing():
    found = space(
        temperature=[0.05, 0.5, "log"],
        lambda1=[0, 1],
        lambda2=[0.1, 0.3, "choices"],
        id_width=[8, 16],
        content_width=[8, 64, "range"],
        hierarchy=[True, False],
        modalities=[["id"], ["id", "title"]],
        dropout=[0.1],
    )
    assert found["temperature"] == Range(0.05, 0.5, log=True)
    assert found["lambda1"] == Range(0.0, 1.0, log=False)
    assert found["lambda2"] == Choices((0.1, 0.3))
    assert found["id_width"] == Choices((8, 16))
    assert found["content_width"] == Range(8, 64, log=False)
    assert found["hierarchy"] == Choices((True, False))
    assert found["dropout"] == Choices((0.1,))
    trial = optuna.create_study().ask()
    drawn = {name: one.suggest(trial, name) for name, one in found.items()}
    assert all(drawn[name] in one for name, one in found.items())
    assert type(drawn["content_width"]) is int
    assert drawn["modalities"] in (["id"], ["id", "title"])
    assert drawn == {name: one.suggest(trial, name) for name, one in found.items()}


@pytest.mark.parametrize("model", [name for name in MODELS if name != "popularity"])
def test_every_model_has_a_usual_space_of_what_it_can_take(model):
    found = read_space(model, "default", {}, {})
    assert set(TRAINING) < set(found) <= set(RANGES)
    stands = as_it_stands(model, "default", {})
    assert all(stands[name] in one for name, one in found.items()), "the first trial is not as it stands"
    assert stands["learning_rate"] == (0.003 if model == "hafvt" else 0.001)


def test_what_is_fixed_is_not_searched():
    assert "dropout" not in read_space("sasrec", "default", {"dropout": 0.1}, {})


@pytest.mark.parametrize(
    ("wanted", "told"),
    [
        ({"temprature": [0.1, 1.0]}, "no such field, it has learning_rate, batch_size, .*temperature"),
        ({"temperature": 0.1}, r"--space.temperature 0.1: give \[low, high\]"),
        ({"temperature": []}, "give"),
        ({"temperature": [0.5, 0.1]}, "the lower one first"),
        ({"temperature": [0.1, 0.2, 0.3, "log"]}, "two numbers"),
        ({"lambda1": [0.0, 1.0, "log"]}, "two numbers above 0"),
        ({"lambda1": [0.1, float("inf")]}, "two numbers"),
        ({"hierarchy": [0, 1, "range"]}, "hierarchy is no number: list its choices"),
        ({"id_width": [8.5, 16]}, "id_width is 8.5: choose a whole number from 1 to 8192"),
        ({"id_width": [8, 8]}, "each choice once"),
        ({"batch_size": [0, 16]}, "batch_size: 0 is no int of above 0"),
        ({"learning_rate": [0.0, 0.1]}, "learning_rate: 0.0 is no float"),
        ({"weight_decay": [-1.0, 0.1]}, "weight_decay: -1.0 is no float of 0 or more"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(wanted, told):
    with pytest.raises(HafvtError, match=told) as raised:
        space(**wanted)
    assert "\n" not in str(raised.value)


def test_a_search_of_nothing_is_refused():
    with pytest.raises(HafvtError, match="nothing to tune"):
        read_space("popularity", "default", {}, {})
    with pytest.raises(HafvtError, match="searched or fixed, not both"):
        read_space("sasrec", "default", {"dropout": 0.1}, {"dropout": [0.0, 0.5]})
    single = {
        name: one.values[:1]
        for name, one in read_space("srgnn", "default", {}, {}).items()
        if isinstance(one, Choices)
    }
    with pytest.raises(HafvtError, match="nothing to search"):
        read_space("srgnn", "default", {}, {**single, "learning_rate": [0.1]})
    with pytest.raises(HafvtError, match=re.escape("no preset 'mine'")):
        read_space("sasrec", "mine", {}, {})
