"""Write files atomically, and check files for damage before they are used.

Write a file with `atomic_file` or `write_json`. Store `hash_files` with the files, call `verify_files` before
you read them, and read inside `explained_read_errors`, which turns every error into one line.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hafvt.errors import HafvtError

DISK_FULL = re.compile(
    "no space left|not enough free space|requested and .* written|os error (27|28|122)|thrift: transport"
)
"""What numpy, polars and safetensors report on a full disk; their errors have no error number."""


class DiskFullError(HafvtError):
    """The disk has no room for the file or folder `path`, which needs at least `num_bytes`."""

    def __init__(self, message: str, path: Path, num_bytes: int) -> None:
        super().__init__(message)
        self.path, self.num_bytes = path, num_bytes


@contextmanager
def atomic_file(path: str | Path, num_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove it.

    Args:
        path: the file to write; its folder is created.
        num_bytes: expected size; if the disk has less space, nothing is written.

    Raises:
        HafvtError: the disk is full, or `path` may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with explained_write_errors(path, temporary, num_bytes):
            path.parent.mkdir(parents=True, exist_ok=True)
            check_space(path, num_bytes)
            _remove_files_of_ended_processes(path)
            yield temporary
            fsync(temporary)
            temporary.replace(path)
            fsync(path.parent)
    finally:
        with suppress(OSError):
            temporary.unlink()


def is_temporary(path: Path) -> bool:
    """Return whether a file or folder is a lock, or one that a killed process had not finished."""
    return path.name == ".lock" or (path.name.startswith(".") and path.suffix in (".tmp", ".lock"))


def _remove_files_of_ended_processes(path: Path) -> None:
    """Remove temporary files, and folders of their parts, that killed processes left beside `path`."""
    pattern = re.compile(re.escape(f".{path.name}.") + r"(\d+)(?:\.parts)?\.tmp")
    for file in path.parent.iterdir() if os.name == "posix" else ():
        if match := pattern.fullmatch(file.name):
            with suppress(PermissionError, OverflowError):  # a process of another user
                try:
                    os.kill(int(match[1]), 0)
                except ProcessLookupError:
                    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_space(path: Path, num_bytes: int) -> None:
    """Raise OSError if the disk of `path` has less than `num_bytes` left."""
    if shutil.disk_usage(path.parent).free < num_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@contextmanager
def explained_write_errors(
    path: Path, temporary: Path | None = None, num_bytes: int = 0, preserved: str = ""
) -> Iterator[None]:
    """Turn errors of writing a file or folder into a HafvtError of one line; let other errors pass.

    Args:
        path: what is written, for the message.
        temporary: where it is written first; its size tells how much space is needed at least.
        num_bytes: expected size, if it is known.
        preserved: what remains of the work, for the message; default: that `path` is unchanged or missing.
    """
    try:
        yield
    except Exception as error:
        part_bytes = None  # of a file in the folder that is written
        if isinstance(error, DiskFullError) and temporary in error.path.parents:
            part_bytes = error.num_bytes
        elif isinstance(error, HafvtError):
            raise
        number, error_path = getattr(error, "errno", None), getattr(error, "filename", None)
        if isinstance(error, OSError) and (
            match := re.search(r"\(os error (\d+)\)", str(error))
        ):  # of Polars
            number, error_path = int(match[1]), temporary or path
        is_full = number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or DISK_FULL.search(str(error).lower())
        if part_bytes is not None or is_full:
            existing_parent = next(parent for parent in path.absolute().parents if parent.exists())
            free = shutil.disk_usage(existing_parent).free
            needed = max(num_bytes, _size(temporary or path) + (part_bytes or 0))
            size = f"it needs at least {_format_size(needed)}, " if needed else ""
            unchanged = f"the earlier {path.name} is unchanged" if path.exists() else "nothing was written"
            raise DiskFullError(
                f"{path} cannot be written (No space left on device): {size}{_format_size(free)} free, "
                f"{preserved or unchanged}. Make room or choose another folder, and start the command again",
                path,
                needed,
            ) from None
        if number is not None and error_path:
            folder, failed = path.resolve().parent, Path(os.fsdecode(error_path)).resolve()
            if folder in (failed, *failed.parents) or failed in folder.parents:
                reason = os.strerror(number)
                raise HafvtError(
                    f"{path} cannot be written ({reason}): check the path and its permissions"
                ) from None
        raise


def _format_size(num_bytes: int) -> str:
    """Return a size in MiB or, below 1 MiB, in KiB."""
    if num_bytes < 2**20:
        return f"{-(-num_bytes // 2**10)} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"


def _size(path: Path) -> int:
    """Return the bytes of a file or folder, 0 if there is none."""
    return sum(p.stat().st_size for p in (path, *path.rglob("*")) if p.is_file())


@contextmanager
def explained_read_errors(path: str | Path, remedy: str) -> Iterator[None]:
    """Turn every error of a block that reads a file or folder of hafvt into a HafvtError of one line.

    Args:
        path: the file or folder that is read.
        remedy: what to do if it is missing or damaged, such as "prepare the dataset again".
    """
    try:
        yield
    except HafvtError:
        raise
    except FileNotFoundError:
        raise HafvtError(f"{path} does not exist: {remedy}") from None
    except BaseException as error:
        # Readers raise many types for damaged files; a panic of polars is not even an Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        if isinstance(error, PermissionError | IsADirectoryError | MemoryError):
            reason = getattr(error, "strerror", None) or "out of memory"
            raise HafvtError(f"{path} cannot be read ({reason}): check its permissions and size") from None
        reason = next(iter(str(error).splitlines()), "").strip()[:200] or type(error).__name__
        reason = f"it lacks {reason}" if isinstance(error, KeyError) else reason
        raise HafvtError(f"{path} is damaged ({reason}): {remedy}") from None


def write_json(path: str | Path, value: object, *, checksum: bool = False) -> None:
    """Write `value` as indented JSON, atomically; `checksum` adds a field to an object for `verify_json`."""
    if checksum and isinstance(value, dict):
        value = {**value, "checksum": _checksum(value)}
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: str | Path, remedy: str = "restore it or create its folder again") -> Any:
    """Return the content of a JSON file.

    Raises:
        HafvtError: the file is missing, or not an object or list in JSON.
    """
    path = Path(path)
    if not path.exists():
        raise HafvtError(f"{path} does not exist: is {path.parent} the right folder?")
    with explained_read_errors(path, remedy):
        value = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(value, dict | list):
            raise ValueError("neither an object nor a list")
        return value


def verify_json(path: Path, content: dict[str, Any], remedy: str) -> None:
    """Check that an object is the one that `write_json` wrote; an object without checksum passes.

    Raises:
        HafvtError: a value is another one.
    """
    if "checksum" in content and content["checksum"] != _checksum(content):
        raise HafvtError(f"{path} is damaged (its content is not what was written): {remedy}")


def _checksum(content: dict[str, Any]) -> str:
    """Return the SHA-256 of an object as JSON, without its field "checksum"."""
    plain = json.loads(json.dumps({name: value for name, value in content.items() if name != "checksum"}))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits; a version of a file is read once per process."""
    path = Path(path).resolve()
    state = path.stat()
    version = state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino
    if _hashes.get(path, ((), ""))[0] != version:
        with path.open("rb") as file:
            _hashes[path] = version, hashlib.file_digest(file, "sha256").hexdigest()
    return _hashes[path][1]


_hashes: dict[Path, tuple[tuple[int, ...], str]] = {}
"""Of each file: size, times and inode when it was read, and its SHA-256."""


def hash_files(folder: str | Path) -> dict[str, str]:
    """Return the SHA-256 of every file in a folder, by relative path, for `verify_files`."""
    folder = Path(folder)
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and not is_temporary(p))
    return {file.relative_to(folder).as_posix(): sha256(file) for file in files}


def verify_files(folder: str | Path, hashes: Mapping[str, str], remedy: str) -> None:
    """Check that files are those whose hashes `hash_files` returned.

    Args:
        folder: where the files are.
        hashes: SHA-256 by relative path, or several with spaces between; other files are not checked.
        remedy: what to do if a file is missing or damaged, such as "prepare the dataset again".

    Raises:
        HafvtError: a file is missing or has another content.
    """
    for name, expected in hashes.items():
        path = Path(folder) / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise HafvtError(f"{folder}: its list of files names {name}, outside of the folder: {remedy}")
        with explained_read_errors(path, remedy):
            actual = sha256(path)
        if actual not in expected.split():
            raise HafvtError(f"{path} is damaged (its content is not what was written): {remedy}")


def write_manifest(path: Path, format_number: int, content: dict[str, Any]) -> None:
    """Write the JSON file that describes its folder: format number, content, hashes of the other files."""
    manifest = {"format": format_number, **content, "sha256": hash_files(path.parent)}
    write_json(path, manifest, checksum=True)


def read_manifest(path: Path, format_number: int, remedy: str) -> dict[str, Any]:
    """Return the content of a file of `write_manifest` after checking the format and the other files.

    Args:
        path: the file.
        format_number: number of the format that this version reads.
        remedy: what to do if a file is missing, damaged or of another format.

    Raises:
        HafvtError: the manifest or a file that it lists is missing, damaged, or of another format.
    """
    with explained_read_errors(path, remedy):
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if manifest["format"] != format_number:
            raise HafvtError(
                f"{path}: format {manifest['format']!r}, but this version of hafvt reads format "
                f"{format_number}: {remedy}"
            )
        verify_files(path.parent, manifest["sha256"], remedy)
    verify_json(path, manifest, remedy)
    return manifest
