"""Every damaged file of added items, an index or an export is refused in one line that names the remedy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hafvt import export
from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from tests.inference.test_crashes import root, saved

__all__ = ["root", "saved"]  # fixtures

HISTORIES = [["i3", "n0", "i220"], []]


def damaged_contents(content: bytes, is_json: bool) -> Iterator[tuple[str, bytes]]:
    """Yields ways in which a file may be damaged, with their results."""
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    yield "zeros", bytes(len(content))
    yield "longer", content + b"?"
    yield "one bit", bytes([content[0] ^ 1]) + content[1:]
    yield "last bit", content[:-1] + bytes([content[-1] ^ 1])
    yield "text", b"\xff\xfe not what it was"
    if is_json:
        yield from (("other type", text) for text in (b"null", b"[]", b"{}", b'"text"', b"[" * 100_000))
        value = json.loads(content)
        for name in value:
            yield f"no {name}", json.dumps({n: v for n, v in value.items() if n != name}).encode()
            for other in (None, [], "text", 1.5, {"a": 1}):
                yield f"{name} is {other}", json.dumps(value | {name: other}).encode()


def assert_damage_is_refused(folder: Path, use: Callable[[], object], remedy: str) -> None:
    """Damages each file of a folder in turn; uses must raise the remedy in one line, or give the same."""
    expected = use()
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes()
        for damage, damaged in [*damaged_contents(content, path.suffix == ".json"), ("missing", None)]:
            if damaged is None:
                path.unlink()
            else:
                path.write_bytes(damaged)
            try:
                result, message = use(), ""
            except HafvtError as error:
                result, message = None, str(error)
            if message or path.suffix != ".json":
                assert remedy in message, (path.name, damage, message)
                assert "\n" not in message, (path.name, damage, message)
            else:
                assert result == expected, (path.name, damage)
        path.write_bytes(content)
    assert use() == expected


def test_open_damaged_added_items_raises(root: Path) -> None:
    shutil.rmtree(root / "run" / "index")
    use = lambda: Recommender.open(root / "run").recommend(HISTORIES, "d0", k=5)  # noqa: E731
    folder = root / "run" / "added_items"
    assert_damage_is_refused(folder, use, f"remove {folder} and add the items again")


def test_open_damaged_index_raises(root: Path) -> None:
    use = lambda: Recommender.open(root / "run").recommend(HISTORIES, "d0", k=5)  # noqa: E731
    assert_damage_is_refused(root / "run" / "index", use, "build it again with hafvt index")


def test_open_damaged_export_raises(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    folder = export(saved / "popularity", out=tmp_path / "out").folder
    use = lambda: Recommender.open(folder).recommend(HISTORIES, "d0", k=5)  # noqa: E731
    assert_damage_is_refused(folder, use, "export the run again")
