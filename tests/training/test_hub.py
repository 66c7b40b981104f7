"""A run goes to the Hub without anything of its users, and comes from there as untrusted input."""

from __future__ import annotations

import json
import sys

import polars as pl
import pytest
import yaml

pytest.importorskip("huggingface_hub")

import huggingface_hub
from huggingface_hub import constants

import hafvt
from hafvt.cli import main
from hafvt.errors import HafvtError
from hafvt.files import write_json
from hafvt.training import hub_download
from hafvt.training.train import train
from tests.conftest import SMALL_PARAMS
from tests.hub import Hub

NAME = "owner/shop"


@pytest.fixture(scope="module")
def run(training_data, tmp_path_factory):
    """Returns a small HAF-VT with test results, in a folder whose path must not be sent."""
    folder = tmp_path_factory.mktemp("secret-place") / "run"
    return train("hafvt", training_data, folder, params=SMALL_PARAMS["hafvt"], epochs=1, batch_size=8)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Returns an empty Hub."""
    hub = Hub(tmp_path / "downloads")
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "cache"))
    return hub


def pushed_files(hub: Hub) -> dict[str, bytes]:
    """Returns the files of the last commit."""
    return hub.repositories[NAME][1]["main"][-1]


def change(hub: Hub, name: str, edit) -> None:
    """Commits an edited JSON file with a correct checksum."""
    files = dict(pushed_files(hub))
    content = json.loads(files[name])
    content.pop("checksum")
    edit(content)
    path = hub.folder.with_name("edited.json")
    write_json(path, content, checksum=True)
    files[name] = path.read_bytes()
    hub.repositories[NAME][1]["main"].append(files)


def test_pushed_run_recommends_the_same_from_the_hub(run, hub):
    pushed = hafvt.push(run, NAME)
    assert 'hafvt.Recommender.open("hf://owner/shop") opens it' in str(pushed)
    history = [["i3", "i10", "i17"]]
    original = hafvt.Recommender.open(run)
    recommender = hafvt.Recommender.open(f"hf://{NAME}")
    assert recommender.recommend(history, "d0") == original.recommend(history, "d0")
    assert recommender.similar_items(["i3"], by="title") == original.similar_items(["i3"], by="title")
    num_downloads = len(hub.downloads)
    assert hafvt.Run.open(f"hf://{NAME}").data.is_catalog
    assert len(hub.downloads) == num_downloads


def test_pushed_files_have_no_users_and_no_paths(run, hub, training_data):
    hafvt.push(run, NAME, license="apache-2.0")
    files = pushed_files(hub)
    others = {"ranks.parquet", "report.html", "checkpoint/last.safetensors", "tracking.json"}
    assert not others & set(files)
    for name, content in files.items():
        assert str(training_data.folder).encode() not in content, name
        assert b"secret-place" not in content, name
    for user in training_data.user_ids.to_list():
        assert all(f'"{user}"'.encode() not in content for content in files.values())
    assert len(pl.read_parquet(files["catalog/users.parquet"])) == 0
    _, metadata, text = files["README.md"].decode().split("---\n", 2)
    card = yaml.safe_load(metadata)
    assert card["license"] == "apache-2.0"
    assert card["model-index"][0]["results"][0]["metrics"][0]["type"] == "mrr"
    assert 'hafvt.Recommender.open("hf://owner/shop")' in text
    assert hub.repositories[NAME][0]  # private


def test_command_lists_files_before_it_sends_them(run, hub, training_data, capfd):
    assert main(["push", str(run.folder), NAME, "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert "model.safetensors" in printed.err
    assert "nothing was sent" in printed.out
    assert hub.repositories == {}
    assert main(["push", str(run.folder), NAME]) == 0
    assert "wrote https://hub.test/owner/shop" in capfd.readouterr().out
    assert main(["recommend", f"hf://{NAME}", "--history", "i3", "--domain", "d0"]) == 0
    assert main(["evaluate", f"hf://{NAME}", "--data", str(training_data.folder)]) == 0
    assert "MRR" in capfd.readouterr().out


def test_push_again_removes_files_of_the_earlier_run_and_keeps_others(run, hub):
    hub.repositories[NAME] = (True, {"main": [{"model1.safetensors": b"old", "paper.pdf": b"mine"}]})
    hafvt.push(run, NAME)
    assert "model1.safetensors" not in pushed_files(hub)
    assert pushed_files(hub)["paper.pdf"] == b"mine"


def test_push_to_a_public_repository_needs_the_option(run, hub):
    hub.repositories[NAME] = (False, {"main": [{}]})
    with pytest.raises(HafvtError, match="owner/shop is public: add --public"):
        hafvt.push(run, NAME)
    hafvt.push(run, NAME, public=True)
    assert "model.json" in pushed_files(hub)


def test_branch_and_commit_of_the_hub_are_opened_and_stay_available_without_a_network(run, hub):
    hafvt.push(run, NAME)
    pushed = hafvt.push(run, NAME, revision="v2", license="mit")
    commit = pushed.url.rpartition("/")[2]
    assert 'open("hf://owner/shop@v2")' in str(pushed)
    for revision in ("v2", commit):
        hafvt.Recommender.open(f"hf://{NAME}@{revision}")
    hub.is_down = True
    for revision in ("v2", commit):
        hafvt.Recommender.open(f"hf://{NAME}@{revision}")
    with pytest.raises(HafvtError, match=r"hf://owner/shop: the Hub cannot be reached \(ConnectionError"):
        hafvt.Recommender.open(f"hf://{NAME}")


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("hf://owner", "is no address: write hf://owner/name"),
        ("hf://owner/other", "no such repository, or a private one"),
        ("hf://owner/shop@v9", "it has no such revision"),
    ],
)
def test_address_without_a_run_is_refused_in_one_line(run, hub, address, reason):
    hafvt.push(run, NAME)
    with pytest.raises(HafvtError, match=reason):
        hafvt.Recommender.open(address)


@pytest.mark.parametrize(
    ("file", "edit"),
    [
        ("model.json", lambda content: content.update(sha256={})),
        ("model.json", lambda content: content["training"]["features"].update({"../../x": "0"})),
        ("model.json", lambda content: content["config"].update(modalities=["id", "../x"])),
        ("model.json", lambda content: content.update(dataset="another")),
        ("catalog/manifest.json", lambda content: content.update(image_root="/etc")),
    ],
)
def test_run_of_the_hub_that_reads_other_files_is_refused(run, hub, file, edit):
    hafvt.push(run, NAME)
    change(hub, file, edit)
    with pytest.raises(HafvtError, match="it is not as hafvt push writes it"):
        hafvt.Recommender.open(f"hf://{NAME}")


def test_dataset_in_a_run_of_the_hub_is_ignored(run, hub, training_data):
    hafvt.push(run, NAME)
    change(hub, "model.json", lambda content: content.update(data=str(training_data.folder)))
    opened = hafvt.Run.open(f"hf://{NAME}")
    assert opened.data.is_catalog
    with pytest.raises(HafvtError, match="is a run without dataset: name one with --data"):
        hafvt.evaluate(opened)
    with pytest.raises(HafvtError, match="no histories of users: name a dataset with --data"):
        hafvt.recommend(opened, user="u0", domain="d0")


def test_damaged_and_large_runs_of_the_hub_are_refused(run, hub, monkeypatch):
    hafvt.push(run, NAME)
    files = dict(pushed_files(hub))
    weights = files["model.safetensors"]
    files |= {"model.safetensors": weights[:-1] + b"x", "weights.pickle": b"no", "../escape": b"no"}
    hub.repositories[NAME][1]["main"].append(files)
    with pytest.raises(HafvtError, match=r"model\.safetensors is damaged"):
        hafvt.Recommender.open(f"hf://{NAME}")
    assert not {"weights.pickle", "../escape"} & set(hub.downloads)
    monkeypatch.setattr(hub_download, "MAX_RUN_BYTES", 1000)
    hub.repositories[NAME][1]["main"].append({**files, "README.md": b"other"})
    with pytest.raises(HafvtError, match="has more than 1,000 bytes: push the run again"):
        hafvt.Recommender.open(f"hf://{NAME}")
    hub.repositories[NAME][1]["main"].append({"README.md": b"other"})
    with pytest.raises(HafvtError, match="holds no run of hafvt: write one with hafvt push"):
        hafvt.Recommender.open(f"hf://{NAME}")


def test_missing_client_names_the_extra(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: hafvt.push(run, NAME), lambda: hafvt.Recommender.open(f"hf://{NAME}")):
        with pytest.raises(HafvtError, match=r"pip install 'hafvt\[hub\]'"):
            call()


def test_repository_without_owner_is_refused(run):
    with pytest.raises(HafvtError, match="write owner/name"):
        hafvt.push(run, "shop")


def test_training_starts_from_a_run_of_the_hub(run, hub, training_data, tmp_path):
    hafvt.push(run, NAME)
    started = train("hafvt", training_data, tmp_path / "run", epochs=1, init_from=f"hf://{NAME}", test=False)
    assert started.config == run.config
