"""A stand-in of the Hugging Face Hub and its client: repositories in memory, no network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
from huggingface_hub import errors


@dataclass
class Hub:
    """The Hub. `is_down` takes the network away.

    Attributes:
        repositories: by name: whether it is private, and the commits of each branch, each by file.
        downloads: names of the files that were downloaded.
    """

    folder: Path
    repositories: dict[str, tuple[bool, dict[str, list[dict[str, bytes]]]]] = field(default_factory=dict)
    downloads: list[str] = field(default_factory=list)
    is_down: bool = False

    def create_repo(self, name, *, private, exist_ok):
        self.repositories.setdefault(name, (private, {"main": [{}]}))

    def create_branch(self, name, *, branch, exist_ok):
        branches = self.repositories[name][1]
        branches.setdefault(branch, list(branches["main"]))

    def files(self, name, revision):
        if self.is_down:
            raise ConnectionError("no route to host")
        response = SimpleNamespace(status_code=404, headers={}, request=None)
        if name not in self.repositories:
            raise errors.RepositoryNotFoundError("404", response=response)
        branches = self.repositories[name][1]
        commits = {sha_of(files): files for commits in branches.values() for files in commits}
        if revision not in branches and revision not in commits:
            raise errors.RevisionNotFoundError("404", response=response)
        return branches[revision][-1] if revision in branches else commits[revision]

    def list_repo_files(self, name, *, revision):
        return list(self.files(name, revision))

    def create_commit(self, name, operations, *, commit_message, revision):
        files = dict(self.files(name, revision))
        for operation in operations:
            if isinstance(operation, huggingface_hub.CommitOperationDelete):
                del files[operation.path_in_repo]
            else:
                with operation.as_file() as file:
                    files[operation.path_in_repo] = file.read()
        self.repositories[name][1][revision].append(files)
        return SimpleNamespace(commit_url=f"https://hub.test/{name}/commit/{sha_of(files)}")

    def model_info(self, name, *, revision="main", files_metadata=False):
        files = self.files(name, revision)
        siblings = [SimpleNamespace(rfilename=file, size=len(content)) for file, content in files.items()]
        return SimpleNamespace(sha=sha_of(files), siblings=siblings, private=self.repositories[name][0])

    def snapshot_download(self, name, *, revision, allow_patterns):
        folder = self.folder / name / revision
        for file, content in self.files(name, revision).items():
            if any(fnmatchcase(file, pattern) for pattern in allow_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
                self.downloads.append(file)
        return str(folder)


def sha_of(files: dict[str, bytes]) -> str:
    """Returns the id of a commit."""
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
