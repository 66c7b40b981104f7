"""Replace a folder atomically, under a lock, and only if it holds nothing but what hafvt wrote.

Write a folder with `atomic_folder`. Hold `folder_lock` while you read a folder that you replace.
"""

from __future__ import annotations

import ctypes
import glob
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple, TypeVar

from filelock import FileLock, Timeout

from hafvt.errors import HafvtError
from hafvt.files import check_space, explained_write_errors, fsync, is_temporary

Result = TypeVar("Result")


class FolderKind(NamedTuple):
    """What a command writes into a folder. `atomic_folder` replaces only folders that hold nothing else.

    Attributes:
        name: in words, such as "a dataset".
        marker: name of a JSON file that every such folder has; "" for none.
        contents: patterns of the names of all else that hafvt writes into the folder. Files that the marker
            lists in its field "sha256" need no pattern.
        field: a field that the marker has.
    """

    name: str
    marker: str
    contents: tuple[str, ...] = ()
    field: str = "format"


@contextmanager
def atomic_folder(
    path: str | Path, kind: FolderKind, *, overwrite: bool = False, num_bytes: int = 0
) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it takes the place of `path` if the block succeeds.

    An older folder stays complete until the system exchanges both in one step; then it is removed. Where the
    system cannot exchange folders and the process is killed between two renamings, `recover_folder` or the
    next call restores the older folder. The folder is locked, unless this thread holds `folder_lock(path)`.

    Args:
        path: the folder to write.
        kind: what the new folder will hold; a folder that is replaced may hold nothing else.
        overwrite: replace a folder that exists.
        num_bytes: expected size; if the disk has less space, nothing is written.

    Raises:
        HafvtError: see `check_output_folder` and `folder_lock`; or the disk is full.
    """
    target = Path(path).resolve()
    temporary, old = _hidden_folders(target)
    with nullcontext() if _lock_key(target) in _held_locks else folder_lock(path):
        try:
            with explained_write_errors(Path(path), temporary, num_bytes):
                _recover(target)
                check_output_folder(path, kind, overwrite=overwrite)
                check_space(target, num_bytes)
                temporary.mkdir()
                yield temporary
                for written in (*temporary.rglob("*"), temporary):
                    fsync(written)
                check_output_folder(path, kind, overwrite=overwrite)  # other programs do not know the lock
                if target.exists() and not _exchange(temporary, target):
                    target.replace(old)
                if not target.exists():
                    temporary.replace(target)
                fsync(target.parent)
        finally:
            if old.exists() and not target.exists():
                old.replace(target)
            for leftover in (temporary, old):
                shutil.rmtree(leftover, ignore_errors=True)


def check_output_folder(path: str | Path, kind: FolderKind, *, overwrite: bool) -> None:
    """Check that a folder is free, or with `overwrite` that it holds nothing but what is replaced.

    Raises:
        HafvtError: `path` is a file or under one, exists and `overwrite` is false, or holds anything that is
            not of this kind.
    """
    folder = Path(path).resolve()
    for parent in (folder, *folder.parents):
        if parent.exists() and not parent.is_dir():
            raise HafvtError(f"{path}: {parent.name} is a file, not a folder: choose another folder")
    names = sorted(p.name for p in folder.iterdir() if not is_temporary(p)) if folder.exists() else []
    if names and not overwrite:
        raise HafvtError(f"{path} exists already: choose another folder, or replace it with --overwrite")
    if names and kind.marker:
        try:
            content = json.loads((folder / kind.marker).read_text(encoding="utf-8"))
            is_marked = kind.field in content
            listed = tuple(content.get("sha256", ()))
        except (OSError, ValueError, TypeError, AttributeError):
            is_marked = False
        if not is_marked:
            raise HafvtError(f"{path} exists and is not {kind.name}: choose another folder or remove it")
        kind = kind._replace(contents=(kind.marker, *kind.contents, *map(glob.escape, listed)))
    for name in names:
        if not any(fnmatchcase(name, pattern) for pattern in kind.contents):
            raise HafvtError(
                f"{path} holds {name}, which is not of {kind.name} and would be lost: move it away or choose "
                "another folder"
            )


def recover_folder(path: str | Path) -> None:
    """Restore a folder if a process was killed in `atomic_folder`; call this before you read the folder."""
    target = Path(path).resolve()
    if not target.exists() and _hidden_folders(target)[1].exists():
        with folder_lock(path):
            _recover(target)


def read_folder(path: str | Path, read: Callable[[], Result]) -> Result:
    """Return `read()`; read again if another process replaced the folder meanwhile, by `atomic_folder`.

    Raises:
        HafvtError: `read` raised it, and the folder was not replaced.
    """
    while True:
        recover_folder(path)
        before = _inode(path)
        try:
            result = read()
        except HafvtError:
            if _inode(path) == before:
                raise
        else:
            if _inode(path) == before:
                return result


def remove_folder(folder: Path) -> None:
    """Remove a folder; if the process is killed, the rest is hidden and removed by the next call."""
    hidden = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(hidden, ignore_errors=True)
    if folder.exists():
        folder.replace(hidden)
    shutil.rmtree(hidden, ignore_errors=True)


def _inode(path: str | Path) -> int | None:
    """Return a number that differs between a folder and the one that replaces it; None without a folder."""
    return Path(path).stat().st_ino if Path(path).exists() else None


def _hidden_folders(target: Path) -> tuple[Path, Path]:
    """Return where `atomic_folder` writes the new folder, and where it moves the older one."""
    return target.with_name(f".{target.name}.tmp"), target.with_name(f".{target.name}.old")


def _recover(target: Path) -> None:
    """Restore a locked folder after a killed exchange, and remove temporary folders beside it."""
    temporary, old = _hidden_folders(target)
    if old.exists() and not target.exists():
        old.replace(target)
    for leftover in (temporary, old):
        if leftover.exists():
            shutil.rmtree(leftover)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two folders in one step; return False if the system or the file system cannot."""
    paths = os.fsencode(first), os.fsencode(second)
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*paths, 2) == 0)  # RENAME_SWAP
        return bool(libc.renameat2(-100, paths[0], -100, paths[1], 2) == 0)  # AT_FDCWD, RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):
        return False


_held_locks: set[tuple[Path, int]] = set()
"""The folders that this process has locked, each with the thread."""


def _lock_key(path: Path) -> tuple[Path, int]:
    return path, threading.get_ident()


@contextmanager
def folder_lock(path: str | Path) -> Iterator[None]:
    """Lock a folder, which need not exist, against other processes and threads while the block runs.

    The lock is a hidden file beside the folder, or in it if the folder above is read-only; it is removed
    afterwards. If the process dies, the operating system releases the lock.

    Raises:
        HafvtError: another process or thread has locked the folder, or the lock cannot be written.
    """
    folder = Path(path).resolve()
    is_parent_writable = os.access(folder.parent, os.W_OK) or not folder.exists()
    file = folder.with_name(f".{folder.name}.lock") if is_parent_writable else folder / ".lock"
    with ExitStack() as stack:
        with explained_write_errors(Path(path), file):
            file.parent.mkdir(parents=True, exist_ok=True)
            try:
                stack.enter_context(FileLock(file, timeout=0))
            except Timeout:
                raise HafvtError(
                    f"{path} is in use by another process: wait, end that one, or choose another folder"
                ) from None
        stack.callback(file.unlink, missing_ok=True)  # before the release, as it must remove no other lock
        _held_locks.add(_lock_key(folder))
        stack.callback(_held_locks.discard, _lock_key(folder))
        yield
