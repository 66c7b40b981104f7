"""The commands and snippets of README and docs run as documented."""

from __future__ import annotations

import gzip
import re
import shlex
import sys
from functools import partial
from pathlib import Path
from pkgutil import resolve_name

import polars as pl
import pytest

import hafvt
from hafvt.cli import COMMANDS, main, make_app, normalize_arguments, take_option
from hafvt.data.sources.demo import generate_world
from hafvt.models import MODELS

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
from figures import BLOCK, FIGURES, replace_figures  # noqa: E402

DOCS = [path for path in sorted((ROOT / "docs").rglob("*.md")) if path.parent.name != "_generated"]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
TEXTS = [path.read_text(encoding="utf-8") for path in PAGES]
README = TEXTS[0]
BLOCKS = [block for text in TEXTS for block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)]
SMALL = ["--epochs", "1", "--params.max_length", "6"]


def lines_of(block: str) -> list[list[str]]:
    """Returns the hafvt commands of a block as arguments."""
    typed = block.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in typed if line.startswith("hafvt ")]


def documented() -> list[list[str]]:
    """Returns all commands of the README and of the functions' examples."""
    results = [arguments for _, block in BLOCKS for arguments in lines_of(block)]
    for command in COMMANDS.values():
        results += lines_of(
            "\n".join(re.findall(r"Example: (.+)", resolve_name(command.target).__doc__ or ""))
        )
    return results


@pytest.mark.parametrize("arguments", documented(), ids=" ".join)
def test_documented_command_parses(arguments):
    typed = normalize_arguments(arguments)
    for option in ("--config", "--model-module"):  # these are read before the others
        typed, _ = take_option(typed, option, "a value")
    make_app(arguments[0]).parse_args(typed, exit_on_error=False, print_error=False)


@pytest.fixture
def project(tmp_path, shared_data):
    """A working folder that holds what 120 users did in the real data, in place of all of it."""
    names = {"movielens-posters": "movielens-1m", "amazon-food-kitchen": "amazon-food-kitchen"}
    for source in (shared_data / name for name in names):
        folder = tmp_path / "raw" / names[source.name]
        folder.mkdir(parents=True)
        log = pl.read_csv(source / "interactions.csv.gz", infer_schema=False)
        log = log.filter(pl.col("user_id").is_in(log["user_id"].unique(maintain_order=True)[:120].implode()))
        items = pl.read_csv(source / "items.csv", infer_schema=False)
        items = items.filter(pl.col("item_id").is_in(log["item_id"].unique().implode()))
        text = log.write_csv().encode()
        (folder / "interactions.csv").write_bytes(text)
        (folder / "interactions.csv.gz").write_bytes(gzip.compress(text))
        items.select(pl.exclude("image")).write_csv(folder / "items.csv")
    return tmp_path


def quick(step: list[str]) -> list[str]:
    """Return a command with a training shortened to one epoch of short histories."""
    if step[0] != "train" or not MODELS[step[1]].has_weights:
        return step
    if "--epochs" in step:
        position = step.index("--epochs")
        step = step[:position] + step[position + 2 :]
    return [*step, *SMALL]


def block_with(text: str) -> str:
    (block_text,) = [block for _, block in BLOCKS if text in block]
    return block_text


@pytest.fixture
def shops(tmp_path, monkeypatch):
    """The working folder, with the tables and pictures that README and the tutorial of own tables name."""
    interactions, items = generate_world(tmp_path / "world", users=150, items_per_shop=40)
    table = pl.read_csv(items, infer_schema=False)
    domains = {"garments": "books", "homeware": "games"}
    places = table.with_row_index("place").group_by("domain", maintain_order=True).agg("item_id")
    ids = {
        item_id: f"{'ab'[shop]}{100 * (shop + 1) + place}"
        for shop, items_of_shop in enumerate(places["item_id"])
        for place, item_id in enumerate(items_of_shop.to_list())
    }
    log = pl.read_csv(interactions, infer_schema=False)
    users = {user: f"u{number}" for number, user in enumerate(log["user_id"].unique(maintain_order=True), 1)}
    log.with_columns(pl.col("item_id").replace(ids), pl.col("user_id").replace(users)).write_csv(
        tmp_path / "interactions.csv"
    )
    table.with_columns(pl.col("item_id").replace(ids), pl.col("domain").replace(domains)).write_csv(
        tmp_path / "items.csv"
    )
    (tmp_path / "world" / "pictures").rename(tmp_path / "pictures")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def short_training(monkeypatch):
    """Trainings of one epoch with short histories."""
    train = hafvt.train

    def train_one_epoch(*positional, **options):
        return train(*positional, **{**options, "epochs": 1, "params": {"max_length": 6}})

    monkeypatch.setattr(hafvt, "train", train_one_epoch)
    monkeypatch.setattr("hafvt.experiments.fit.train", train_one_epoch)


def run_python(page: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Run the Python of a page, block by block, and return what each block prints."""
    text = (ROOT / page).read_text(encoding="utf-8")
    outputs = []
    for block in re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S):
        exec(compile(block, page, "exec"), {})
        outputs.append(capsys.readouterr().out)
    return outputs


@pytest.mark.slow
@pytest.mark.usefixtures("shops", "short_training")
def test_readme_python_on_own_frames_prints_recommendations_and_similar_items(capsys):
    assert len(re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)[0].splitlines()) <= 7
    (output,) = run_python("README.md", capsys)
    assert "rank" in output
    assert "a1" in output
    for step in lines_of(block_with("hafvt fit interactions.csv items.csv --out shop\nhafvt rec"))[1:-1]:
        assert main(step) == 0, step


@pytest.mark.slow
@pytest.mark.usefixtures("short_training")
def test_tutorial_of_own_tables_runs_as_printed(shops, capsys):
    text = (ROOT / "docs" / "tutorials" / "your_tables.md").read_text(encoding="utf-8")
    Path("histories.jsonl").write_text(block_with('"exclude": ["b206"]}'), encoding="utf-8")
    for _, block in re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S):
        for step in lines_of(block):
            if step[0] != "serve":
                assert main(quick(step)) == 0, step
    assert "attention in %" in capsys.readouterr().out
    fitted, stepwise = run_python("docs/tutorials/your_tables.md", capsys)
    assert "hafvt serve shop" in fitted
    assert "books" in stepwise
    top = pl.read_parquet(shops / "top.parquet")
    assert top.group_by("user_id", "domain", maintain_order=True).len().rows() == [
        ("u1", "books", 10),
        ("u2", "games", 5),
    ]
    assert (shops / "shop" / "run" / "report.html").exists()
    assert (shops / "runs" / "hafvt" / "report.html").exists()


def test_documented_data_frames_are_fitted_and_returned(tmp_path, monkeypatch):
    interactions, items = generate_world(tmp_path, users=60, items_per_shop=30)
    monkeypatch.chdir(tmp_path)
    log = pl.read_csv(interactions).rename({"user_id": "customer"}).with_columns(qty=1)
    log.write_csv("orders.csv")
    pl.read_csv(items).write_csv("articles.csv")
    monkeypatch.setattr(hafvt, "fit", partial(hafvt.fit, model="popularity"))
    names = {}
    exec(compile(block_with('pd.read_csv("articles.csv")'), "own_data.md", "exec"), names)
    assert set(names["top"]["user_id"]) == set(log["customer"])
    assert set(names["similar"]["item_id"]) <= set(pl.read_csv("articles.csv")["item_id"])


@pytest.mark.slow
def test_tutorial_of_two_shops_runs_as_printed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tutorials" / "two_shops.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.M | re.S)
    commands = [step for _, block in blocks for step in lines_of(block)]
    assert [step[0] for step in commands] == ["demo", "info", "serve"]
    assert main([*commands[0], "--users", "150", "--items-per-shop", "40"]) == 0
    assert main(commands[1]) == 0
    capsys.readouterr()
    (output,) = run_python("docs/tutorials/two_shops.md", capsys)
    assert "attention in %" in output
    for folder in re.findall(r"^\| `(demo/[\w/]+)` \|", text, flags=re.M):
        assert (tmp_path / folder).is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["movies", "amazon"])
def test_documented_real_data_steps_succeed(project, name, monkeypatch, capsys):
    monkeypatch.chdir(project)
    for step in lines_of(block_with(f"--out data/{name}")):
        if step[0] == "fetch":
            continue
        assert main(quick(step)) == 0, step
    assert "NDCG@10" in capsys.readouterr().out
    assert (project / "runs" / f"{name}-hafvt" / "report.html").exists()
    if name == "movies":
        recommending()
        output = capsys.readouterr().out
        assert "attention in %" in output
        top = pl.read_parquet(project / "top.parquet")
        assert top.group_by("user_id", "domain", maintain_order=True).len().rows() == [
            ("u1", "drama", 10),
            ("u2", "action", 5),
        ]


def recommending():
    """Does what the section about recommending says, with the run that is there."""
    Path("histories.jsonl").write_text(block_with('"260", "1270"]}'), encoding="utf-8")
    for step in lines_of(block_with("recommend runs/movies-hafvt")):
        assert main(step) == 0, step


def test_readme_has_at_most_600_words():
    assert len(README.split()) <= 600


@pytest.mark.parametrize(
    "path", [path for path in PAGES if BLOCK.search(path.read_text(encoding="utf-8"))], ids=str
)
def test_figures_equal_the_committed_results(path):
    text = path.read_text(encoding="utf-8")
    assert replace_figures(text) == text, "run make figures"


def test_all_figures_are_in_a_page():
    assert {name for text in TEXTS for name in BLOCK.findall(text)} == set(FIGURES)


def test_generated_reference_has_every_command_model_and_route():
    sys.path.insert(0, str(ROOT / "docs"))
    import generate

    commands = generate.command_line()
    assert re.findall(r"^## (.+)$", commands, flags=re.M) == list(COMMANDS)
    assert "[required]" in commands
    hyperparameters = generate.hyperparameters()
    assert re.findall(r"^## (.+)$", hyperparameters, flags=re.M) == list(MODELS)
    assert "| `temperature` | float | a number from 0.001 to 100 | `0.1` |" in hyperparameters
    assert "| `POST /recommend` |" in generate.http()


def test_python_reference_names_every_public_name():
    page = (ROOT / "docs" / "reference" / "python.md").read_text(encoding="utf-8")
    assert set(re.findall(r":: hafvt\.(\w+)$", page, flags=re.M)) == set(hafvt.__all__)


def test_main_is_the_entry_point_of_the_program(capsys):
    assert main(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out
