"""Every damaged file of a comparison or a search is refused in one line that names it and the remedy."""

from __future__ import annotations

import importlib
import json
import re
import shutil
import sqlite3
import sys

import pytest
import yaml

from hafvt.errors import HafvtError
from hafvt.experiments import training_pool
from hafvt.experiments.compare import compare
from hafvt.experiments.tune import tune

FAKE_TRIAL = """
import json, sys
from pathlib import Path
options = dict(word[2:].split("=", 1) for word in sys.argv[1:] if word.startswith("--"))
out = Path(options["out"])
out.mkdir(parents=True, exist_ok=True)
config = {n.removeprefix("params."): json.loads(v) for n, v in options.items() if v[0] in "0123456789"}
(out / "config.yaml").write_text(json.dumps({**config, "config": config}))
row = dict(epoch=1, valid_mrr=float(options["learning_rate"]), seconds=1.0)
(out / "metrics.jsonl").write_text(json.dumps(row) + "\\n")
"""


def raise_digit(content: bytes, before: bytes) -> bytes:
    """Return a file with another digit after `before`; it stays valid."""
    start = content.index(before) + len(before)
    position = start + re.search(rb"[1-8]", content[start:]).start()
    return content[:position] + bytes([content[position] + 1]) + content[position + 1 :]


def zero_half(content: bytes) -> bytes:
    return content[: len(content) // 2] + bytes(len(content) - len(content) // 2)


def assert_refused(use, message):
    with pytest.raises(HafvtError, match=message) as raised:
        use()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "results.json",
            lambda content: raise_digit(content, b'"MRR"'),
            "results.json is damaged .*: evalua",
        ),
        ("ranks.parquet", lambda content: content[:-40] + bytes(40), "ranks.parquet is damaged .*: evaluate"),
        ("model.json", lambda content: raise_digit(content, b'"valid_mrrs"'), "model.json is damaged .*: re"),
        ("model.json", lambda content: raise_digit(content, b'"format"'), "model.json is damaged .*: re"),
        ("model.json", zero_half, "model.json is damaged .*: remove its folder"),
    ],
)
def test_compare_with_a_damaged_run_names_the_file(compared, tmp_path, name, damage, message):
    data, out, _ = compared
    folder = shutil.copytree(out, tmp_path / "out")
    file = folder / "runs" / "popularity" / "rate0.001-seed0" / name
    file.write_bytes(damage(file.read_bytes()))
    use = lambda: compare(data.folder, folder, models=["gru4rec", "popularity"], budget="small")  # noqa: E731
    assert_refused(use, message)


def test_compare_with_swapped_or_damaged_files_of_a_comparison_is_refused(compared, tmp_path):
    data, out, _ = compared
    folder = shutil.copytree(out, tmp_path / "out")
    runs = folder / "runs"
    use = lambda: compare(data.folder, folder, models=["gru4rec", "popularity"], budget="small")  # noqa: E731
    popularity, gru4rec = runs / "popularity" / "rate0.001-seed0", runs / "gru4rec" / "rate0.001-seed0"
    shutil.copy(gru4rec / "model.json", popularity / "model.json")
    assert_refused(use, r"popularity.* holds a run with model=gru4rec, now popularity: move it away")
    shutil.copy(out / "runs" / "popularity" / "rate0.001-seed0" / "model.json", popularity)
    file = folder / "settings.json"
    file.write_bytes(raise_digit(file.read_bytes(), b'"budget"'))
    assert_refused(use, "settings.json is damaged .*: restore it, or choose another folder")


@pytest.fixture
def search(small, tmp_path, monkeypatch):
    """The folder of a search of two trials, and a function that repeats it."""
    script = tmp_path / "script.py"
    script.write_text(FAKE_TRIAL)
    monkeypatch.setattr(training_pool, "HAFVT", [sys.executable, "-S", str(script)])
    monkeypatch.setattr(importlib.import_module("hafvt.experiments.tune"), "POLL_S", 0.02)
    out = tmp_path / "tune"

    def repeat():
        return tune("sasrec", small, out, trials=2, epochs=1, jobs=1)

    repeat()
    return out, repeat


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("update trial_values set value = value + 0.01", "study.db or .* is damaged, as they disagree: rest"),
        ("update trial_intermediate_values set intermediate_value = 0.5", "as they disagree: restore it"),
        (
            "update trial_params set param_value = param_value + 0.001",
            "as they disagree: restore it, or sear",
        ),
        (
            "update trial_params set distribution_json = 'x'",
            r"study.db is damaged \(Expecting value.*: restor",
        ),
        ("update trials set state = 'DONE'", "study.db.*DONE.*restore it"),
        ("delete from trials", "study.db does not hold the trials of .*: restore it, or search in another"),
    ],
)
def test_tune_with_changed_values_in_the_study_is_refused(search, change, message):
    out, repeat = search
    with sqlite3.connect(out / "study.db") as connection:
        connection.execute(change)
    assert_refused(repeat, message)


def test_tune_with_a_missing_or_zeroed_study_is_refused(search):
    out, repeat = search
    content = (out / "study.db").read_bytes()
    for page in range(4096, len(content), 4096):
        (out / "study.db").write_bytes(content[:page] + bytes(4096) + content[page + 4096 :])
        assert_refused(repeat, r"study\.db.*restore it")
    (out / "study.db").unlink()
    assert_refused(repeat, "study.db does not hold the trials of")


def test_tune_and_compare_with_damaged_settings_are_refused(search, small, tmp_path):
    out, repeat = search

    def use():
        return compare(small.folder, tmp_path / "out", models=["sasrec"], tuned={"sasrec": str(out)})

    content = (out / "best.yaml").read_bytes()
    (out / "best.yaml").write_bytes(raise_digit(content, b"learning_rate: 0."))
    assert_refused(use, "best.yaml is damaged .*: repeat the search, which writes it again")
    repeat()
    assert (out / "best.yaml").read_bytes() == content
    for settings in ({"model": "sasrec"}, yaml.safe_load((out / "settings.json").read_text()) | {"seed": 5}):
        (out / "settings.json").write_text(json.dumps(settings | {"checksum": "0"}))
        assert_refused(use, "settings.json is damaged .*: restore it")
        assert_refused(repeat, "settings.json is damaged .*: restore it")
