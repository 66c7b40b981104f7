"""Hyperparameters: types, ranges, one-line errors and the list of the help."""

from __future__ import annotations

import json
import subprocess
import sys

import pydantic
import pytest

from hafvt.errors import HafvtError
from hafvt.features.item_features import load_item_features
from hafvt.models import MODELS, build_model, configure, describe_parameters
from hafvt.models.configs import SasRecConfig
from tests.conftest import as_batch


@pytest.mark.parametrize(
    ("model", "params", "message"),
    [
        ("sasrec", {"heads": 0}, "sasrec: parameter heads is 0: choose a whole number from 1 to 64"),
        ("sasrec", {"width": True}, "width is True: choose a whole number from 1 to 8192"),
        ("sasrec", {"width": "64"}, "width is '64': choose a whole number"),
        ("sasrec", {"width": 10**11}, "choose a whole number from 1 to 8192"),
        ("sasrec", {"dropout": 1.5}, "dropout is 1.5: choose a number from 0 to 0.95"),
        ("sasrec", {"dropout": float("nan")}, "dropout is nan: choose a number"),
        ("sasrec", {"heads": 3}, "heads 3 does not divide width 128: choose a multiple of 3 as the width"),
        (
            "sasrec",
            {"loss": "binary", "num_negatives": 9},
            "num_negatives has no effect with the loss",
        ),
        ("sasrec", {"size": 3}, "sasrec has no parameter 'size': it has max_length, width"),
        ("tricdr", {"width": 7}, "heads 2 does not divide width 7"),
        (
            "tricdr",
            {"contrast_rates": [1, -1, 0]},
            "choose a list of 3 entries, each a number from 0",
        ),
        (
            "tricdr",
            {"contrast_rates": [0, 0, 0]},
            "contrast_rates sum to 0: choose at least one rate",
        ),
        ("c2dsr", {"heads": 5}, "heads 5 does not divide width 128"),
        (
            "gru4rec",
            {"elu": 0.5},
            "elu has no effect with the loss catalog: leave it out, or choose",
        ),
        ("gru4rec", {"loss": "bpr-max", "logq": 0.5}, "logq has no effect .* choose the loss cross-entropy"),
        ("hafvt", {"temperature": 0}, "temperature is 0: choose a number from 0.001 to 100"),
        ("hafvt", {"modalities": []}, "modalities lists nothing: name at least one"),
        (
            "hafvt-paper",
            {"modalities": ["id", "id"]},
            "modalities lists id, id: name at least one, each once",
        ),
        ("sasrec", {"blocks": 10**11}, "blocks is 100000000000: choose a whole number from 1 to 64"),
        ("gru4rec", {"layers": 10**11}, "layers is 100000000000: choose a whole number from 1 to 64"),
        ("gru4rec", {"num_negatives": 10**11}, "choose a whole number from 1 to 1000000"),
        ("srgnn", {"steps": 10**11}, "steps is 100000000000: choose a whole number from 1 to 64"),
        ("sasrec", {"dropout": 10**400}, "dropout is 1000*: choose a number from 0 to 0.95"),
        (
            "tricdr",
            {"triplet_weight": 0, "triplet_margin": 1.0},
            "triplet_margin has no effect with triplet_weight 0: leave it out, or choose a triplet_weight",
        ),
        (
            "tricdr",
            {"contrast_weight": 0, "contrast_temperature": 1.0},
            "contrast_temperature has no effect with contrast_weight 0",
        ),
        ("mifn", {"hops": 1.0}, "hops is 1.0: choose a whole number from 0 to 16"),
        ("unknown", {}, "no model 'unknown': choose one of hafvt"),
    ],
)
def test_configure_with_a_wrong_value_raises_one_line(model, params, message):
    with pytest.raises(HafvtError, match=message) as error:
        configure(model, params=params)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", MODELS)
def test_config_as_json_is_read_back_equal(name):
    for preset in MODELS[name].presets:
        config = configure(name, preset)
        values = json.loads(config.model_dump_json())
        assert configure(name, preset, values) == config


def test_config_replace_validates_changes():
    assert SasRecConfig().replace(width=64).width == 64
    with pytest.raises(pydantic.ValidationError):
        SasRecConfig().replace(width=65)


@pytest.mark.parametrize("name", MODELS)
def test_describe_parameters_has_range_and_text_of_each(name):
    for parameter in describe_parameters(name):
        assert parameter.default == getattr(configure(name), parameter.name)
        assert parameter.type
        assert parameter.range
        assert parameter.description.endswith(".")


def test_describe_parameters_imports_no_torch():
    code = "import sys; from hafvt.models import describe_parameters; describe_parameters('hafvt'); "
    code += "print('torch' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "False"


def test_build_model_that_does_not_fit_in_memory_is_refused_before_it_is_allocated(small):
    config = configure("sasrec", params={"width": 8192, "blocks": 64})
    with pytest.raises(
        HafvtError, match="sasrec with these hyperparameters needs more memory than the"
    ) as error:
        build_model("sasrec", load_item_features(small), config, copies=2000)
    assert "\n" not in str(error.value)
    build_model("popularity", load_item_features(small), configure("popularity"))


def test_model_without_capabilities_refuses_them(small):
    item_features = load_item_features(small)
    model = build_model("popularity", item_features, configure("popularity"))
    assert not model.can_explain
    assert not model.can_extend_catalog
    batch = as_batch([[3, 41]])
    with pytest.raises(HafvtError, match="Popularity cannot explain its scores"):
        model.explain(batch, 0, batch.items)
    with pytest.raises(HafvtError, match="Popularity cannot score added items"):
        model.extend_catalog(item_features, batch.items[0])
