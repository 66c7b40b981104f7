"""Settings are checked before a function starts, in one line, whatever their source."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import hafvt
from hafvt.errors import ArgumentError, HafvtError
from hafvt.settings import Device, OutFolder, PositiveCount, Seed, Share, check_arguments


@check_arguments
def example(
    table: str | Path | Any = "",
    out: OutFolder = "out",
    *,
    max_items: PositiveCount | None = None,
    share: Share = 0.1,
    seed: Seed = 0,
    split: Literal["test", "valid"] = "test",
    names: list[str] | None = None,
    device: Device = "cpu",
    overwrite: bool = False,
) -> dict[str, Any]:
    return locals()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "--seed is -1: choose a whole number from 0 to 4294967295"),
        ({"seed": 2**70}, "--seed is 1180591620717411303424: choose a whole number from 0 to 4294967295"),
        ({"seed": True}, "--seed is True: choose a whole number from 0 to 4294967295"),
        ({"max_items": 1.0}, "--max-items is 1.0: choose a whole number from 1 to 1000000"),
        ({"share": float("nan")}, "--share is nan: choose a number from 0 and below 1"),
        ({"share": "0.5"}, "--share is '0.5': choose a number from 0 and below 1"),
        ({"split": "train"}, "--split is 'train': choose test or valid"),
        ({"names": "abc"}, "--names is 'abc': choose a list"),
        ({"overwrite": "yes"}, "--overwrite is 'yes': choose true or false"),
        ({"device": "tpu"}, "--device tpu: choose auto, cpu, cuda, cuda:N or mps"),
        ({"out": 5}, "--out is 5: choose a text, or a path"),
        ({"out": ""}, "--out : name a folder"),
        ({"out": "file"}, r"--out file: .*/file is a file: name a folder"),
        ({"out": Path("file/below")}, r"--out file/below: .*/file is a file: name a folder"),
        ({"out": "x" * 300}, r"File name too long: name another folder"),
        ({"table": "x" * 300}, r"--table: File name too long: name another path"),
    ],
)
def test_check_arguments_wrong_value_is_refused_in_one_line(settings, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(HafvtError, match=message) as raised:
        example(**settings)
    assert "\n" not in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize(("name", "hint"), [("request_time", ""), ("epoch", r" \(is it epochs\?\)")])
def test_train_and_tune_hyperparameter_outside_params_is_refused_with_the_remedy(name, hint):
    for function in (hafvt.train, hafvt.tune):
        remedy = f"hyperparameters go in params={{'{name}': ...}}"
        message = f"^{function.__name__} takes no '{name}'{hint}: {remedy}$"
        with pytest.raises(ArgumentError, match=message):
            function("hafvt", "data", "out", **{name: True})


def test_functions_with_table_options_refuse_an_option_outside_with_the_remedy():
    for function in (hafvt.fit, hafvt.prepare, hafvt.recommend):
        message = rf"{function.__name__} takes no 'keep': give table_options=TableOptions\(keep=...\)"
        with pytest.raises(ArgumentError, match=message):
            function("log.csv", keep="qty > 0")


def test_check_arguments_right_values_arrive_as_python_values():
    table = object()
    values = example(table, "new/folder", max_items=np.int64(3), share=0, names=("a", "b"), seed=np.uint8(7))
    assert values["table"] is table
    assert (values["out"], values["max_items"], values["names"]) == ("new/folder", 3, ["a", "b"])
    assert (type(values["max_items"]), type(values["seed"]), type(values["share"])) == (int, int, float)
    with pytest.raises(TypeError, match="unexpected keyword argument 'color'"):
        example(color="red")
