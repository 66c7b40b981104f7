"""`hafvt push`: send a run to the Hugging Face Hub, without histories of users and paths of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from hafvt.data.dataset import RUN_CATALOG
from hafvt.errors import ArgumentError, HafvtError, warn
from hafvt.files import explained_read_errors, read_json, write_json
from hafvt.progress import console
from hafvt.settings import Folder, check_arguments
from hafvt.training.hub_download import (
    REPOSITORY,
    RUN_FILE,
    HubAddress,
    explained_hub_errors,
    hub_client,
    settings_without_paths,
    without_paths,
)
from hafvt.training.model_card import model_card
from hafvt.training.run import Run, open_run


@dataclass(frozen=True)
class PushedRun:
    """What `push` has sent, or would send.

    Attributes:
        repository: of the Hub.
        sizes: bytes of each file.
        url: of the commit; "" for a dry run.
        address: by which the run is opened.
    """

    repository: str
    sizes: dict[str, int]
    url: str = ""
    address: str = ""

    def __str__(self) -> str:
        if not self.url:
            return "nothing was sent, as --dry-run is set"
        return f'wrote {self.url}\nhafvt.Recommender.open("{self.address}") opens it'


@check_arguments
def push(
    run: Folder,
    repository: str,
    *,
    public: bool = False,
    license: str | None = None,
    revision: str = "main",
    dry_run: bool = False,
) -> PushedRun:
    """Send a run to a repository of the Hugging Face Hub, with a model card.

    The repository gets the weights, the settings, the metrics, the catalog of items with their training
    counts and vectors, and a README.md that is made from the run. Histories of users, ids of users, ranks of
    single targets, pictures, reports, checkpoints and added items stay here. The files are listed before
    they are sent, in one commit. Log in with hf auth login, or set HF_TOKEN.

    Example: hafvt push runs/hafvt owner/movies --license apache-2.0

    Args:
        run: folder of a finished run.
        repository: name of the repository, owner/name; it is created if it does not exist.
        public: create a public repository instead of a private one, or send to one that is public.
        license: name of the license for the model card, such as apache-2.0; default: none is stated.
        revision: branch to write to.
        dry_run: list the files, but send nothing.

    Raises:
        HafvtError: the run is not finished, the name is wrong, or the Hub refuses.
    """
    if not REPOSITORY.fullmatch(repository):
        raise ArgumentError(f"REPOSITORY is {repository[:80]!r}: write owner/name")
    opened = open_run(run, models=())
    contents = run_files(opened, repository, license or "")
    sizes = {
        name: content.stat().st_size if isinstance(content, Path) else len(content)
        for name, content in contents.items()
    }
    for name, size in sizes.items():
        console.print(f"{size:>14,}  {name}", highlight=False, markup=False)
    if (opened.folder / "added_items").exists():
        warn(f"the added items of {run} are not sent: add them again where the run is used")
    if dry_run:
        return PushedRun(repository, sizes)
    hub = hub_client()
    with explained_hub_errors(f"hf://{repository}"):
        client = hub.HfApi()
        client.create_repo(repository, private=not public, exist_ok=True)
        if not public and not client.model_info(repository).private:
            raise ArgumentError(f"{repository} is public: add --public to send the run to it")
        if revision != "main":
            client.create_branch(repository, branch=revision, exist_ok=True)
        present = client.list_repo_files(repository, revision=revision)
        operations = [hub.CommitOperationAdd(name, content) for name, content in contents.items()]
        earlier = [name for name in present if RUN_FILE.fullmatch(name) and name not in contents]
        operations += [hub.CommitOperationDelete(name) for name in earlier]
        commit = client.create_commit(
            repository,
            operations,
            commit_message=f"Run of {opened.name}",
            revision=revision,
        )
    return PushedRun(repository, sizes, str(commit.commit_url), str(HubAddress(repository, revision)))


def run_files(run: Run, repository: str, license_name: str) -> dict[str, Path | bytes]:
    """Return the files of a run for a repository by name, each as a path or its content.

    Raises:
        HafvtError: the run has no catalog.
    """
    folder = run.folder
    if not (folder / RUN_CATALOG).exists():
        raise HafvtError(f"{folder} has no catalog, as an earlier version trained it: train it again")
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    contents: dict[str, Path | bytes] = {name: folder / name for name in names if RUN_FILE.fullmatch(name)}
    contents["README.md"] = model_card(run, repository, license_name).encode()
    with explained_read_errors(folder / "config.yaml", "train the run again"):
        settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        text = yaml.safe_dump(settings_without_paths(settings), sort_keys=False)
    contents["config.yaml"] = text.encode()
    contents["model.json"] = _json(without_paths(run.manifest))
    catalog = read_json(folder / RUN_CATALOG / "manifest.json")
    contents[f"{RUN_CATALOG}/manifest.json"] = _json(catalog | {"image_root": None})
    for about in (folder / RUN_CATALOG / "features").glob("*/about.json"):
        content = read_json(about)
        sent = {name: content["sha256"][name] for name in content["sha256"] if name != "problems.csv"}
        source = {name: value for name, value in content.get("source", {}).items() if name != "image_root"}
        name = about.relative_to(folder).as_posix()
        contents[name] = _json(content | {"sha256": sent, "source": source})
    return contents


def _json(content: dict[str, Any]) -> bytes:
    """Return an object as the content of a JSON file with a checksum."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "content.json"
        write_json(path, {k: v for k, v in content.items() if k != "checksum"}, checksum=True)
        return path.read_bytes()
