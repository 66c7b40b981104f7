"""Atomic files and folders, folder locks, JSON files and checksums."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hafvt.errors import HafvtError

LOCK_NAME = ".lock"
"""The file that `lock_folder` leaves in a folder."""


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` if the block succeeds, else remove it.

    With `overwrite`, an existing folder stays unchanged until the new one is complete.

    Raises:
        HafvtError: `path` exists and `overwrite` is false.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise HafvtError(f"{path} exists already: choose another folder or say --overwrite true")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
        if path.exists():
            old = temporary.with_suffix(".old")
            path.replace(old)
            try:
                temporary.replace(path)
            except BaseException:
                old.replace(path)
                raise
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder for this process while the block runs; create the folder if it is missing.

    If the process dies, the operating system releases the lock.

    Raises:
        HafvtError: another process has locked the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK_NAME, timeout=0):
            yield
    except Timeout:
        raise HafvtError(
            f"{folder} is in use by another process: wait, end that one, or choose another folder"
        ) from None


def write_json(path: str | Path, value: object) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Return the content of a JSON file.

    Raises:
        HafvtError: the file is missing or not JSON.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HafvtError(f"{path} does not exist: is {path.parent} the right folder?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise HafvtError(f"{path} is damaged ({error}): restore it or create its folder again") from None


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
