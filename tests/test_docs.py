"""The page of models lists them all, and the example of docs/how-to/extend.md adds a model that works."""

from __future__ import annotations

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import hafvt
from hafvt.models import MODELS, ModelEntry

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "explanation" / "models.md").read_text(encoding="utf-8")
SECTION = (ROOT / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8").split("\n## ")[1]
FILE, LINE = re.findall(r"^```python\n(.*?)^```", SECTION, flags=re.MULTILINE | re.DOTALL)


def test_models_page_lists_every_model_and_switch():
    names = re.findall(r"^\| `([\w-]+)` \|", TEXT, flags=re.MULTILINE)
    assert names == list(MODELS)
    for models, field in re.findall(r"^\| ((?:`\w+`,? ?)+)`?--params\.(\w+) ", TEXT, flags=re.MULTILINE):
        for name in re.findall(r"\w+", models):
            assert field in MODELS[name].config_class.model_fields


def test_documented_model_added_by_one_file_and_one_line_trains(make_small, tmp_path, monkeypatch):
    assert len(FILE.splitlines()) < 60
    assert len(LINE.splitlines()) == 1
    path = tmp_path / "fading.py"
    path.write_text(FILE, encoding="utf-8")
    spec = spec_from_file_location("hafvt.models.fading", path)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "hafvt.models.fading", module)
    spec.loader.exec_module(module)
    added = eval(f"{{{LINE}}}", {"ModelEntry": ModelEntry})
    for name, entry in added.items():
        monkeypatch.setitem(MODELS, name, entry)
    small = make_small(users=200)
    assert list(added) == ["fading"]
    hafvt.train("fading", small, tmp_path / "run", epochs=8, batch_size=16, learning_rate=0.03)
    hafvt.train("popularity", small, tmp_path / "popularity")
    results = [hafvt.evaluate(tmp_path / name).results for name in ("run", "popularity")]
    learnt, counted = (result["overall"]["MRR"].value for result in results)
    assert learnt > 1.5 * counted
