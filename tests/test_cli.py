"""The command line: arguments, output and exit codes."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from functools import wraps
from importlib.metadata import version
from pkgutil import resolve_name

import pytest

import hafvt
from hafvt import cli
from hafvt.cli import COMMANDS, main
from hafvt.data.sources.demo import generate_world


@pytest.fixture
def arguments_of(monkeypatch):
    """Return a function that runs a command line and returns the arguments that its function receives."""

    def parse(line):
        received = {}

        def resolve(target):
            function = resolve_name(target)

            @wraps(function)
            def record(*positional, **options):
                received.update(inspect.signature(function).bind(*positional, **options).arguments)

            return record

        monkeypatch.setattr(cli, "resolve_name", resolve)
        monkeypatch.setitem(COMMANDS, line[0], COMMANDS[line[0]]._replace(format_result=str))
        assert main(line) == 0, line
        return received

    return parse


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("prepare --interactions a.csv --min-per-domain 3", {"interactions": "a.csv", "min_per_domain": 3}),
        (
            "prepare a.csv b.csv out --min-per-domain=3",
            {"interactions": "a.csv", "items": "b.csv", "out": "out"},
        ),
        ("train hafvt d --out o --resume", {"model": "hafvt", "data": "d", "out": "o", "resume": True}),
        ("train hafvt --data d --out o --resume false --seed 1", {"data": "d", "resume": False, "seed": 1}),
        ("train hafvt d o --params.id_width 8", {"params": {"id_width": 8}}),
        (
            "train hafvt d o --params modalities=[id,title] dropout=0.1",
            {"params": {"modalities": ["id", "title"], "dropout": 0.1}},
        ),
        (
            "encode d --precomputed image=a-b.npz title=c=d.npz",
            {"precomputed": {"image": "a-b.npz", "title": "c=d.npz"}},
        ),
        ("encode d --encoders words=hashed:64", {"encoders": {"words": "hashed:64"}}),
        ("prepare a --columns user_id=customer --out x", {"columns": {"user_id": "customer"}, "out": "x"}),
        ("recommend run --history 007 null é[ --k 3", {"history": ["007", "null", "é["], "k": 3}),
        ("recommend run --history=aa01", {"history": ["aa01"]}),
        ("recommend run --history --k 3", {"history": [], "k": 3}),
        ("recommend run --user null", {"user": "null"}),
        ("compare d o --models a b", {"models": ["a", "b"]}),
    ],
)
def test_command_line_typed_arguments_reach_the_function(line, expected, arguments_of):
    received = arguments_of(line.split())
    assert {name: received.get(name) for name in expected} == expected


def test_command_line_ids_of_any_look_stay_text(arguments_of):
    ids = [
        "007",
        "null",
        "1e5",
        "[a",
        "{a: 1}",
        "a: b",
        "",
        " a ",
        "é\U0001f600",
        "-5",
        "\\n\x01\x85\u2028'\"",
    ]
    for item_id in ids:
        received = arguments_of(["recommend", "run", "--user", item_id, "--history", item_id, *ids])
        assert received["history"] == [item_id, *ids]
        assert received["user"] == item_id


@pytest.mark.parametrize(
    "line", ["train sasrec d o --epochs 1.5", "info d --color red", "info", "recommend r --k x", "nothing"]
)
def test_command_line_wrong_option_is_refused_in_one_line(line, capsys):
    assert main(line.split()) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "--help" in error


def test_command_without_a_required_argument_says_what_it_is(capsys):
    for line, message in (
        ("evaluate", "RUN is missing: the folder that train wrote. See hafvt evaluate --help"),
        ("train sasrec", "DATA is missing: a dataset folder, written by prepare;"),
        ("train sasrec data out --seed", "--seed requires an argument"),
    ):
        assert main(line.split()) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")


def test_train_help_lists_hyperparameters_without_importing_torch():
    program = ["import sys", "from hafvt.cli import main", "main(['train', 'sasrec', '--help'])"]
    code = "\n".join([*program, "print('torch' in sys.modules)"])
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert re.search(r"--params\.dropout.*from 0 to", output)
    assert output.strip().endswith("False")


@pytest.mark.parametrize("name", COMMANDS)
def test_command_help_shows_an_example(name, capsys):
    assert main([name, "--help"]) == 0
    text = capsys.readouterr().out
    assert f"hafvt {name}" in text
    assert re.search(r"Example:\s+hafvt", text), "no example"
    assert not re.search(r"--\w+_\w+", text), "an option is spelt with an underscore"


@pytest.mark.slow
def test_command_line_main_job_writes_reports(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate_world("world", users=120, items_per_shop=40)
    steps = [
        "prepare --interactions world/interactions.csv --items world/items.csv --min-per-domain 3 --out data",
        "info data",
        "encode data --image classic --title classic",
        "train hafvt data --out run --epochs 2 --params.id_width 8",
        "train sasrec data --out sas --epochs 1 --params.width 8",
        "evaluate run --candidates all",
        "evaluate run --split valid",
    ]
    for step in steps:
        assert main(step.split()) == 0, step
    out = capsys.readouterr().out
    assert "MRR" in out
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert set(results["results"]["overall"]) == {"MRR", "NDCG@5", "NDCG@10", "HR@1", "HR@5", "HR@10"}
    for folder in ("run", "run/test-all", "run/valid", "sas"):
        assert (tmp_path / folder / "report.html").stat().st_size > 10_000
    assert main(["train", "sasrec", "--data", "data", "--out", "run"]) == 1
    error = capsys.readouterr().err
    assert "holds a run already" in error
    assert "Traceback" not in error
    assert main(["train", "sasrec", "--data", "nowhere", "--out", "other"]) == 1


def test_config_file_gives_options_and_a_flag_overrides_them(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    generate_world("world", users=60, items_per_shop=30)
    lines = ["interactions: world/interactions.csv", "items: world/items.csv", "out: data", "last: 9"]
    (tmp_path / "prepare.yaml").write_text("\n".join(lines))
    assert main(["prepare", "--config", "prepare.yaml", "--last", "7"]) == 0
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert manifest["settings"]["last"] == 7


ALIASES = "\n".join(f"a{n}: &a{n} [{','.join([f'*a{n - 1}' if n else 'x'] * 9)}]" for n in range(7))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ALIASES, "its lists and aliases have more than 100,000 values: write a shorter one"),
        ("history: &a [*a]", "more than 100,000 values"),
        ("[" * 20_000, "it is not YAML (too many nested brackets): correct it"),
        ("history: [1\nk: 3", "it is not YAML (line 2, column 2: expected ',' or ']', but got ':')"),
        ("- 1", "it holds no options: write lines such as seed: 1"),
        ("? [a, b]\n: 1", "an option's name is not a text: write lines such as seed: 1"),
        (
            "k: !!python/name:os.system",
            "line 1 has the tag tag:yaml.org,2002:python/name:os.system: remove it",
        ),
        ("k: 3\nhistory: [!!binary aGk=]", "line 2 has the tag tag:yaml.org,2002:binary: remove it"),
        ("run: x\nk: !size 3", "line 2 has the tag !size: remove it"),
        ("k: [1, 2]", "Invalid value for [k] from --config"),
        ("k: 1e20", "give a whole number"),
        ("kk: 3", 'Unknown option: "[kk]" from --config'),
        (b"\xff", "invalid start byte): save it as UTF-8"),
        (None, "no file of at most 1,000,000 bytes is there: check the path"),
        ("#" * 1_000_001, "no file of at most 1,000,000 bytes is there"),
        ("k: 3\nk: 4", "an option is there twice: keep one"),
    ],
)
def test_config_file_that_is_wrong_is_refused_in_one_line(content, message, tmp_path, capsys):
    file = tmp_path / "options.yaml"
    if content is not None:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["recommend", "run", "--config", str(file)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_config_file_values_are_texts_as_on_the_command_line(arguments_of, tmp_path):
    (tmp_path / "a.yaml").write_text("history: [007, null, 1e5, yes]\nuser: null\ndomain: 'null'\nk: 3\n")
    received = arguments_of(["recommend", "run", "--config", str(tmp_path / "a.yaml")])
    assert received == {"run": "run", "history": ["007", "null", "1e5", "yes"], "domain": "null", "k": 3}
    (tmp_path / "b.yaml").write_text(
        "model: hafvt\nparams:\n  modalities:\n  - id\n  dropout: 0.1\nresume: true\npatience: ~\n"
    )
    received = arguments_of(["train", "--config", str(tmp_path / "b.yaml"), "--data", "d", "--out", "o"])
    assert received["params"] == {"modalities": ["id"], "dropout": 0.1}
    assert received["resume"] is True
    assert "patience" not in received


def test_package_exports_every_command():
    for name in hafvt.__all__:
        assert getattr(hafvt, name).__name__ == name
        assert name in dir(hafvt)
    assert hafvt.__version__ == version("hafvt")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        hafvt.nothing  # noqa: B018


def without_torch(code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python where torch, and what stands on it, cannot be imported."""
    blocked = ("torch", "transformers", "sentence_transformers")
    code = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n{code}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_commands_without_torch_start(small):
    modules = "hafvt, hafvt.cli, hafvt.inference.recommender, hafvt.inference.scorer, hafvt.inference.catalog"
    assert without_torch(f"import {modules}\nhafvt.Recommender, hafvt.HafvtError").stderr == ""
    for arguments, text in ((["--help"], "Train a model"), (["info", str(small.folder)], "40")):
        ended = without_torch(f"from hafvt.cli import main\nsys.exit(main({arguments}))")
        assert ended.returncode == 0, ended.stderr
        assert text in ended.stdout


@pytest.mark.parametrize("arguments", [["train", "hafvt", "d", "o"], ["evaluate", "--help"]])
def test_commands_that_need_torch_fail_in_one_line(arguments):
    ended = without_torch(f"from hafvt.cli import main\nsys.exit(main({arguments}))")
    assert ended.returncode == 1
    assert ended.stderr == f"hafvt {arguments[0]}: this needs torch: pip install torch\n"


@pytest.mark.parametrize("own", [None, "ACTIVE"])
def test_import_sets_passive_openmp_waiting_unless_set(own, monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    code = "import os, sys, hafvt\nassert 'torch' not in sys.modules\nprint(os.environ['OMP_WAIT_POLICY'])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == (own or "PASSIVE")


def test_main_interrupted_says_how_to_continue(monkeypatch, capsys):
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hafvt.data.info.Dataset.open", interrupted)
    assert main(["info", "data"]) == 130
    assert "start the command again" in "".join(capsys.readouterr())
