"""Every option of every command with wrong values: one line, exit status 1 or 2, and nothing is created.

The status is 2 for arguments that are wrong whatever the files hold, and 1 for all else.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from pkgutil import resolve_name
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest

from hafvt.cli import COMMANDS, main
from hafvt.settings import Device, OutFolder, option_name, parameter_types

WHOLE_NUMBERS = ["", "x", "1.5", "-1", "1e20", "9" * 30, "9" * 5000, "nan", "null", "0x10", "١"]
NUMBERS = ["", "x", "-1", "nan", "inf", "-inf", "1e999", "1,5", "null"]
FLAGS = ["maybe", "2"]
CHOICES = ["", "other", "null"]
DEVICES = ["", "xyz", "cuda:x", "cuda:-1", "cuda:99999999999999999999", "meta"]
OUT_FOLDERS = ["", "file", "file/below", "x" * 300, "nul\0l", "\udcff/x"]
MAPPINGS = ["x", "=x"]
INPUTS = ["", "nowhere", "file", "folder", "file/below", "x" * 300, "nul\0l", "\udcff/x"]


def kind_of(hint: Any) -> Any:
    """Return a type without ranges and None, or Device or OutFolder."""
    if hint in (Device, OutFolder):
        return hint
    if get_origin(hint) in (Union, UnionType):
        parts = [kind_of(part) for part in get_args(hint) if part is not NoneType]
        return OutFolder if OutFolder in parts else Path if Path in parts else parts[0]
    if get_origin(hint) is Annotated:
        return kind_of(get_args(hint)[0])
    return get_origin(hint) or hint


FILE_ERRORS = (
    "train hafvt small out --params.modalities [id,smell]",
    "compare small out --models sasrec --tuned.sasrec nowhere",
    "paper table1 empty",
    "encode small --title clip:nowhere",
    "encode small --precomputed image=nowhere",
    "recommend small --history a",
    "evaluate empty",
)
VALUES = {
    int: WHOLE_NUMBERS,
    float: NUMBERS,
    bool: FLAGS,
    Literal: CHOICES,
    Device: DEVICES,
    OutFolder: OUT_FOLDERS,
    dict: MAPPINGS,
    Path: INPUTS,
}


def cases():
    for command, entry in COMMANDS.items():
        function = resolve_name(entry.target)
        hints = parameter_types(function)
        required = {
            name: next(iter(get_args(hints[name])), "x") if kind_of(hints[name]) is Literal else "nowhere"
            for name, parameter in inspect.signature(function).parameters.items()
            if parameter.default is parameter.empty
        }
        for name, hint in hints.items():
            if kind_of(hint) in VALUES:
                yield pytest.param(command, name, kind_of(hint), required, id=f"{command} {name}")


@pytest.mark.parametrize(("command", "name", "kind", "required"), list(cases()))
def test_command_with_a_wrong_value_names_the_option(
    command, name, kind, required, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("folder").mkdir()
    option = option_name(name)
    others = [
        f"{option_name(other)}={'k=nowhere' if other == 'domains' else value}"
        for other, value in required.items()
        if other != name
    ]
    others = [word.replace("--domains=k=nowhere", "--domains.k=nowhere") for word in others]
    for value in VALUES[kind]:
        status = main([command, *others, f"{option}={value}"])
        error = capsys.readouterr().err
        assert status in (1, 2), (value, error)
        assert len(error.splitlines()) == 1, (value, error)
        assert "Traceback" not in error
        if kind is not Path:
            assert status == 2, (value, error)
            assert name in error.replace("-", "_"), (value, error)
        assert sorted(path.name for path in Path().rglob("*")) == ["file", "folder"], value
        assert len(error) < 1000 + len(value)


@pytest.mark.parametrize(
    "line",
    [
        "train hafvd small out",
        "train sasrec small out --preset other",
        "train sasrec small out --protocol other",
        "train sasrec small out --params.dropout 2",
        "train sasrec small out --params.dropout [1",
        "train sasrec small out --params.other 1",
        "train sasrec small out --params.dropout 0.1 --params.dropout 0.2",
        "train sasrec small out --epochs 1 --epochs 2",
        "train hafvt small out --params.modalities [id,smell]",
        "tune hafvd small out",
        "tune popularity small out",
        "tune sasrec small out --preset other",
        "tune sasrec small out --protocol other",
        "tune sasrec small out --params.dropout 2",
        "tune sasrec small out --params.dropout {a:",
        "tune sasrec small out --space.dropout 0.1",
        "tune sasrec small out --space.dropout [0.1,x]",
        "tune sasrec small out --space.dropout [0.1,9]",
        "tune sasrec small out --space.dropout [[0.1],[0.2],log]",
        "tune sasrec small out --space.width [1,100000000000]",
        "tune sasrec small out --space.batch_size [0,4]",
        "tune sasrec small out --space.other [1,2]",
        "compare small out --models other",
        "compare small out --models sasrec sasrec",
        "compare small out --models sasrec --tuned.sasrec nowhere",
        "compare small out --models sasrec --tuned.other nowhere",
        "compare small out --protocol other",
        "ablate small out --protocol other",
        "paper table2 small",
        "paper table1 empty",
        "paper table9 small",
        "encode small",
        "encode small --image other",
        "encode small --title clip:nowhere",
        "encode small --precomputed image=nowhere",
        "encode small --encoders Other=classic",
        "recommend small --history a",
        "evaluate small --protocol other",
        "evaluate empty",
        "demo file",
        "demo new --items-per-shop 1",
    ],
)
def test_command_with_a_wrong_name_or_setting_is_refused(line, small, tmp_path, monkeypatch, capsys):
    status = 1 if line in FILE_ERRORS else 2
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    assert main(line.split()) == status
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1, error
    assert "Traceback" not in error
    assert sorted(tmp_path.rglob("*")) == before
