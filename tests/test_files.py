"""Files and folders survive kills, full disks, two processes at once, and damage."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import polars as pl
import pytest
import yaml

from hafvt import files, folders
from hafvt.errors import HafvtError
from hafvt.files import (
    atomic_file,
    explained_read_errors,
    hash_files,
    read_json,
    sha256,
    verify_files,
    verify_json,
    write_json,
)
from hafvt.folders import FolderKind, atomic_folder, check_output_folder, folder_lock, recover_folder
from tests.crash import crash_before_each_operation

BOX = FolderKind("a box", "box.json", ("*.txt",))
WRITE = """
with atomic_folder(root / "box", BOX, overwrite=True) as folder:
    (folder / "sub").mkdir()
    for name in ("a.txt", "b.txt", "sub/c.bin"):
        (folder / name).write_text(VERSION)
    write_json(folder / "box.json", {"format": 1, "sha256": {"sub": ""}})
"""
IMPORTS = "from hafvt.files import *; from hafvt.folders import *; from tests.test_files import BOX"


def write_box(root: Path, version: str) -> None:
    exec(WRITE.replace("VERSION", repr(version)), {**vars(folders), **vars(files), "BOX": BOX, "root": root})


def box_versions(root: Path) -> set[str]:
    """Returns the contents of the files of a box, one value if they are of one version."""
    return {(root / "box" / name).read_text() for name in ("a.txt", "b.txt", "sub/c.bin")}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("can_exchange", [True, False])
def test_atomic_folder_killed_anywhere_leaves_one_complete_version(tmp_path, can_exchange):
    root = tmp_path / "root"
    imports = IMPORTS + ("" if can_exchange else "\nfolders._exchange = lambda first, second: False")
    versions = []

    def reset() -> None:
        write_box(root, "old")

    def check(step: int) -> None:
        recover_folder(root / "box")
        versions.append(box_versions(root))
        write_box(root, "newest")
        assert box_versions(root) == {"newest"}
        assert names_in(root) == ["box"], step

    action = WRITE.replace("VERSION", "'new'")
    kills = crash_before_each_operation(
        root, action, imports="from hafvt import folders\n" + imports, reset=reset, check=check
    )
    assert kills > 15
    assert versions[0] == {"old"}
    assert versions[-1] == {"new"}
    assert all(len(version) == 1 for version in versions)


def test_atomic_file_killed_anywhere_leaves_one_version_and_no_other_file(tmp_path):
    target = tmp_path / "value.json"
    action = "write_json(root / 'value.json', {'n': 2})"

    def check(step: int) -> None:
        assert read_json(target)["n"] in (1, 2)
        write_json(target, {"n": 3})
        assert names_in(tmp_path) == ["value.json"], step

    crash_before_each_operation(
        tmp_path, action, imports=IMPORTS, reset=lambda: write_json(target, {"n": 1}), check=check
    )


@pytest.mark.parametrize("can_exchange", [True, False])
def test_atomic_folder_whose_block_fails_changes_nothing(tmp_path, monkeypatch, can_exchange):
    if not can_exchange:
        monkeypatch.setattr(folders, "_exchange", lambda first, second: False)
    write_box(tmp_path, "old")
    box = tmp_path / "box"
    with pytest.raises(RuntimeError), atomic_folder(box, BOX, overwrite=True) as folder:  # noqa: PT012
        (folder / "a.txt").write_text("new")
        raise RuntimeError
    assert box_versions(tmp_path) == {"old"}
    assert names_in(tmp_path) == ["box"]


def test_check_output_folder_of_anything_else_is_refused(tmp_path):
    box = tmp_path / "box"
    check_output_folder(box, BOX, overwrite=False)
    box.mkdir()
    check_output_folder(box, BOX, overwrite=False)  # an empty folder has nothing to lose
    (box / "a.txt").write_text("dear")
    with pytest.raises(HafvtError, match=r"exists already: .* --overwrite"):
        check_output_folder(box, BOX, overwrite=False)
    for marker in (None, "no JSON", "[1]", "3", "{}", '"format"'):
        if marker is not None:
            (box / "box.json").write_text(marker)
        with pytest.raises(HafvtError, match="exists and is not a box: choose another folder"):
            check_output_folder(box, BOX, overwrite=True)
    (box / "box.json").write_text('{"format": 1}')
    check_output_folder(box, BOX, overwrite=True)
    (box / "thesis.doc").write_text("dear")
    with pytest.raises(HafvtError, match=r"holds thesis.doc, which .* would be lost: move it away"):
        check_output_folder(box, BOX, overwrite=True)
    with pytest.raises(HafvtError, match="thesis"), atomic_folder(box, BOX, overwrite=True):
        pytest.fail("the folder must be refused before it is written")
    assert names_in(box) == ["a.txt", "box.json", "thesis.doc"]


@pytest.mark.parametrize("name", ["file", "file/under"])
def test_check_output_folder_of_a_file_is_refused(tmp_path, name):
    (tmp_path / "file").write_text("dear")
    with pytest.raises(HafvtError, match="file is a file, not a folder: choose another folder"):
        check_output_folder(tmp_path / name, BOX, overwrite=True)


def test_folder_lock_of_another_process_and_thread_is_refused_and_ends_with_it(tmp_path):
    box = tmp_path / "box"
    script = (
        "import sys; from hafvt.folders import folder_lock\nwith folder_lock(sys.argv[1]): print(); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(box)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout is not None
    other.stdout.readline()
    with pytest.raises(HafvtError, match="box is in use by another process: wait"):
        write_box(tmp_path, "new")
    other.kill()
    other.wait()
    write_box(tmp_path, "new")
    errors = []
    with folder_lock(box):
        write_box(tmp_path, "newer")  # the thread that holds the lock may write

        def write() -> None:
            try:
                write_box(tmp_path, "newest")
            except HafvtError as error:
                errors.append(str(error))

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
    assert len(errors) == 1
    assert names_in(tmp_path) == ["box"]


def test_folder_lock_under_a_read_only_folder_is_in_the_folder(tmp_path, monkeypatch):
    (tmp_path / "box").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with folder_lock(tmp_path / "box"):
        assert names_in(tmp_path / "box") == [".lock"]
    assert names_in(tmp_path) == ["box"]


FULL_DISK = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError("Not enough free space to write 80000000 bytes after offset 128"),
    OSError("10000000 requested and 4096 written"),
    pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)"),
    pl.exceptions.ComputeError("parquet: File out of specification: Invalid thrift: transport error"),
]


@pytest.mark.parametrize("error", FULL_DISK)
def test_atomic_file_and_folder_on_a_full_disk_say_so_in_one_line(tmp_path, error):
    write_box(tmp_path, "old")
    box = tmp_path / "box"
    with pytest.raises(HafvtError) as line, atomic_folder(box, BOX, overwrite=True) as folder:  # noqa: PT012
        (folder / "a.txt").write_bytes(bytes(2**20))
        raise error
    words = r"box cannot be written .No space left.*: it needs at least 1.0 MiB, .*, the earlier box is unch"
    assert line.match(words)
    assert "\n" not in str(line.value)
    assert box_versions(tmp_path) == {"old"}
    with (
        pytest.raises(
            HafvtError, match=r"x cannot be written .No space left on device.: .* nothing was written"
        ),
        atomic_file(tmp_path / "x"),
    ):
        raise error
    assert names_in(tmp_path) == ["box"]


def test_atomic_folder_with_a_file_that_finds_a_full_disk_names_the_folder(tmp_path):
    write_box(tmp_path, "old")
    words = (
        r"box cannot be written .No space left.*: it needs at least 5 KiB, .* the earlier box is unchanged"
    )
    with (  # noqa: PT012
        pytest.raises(HafvtError, match=words) as line,
        atomic_folder(tmp_path / "box", BOX, overwrite=True) as folder,
        atomic_file(folder / "a.txt") as temporary,
    ):
        temporary.write_bytes(bytes(5000))
        raise OSError(errno.ENOSPC, "No space left on device")
    assert ".tmp" not in str(line.value)


def test_atomic_file_with_a_size_that_the_disk_lacks_is_refused_before_it_is_written(tmp_path):
    with (
        pytest.raises(HafvtError, match=r"it needs at least 9,536,743,164.1 MiB"),
        atomic_file(tmp_path / "x", num_bytes=10**16),
    ):
        pytest.fail("must be refused before")


def test_atomic_file_under_a_file_says_so_in_one_line(tmp_path):
    (tmp_path / "file").write_text("dear")
    with pytest.raises(HafvtError, match="cannot be written"):
        write_json(tmp_path / "file" / "x.json", {})


def test_verify_files_finds_every_changed_byte_and_missing_file(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("a", "sub/b"):
        (tmp_path / name).write_bytes(bytes(range(100)))
    hashes = hash_files(tmp_path)
    assert set(hashes) == {"a", "sub/b"}
    verify_files(tmp_path, hashes, "write it again")
    content = bytearray(range(100))
    content[50] = 0
    (tmp_path / "sub" / "b").write_bytes(content)
    with pytest.raises(HafvtError, match=r"sub/b is damaged .*: write it again"):
        verify_files(tmp_path, hashes, "write it again")
    (tmp_path / "a").unlink()
    with pytest.raises(HafvtError, match="a does not exist: write it again"):
        verify_files(tmp_path, hashes, "write it again")
    with pytest.raises(HafvtError, match="outside of the folder"):
        verify_files(tmp_path, {"../secret": ""}, "write it again")


def test_sha256_reads_a_version_of_a_file_once(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("1")
    first = sha256(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(files.hashlib, "file_digest", None)
        assert sha256(tmp_path / "a") == first
    (tmp_path / "a").write_text("2")
    assert sha256(tmp_path / "a") != first


ERRORS = [
    EOFError(),
    KeyError("domains"),
    ValueError("two\nlines"),
    TypeError("x"),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    json.JSONDecodeError("bad", "x", 0),
    yaml.YAMLError("bad"),
    pl.exceptions.ComputeError("bad"),
    FileNotFoundError("gone"),
    PermissionError(errno.EACCES, "Permission denied"),
    pl.exceptions.PanicException("bad"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_reading_turns_every_error_into_one_line(error):
    words = r"x\.bin (is damaged \(.+\)|does not exist): make it again|x\.bin cannot be read \(Permission"
    with pytest.raises(HafvtError, match=words) as refusal, explained_read_errors("x.bin", "make it again"):
        raise error
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("content", [b"", b"3", b"{", b"\xff\xfe", b"null"])
def test_read_json_of_anything_but_an_object_or_list_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(HafvtError, match=r"x.json is damaged"):
        read_json(tmp_path / "x.json")


def test_verify_json_finds_every_changed_value(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"width": 8, "names": ("a", "ü"), "nested": {1: 0.1}}, checksum=True)
    content = read_json(path)
    verify_json(path, content, "write it again")
    verify_json(path, {"width": 9}, "write it again")  # written before there were checksums
    for change in ({"width": 9}, {"names": ["a", "u"]}, {"nested": {"1": 0.2}}, {"more": 1}):
        with pytest.raises(HafvtError, match=r"x.json is damaged .*: write it again"):
            verify_json(path, content | change, "write it again")


def test_atomic_file_error_of_polars_names_the_file(tmp_path):
    message = r"x\.csv cannot be written \(Permission denied\): check the path"
    with pytest.raises(HafvtError, match=message), atomic_file(tmp_path / "x.csv"):
        raise PermissionError("Permission denied (os error 13): /folder/.x.csv.1.tmp")
