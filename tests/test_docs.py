"""The page of models lists them all, and the model of docs/how-to/extend.md works from its own module."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

import hafvt
from hafvt.cli import main
from hafvt.errors import HafvtError
from hafvt.evaluation.results import read_results
from hafvt.models import MODELS, import_models

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "explanation" / "models.md").read_text(encoding="utf-8")
SECTION = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8").split("\n## ")[1]
FILE = re.findall(r"^```python\n(.*?)^```", SECTION, flags=re.MULTILINE | re.DOTALL)[0]


def test_models_page_lists_every_model_and_switch():
    names = re.findall(r"^\| `([\w-]+)` \|", TEXT, flags=re.MULTILINE)
    assert names == list(MODELS)
    for models, field in re.findall(r"^\| ((?:`\w+`,? ?)+)`?--params\.(\w+) ", TEXT, flags=re.MULTILINE):
        for name in re.findall(r"\w+", models):
            assert field in MODELS[name].config_class.model_fields


@pytest.fixture
def fading_folder(tmp_path, monkeypatch):
    """A folder with the documented model, which is the current folder."""
    (tmp_path / "fading.py").write_text(FILE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    models = dict(MODELS)
    yield tmp_path
    MODELS.clear()
    MODELS.update(models)
    sys.modules.pop("fading", None)


def test_documented_model_of_an_own_module_trains_and_is_opened(make_small, fading_folder, capfd):
    small = make_small(users=200)
    module = ["--model-module", "fading"]
    words = ["train", "fading", str(small.folder), "--out", "run", "--epochs", "8", "--batch-size", "16"]
    assert main([*words, "--learning-rate", "0.03", "--params.width", "32", *module]) == 0
    assert main(["train", "popularity", str(small.folder), "--out", "popularity"]) == 0
    for name in ("run", "popularity"):
        assert main(["evaluate", name, *module]) == 0
    assert main(["recommend", "run", "--history", "i3", "--domain", "d0", "--model-module=fading"]) == 0
    learnt, counted = (read_results(Path(name))["overall"]["MRR"].value for name in ("run", "popularity"))
    assert learnt > 1.5 * counted


def test_run_of_an_own_model_whose_module_is_not_imported_says_what_to_do(make_small, fading_folder):
    entry = MODELS["gru4rec"]
    MODELS["mine"] = entry
    run = hafvt.train("mine", make_small(), fading_folder / "run", params={"width": 8}, epochs=1)
    assert hafvt.evaluate(run).model == "mine"
    del MODELS["mine"]
    with pytest.raises(HafvtError, match=r"is a run of the model 'mine', which is not in .* --model-module"):
        hafvt.Recommender.open(run)
    with pytest.raises(HafvtError, match=r"no model 'mine': choose one of .* with --model-module"):
        hafvt.train("mine", make_small(), fading_folder / "other")


def test_own_model_trains_in_processes_of_its_own(make_small, fading_folder):
    import_models("fading")
    run = hafvt.train("fading", make_small(), fading_folder / "run", epochs=1, devices=2)
    assert run.name == "fading"


@pytest.mark.parametrize(
    ("text", "reason"), [(None, "ModuleNotFoundError"), ("1 / 0", "ZeroDivisionError"), ("(", "SyntaxError")]
)
def test_model_module_that_cannot_be_imported_is_refused(fading_folder, text, reason, capfd):
    if text is not None:
        (fading_folder / "broken_models.py").write_text(text)
    assert main(["train", "hafvt", "data", "--out", "run", "--model-module", "broken_models"]) == 2
    error = capfd.readouterr().err
    assert error.startswith(f"hafvt train: --model-module broken_models cannot be imported ({reason}")
    assert error.count("\n") == 1
