"""Runs on the Hugging Face Hub: "hf://owner/name" in place of the folder of a run.

A repository is untrusted input. Only the files of a run are downloaded, their sizes are bounded, none of them
is a pickle, and the run names no folder of this machine.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hafvt.data.dataset import RUN_CATALOG
from hafvt.errors import ArgumentError, HafvtError, missing_package
from hafvt.files import atomic_file, explained_read_errors, read_json, verify_json, write_json
from hafvt.folders import FolderKind, atomic_folder
from hafvt.settings import Folder

HUB_ADDRESS = re.compile(r"hf:/{1,2}([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
COMMIT = re.compile(r"[0-9a-f]{40}")
RUN_FILE = re.compile(
    r"README\.md|config\.yaml|metrics\.jsonl|results\.json|model\.json|model[0-9]*\.safetensors"
    rf"|{RUN_CATALOG}/(manifest\.json|(items|users)\.parquet|[a-z_]+\.npy|relations\.npz)"
    rf"|{RUN_CATALOG}/features/[\w-]+/(about\.json|rows\.npy|present\.npy|fitted_arrays\.npz)"
)
"""The files of a run that a repository has; others are neither sent nor downloaded."""
MAX_FILES = 100
MAX_RUN_BYTES = 2**36
MAX_TEXT_BYTES = 2**26
TEXT_FILES = (".md", ".yaml", ".json", ".jsonl")
REMEDY = "push the run again"
HUB_RUN = FolderKind("a run", "model.json", ("*",))


class HubAddress(NamedTuple):
    """A repository of the Hub, and a branch, tag or commit, "main" by default."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return f"hf://{self.repository}" + (f"@{self.revision}" if self.revision != "main" else "")


def is_hub_address(folder: Folder) -> bool:
    """Return whether a text is an address on the Hub, and no folder."""
    return str(folder).startswith("hf:/")


def local_folder(folder: Folder) -> Path:
    """Return the folder of a run; a run on the Hub is downloaded first, each commit once.

    Raises:
        HafvtError: the repository cannot be reached, or holds no run, or one that is too large or damaged.
    """
    if not is_hub_address(folder):
        return Path(folder)
    match = HUB_ADDRESS.fullmatch(str(folder))
    if match is None:
        raise ArgumentError(f"{folder} is no address: write hf://owner/name or hf://owner/name@revision")
    return _download(HubAddress(match[1], match[2] or "main"))


def hub_client() -> Any:
    """Return the module huggingface_hub.

    Raises:
        HafvtError: it is not installed.
    """
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError:
        raise missing_package("hub", "huggingface_hub") from None
    return huggingface_hub


@contextmanager
def explained_hub_errors(address: object) -> Iterator[None]:
    """Turn errors of the Hub's client into a HafvtError of one line."""
    errors = hub_client().errors
    try:
        yield
    except HafvtError:
        raise
    except errors.GatedRepoError:
        reason = "you have no access yet: ask for it on the page of the repository"
    except errors.RevisionNotFoundError:
        reason = "it has no such revision: name a branch, a tag or a commit"
    except errors.RepositoryNotFoundError:
        reason = "no such repository, or a private one: check the name, or log in with hf auth login"
    except errors.LocalTokenNotFoundError:
        reason = "you are not logged in: log in with hf auth login, or set HF_TOKEN"
    except errors.HFValidationError as error:
        reason = f"the Hub refuses the name ({_first_line(error)}): choose another"
    except Exception as error:  # of the network; each version of the client raises others
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            reason = "access is denied: log in with hf auth login, with a token that may write"
        else:
            reason = f"the Hub cannot be reached ({_first_line(error)}): check the network and try again"
    else:
        return
    raise HafvtError(f"{address}: {reason}")


def _first_line(error: Exception) -> str:
    """Return the type and the first line of an error."""
    return " ".join(f"{type(error).__name__}: {error}".splitlines()[0].split())[:200]


def _download(address: HubAddress) -> Path:
    """Return the folder of a run of the Hub on this machine, see `local_folder`."""
    hub = hub_client()
    root = Path(hub.constants.HF_HOME).expanduser() / "hafvt" / address.repository.replace("/", "--")
    name = address.repository.partition("/")[2]  # the server names models by the names of their folders
    if COMMIT.fullmatch(address.revision) and (root / address.revision / name).exists():
        return root / address.revision / name
    with explained_hub_errors(address):
        try:
            information = hub.HfApi().model_info(
                address.repository, revision=address.revision, files_metadata=True
            )
        except Exception as error:  # of the network; each version of the client raises others
            if isinstance(error, hub.errors.HfHubHTTPError | hub.errors.HFValidationError):
                raise  # the Hub has answered
            commit = _last_commit(root, address)  # without a network, the one that was downloaded last
            if commit is None or not (root / commit / name).exists():
                raise
            return root / commit / name
        folder = root / str(information.sha) / name
        if not COMMIT.fullmatch(address.revision):
            with atomic_file(_reference(root, address)) as temporary:
                temporary.write_text(str(information.sha), encoding="utf-8")
        if folder.exists():
            return folder
        names = _check_files(address, {file.rfilename: file.size for file in information.siblings})
        snapshot = hub.snapshot_download(
            address.repository, revision=information.sha, allow_patterns=sorted(names)
        )
    with atomic_folder(folder, HUB_RUN) as temporary:
        for file in names:
            _link(Path(snapshot) / file, temporary / file)
        _check_run(address, temporary)
    return folder


def _reference(root: Path, address: HubAddress) -> Path:
    """Return the file with the commit that a branch or tag had at its last download."""
    return root / "refs" / address.revision.replace("/", "--")


def _last_commit(root: Path, address: HubAddress) -> str | None:
    """Return the commit that a branch or tag had at its last download; None without one."""
    path = _reference(root, address)
    return path.read_text(encoding="utf-8") if path.exists() else None


def _check_files(address: HubAddress, sizes: Mapping[str, int | None]) -> list[str]:
    """Return the names of the files of a run in a repository, by the sizes of all its files.

    Raises:
        HafvtError: there is no run, or it is too large.
    """
    names = [name for name in sizes if RUN_FILE.fullmatch(name)]
    if not {"model.json", "model.safetensors", f"{RUN_CATALOG}/manifest.json"} <= set(names):
        raise HafvtError(f"{address} holds no run of hafvt: write one with hafvt push")
    if len(names) > MAX_FILES:
        raise HafvtError(f"{address} has {len(names)} files of a run, more than {MAX_FILES}: {REMEDY}")
    for name in names:
        size, limit = sizes[name], MAX_TEXT_BYTES if name.endswith(TEXT_FILES) else MAX_RUN_BYTES
        if size is None or size > limit:
            raise HafvtError(f"{address}: {name} has more than {limit:,} bytes: {REMEDY}")
    if sum(sizes[name] or 0 for name in names) > MAX_RUN_BYTES:
        raise HafvtError(f"{address} has more than {MAX_RUN_BYTES:,} bytes: {REMEDY}")
    return names


def _link(source: Path, target: Path) -> None:
    """Make a hard link to a downloaded file, or a copy on another disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)


def _check_run(address: HubAddress, folder: Path) -> None:
    """Check that a downloaded run names no folder of this machine, and all its weights with their hashes.

    Raises:
        HafvtError: the run is damaged, or not as `hafvt push` writes it.
    """
    manifest = read_json(folder / "model.json", REMEDY)
    catalog = read_json(folder / RUN_CATALOG / "manifest.json", REMEDY)
    with explained_read_errors(f"{address}: model.json", REMEDY):
        verify_json(folder / "model.json", manifest, REMEDY)
        modalities = [*manifest["training"]["features"], *(manifest["config"].get("modalities") or ())]
        weights = {file.name for file in folder.glob("model*.safetensors")}
        is_safe = (
            all(re.fullmatch(r"[\w-]+", name) for name in modalities)
            and set(manifest["sha256"]) == weights
            and catalog["catalog_of"] == manifest["dataset"]
            and catalog["image_root"] is None
        )
        if not is_safe:
            raise ValueError("it is not as hafvt push writes it")
        write_json(folder / "model.json", without_paths(manifest), checksum=True)


def without_paths(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a run's model.json without folders of the machine that trained it."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    return content | {"data": None, "training": settings_without_paths(manifest["training"])}


def settings_without_paths(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings of a training with the names of folders in place of their paths."""
    return {
        name: Path(value).name if name in ("data", "init_from") and isinstance(value, str) else value
        for name, value in settings.items()
    }
