"""Files at addresses such as s3://bucket/folder, by fsspec, beside local files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from hafvt.errors import HafvtError, missing_package
from hafvt.files import atomic_file

VERSION_FIELDS = ("ETag", "etag", "LastModified", "updated", "mtime", "created")


class SourceFile(NamedTuple):
    """A file of a folder or a pattern.

    Attributes:
        name: its path below the folder.
        path: local path or address.
        version: size and time or hash, which change when the file is replaced.
    """

    name: str
    path: str
    version: list[str]


def is_remote(path: str | Path) -> bool:
    """Return whether a path is an address of a file system of fsspec, such as s3://bucket/file."""
    return "://" in str(path)


@contextmanager
def _file_system(path: str) -> Iterator[tuple[Any, str]]:
    """Yield the file system of an address and the path within it; its errors become one line."""
    try:
        import fsspec
    except ImportError:
        raise missing_package("cluster", "fsspec") from None
    try:
        yield fsspec.core.url_to_fs(path)
    except HafvtError:
        raise
    except Exception as error:  # the libraries of object stores raise errors of many types
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise HafvtError(
            f"{path} cannot be reached ({reason}): check the address, its package and the credentials"
        ) from None


def list_files(source: str) -> list[SourceFile]:
    """Return the files of a folder, of a pattern with * or ?, or one file, sorted, without hidden ones."""
    if not is_remote(source):
        if Path(source).is_dir():
            root, paths = source, glob.glob(f"{glob.escape(source)}/**", recursive=True)  # noqa: PTH207
        else:
            paths = glob.glob(source, recursive=True)  # noqa: PTH207
            root = _pattern_root(source)
        files = [(path, os.stat(path)) for path in sorted(paths) if Path(path).is_file()]  # noqa: PTH116
        return [
            SourceFile(Path(path).relative_to(root).as_posix(), path, [str(s.st_size), str(s.st_mtime_ns)])
            for path, s in files
        ]
    with _file_system(source) as (files_at, path):
        is_pattern = any(sign in path for sign in "*?[")
        entries = files_at.glob(path, detail=True) if is_pattern else files_at.find(path, detail=True)
        root = _pattern_root(path) if is_pattern or list(entries) == [path] else path
        return [
            SourceFile(
                PurePosixPath(name).relative_to(root).as_posix(),
                files_at.unstrip_protocol(name),
                [str(info.get("size")), str(next((info[f] for f in VERSION_FIELDS if info.get(f)), ""))],
            )
            for name, info in sorted(entries.items())
            if info["type"] == "file" and not PurePosixPath(name).name.startswith((".", "_"))
        ]


def _pattern_root(pattern: str) -> str:
    """Return the folder of a file, or the part of a pattern before the first wildcard."""
    parts = PurePosixPath(Path(pattern).as_posix() if os.sep != "/" else pattern).parts
    fixed = next((n for n, part in enumerate(parts) if any(sign in part for sign in "*?[")), len(parts) - 1)
    return str(PurePosixPath(*parts[:fixed])) if fixed else ""


def exists(path: str | Path) -> bool:
    """Return whether a file, local or remote, or a local folder exists."""
    if not is_remote(path):
        return Path(path).exists()
    with _file_system(str(path)) as (files_at, name):
        return bool(files_at.exists(name))


def remove(path: str | Path) -> None:
    """Remove a file if it exists."""
    if not is_remote(path):
        Path(path).unlink(missing_ok=True)
    elif exists(path):
        with _file_system(str(path)) as (files_at, name):
            files_at.rm(name)


@contextmanager
def local_copy(path: str) -> Iterator[Path]:
    """Yield a local path with the content of a file, for the block."""
    if not is_remote(path):
        yield Path(path)
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / PurePosixPath(path).name
        with _file_system(path) as (files_at, name):
            files_at.get_file(name, str(copy))
        yield copy


@contextmanager
def output_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary local path; its content becomes the file if the block succeeds, see `atomic_file`."""
    if not is_remote(path):
        with atomic_file(path) as temporary:
            yield temporary
        return
    with TemporaryDirectory() as folder:
        temporary = Path(folder) / PurePosixPath(str(path)).name
        yield temporary
        with _file_system(str(path)) as (files_at, name):
            files_at.makedirs(files_at._parent(name), exist_ok=True)
            hidden = f"{files_at._parent(name)}/.{PurePosixPath(name).name}.tmp"
            files_at.put_file(str(temporary), hidden)
            files_at.mv(hidden, name)
