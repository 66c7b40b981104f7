from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from hafvt import progress

GIB = 2**30


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"/proc/meminfo": ["MemTotal: 9 kB", f"MemAvailable: {2**20} kB"]}, GIB),
        ({"/proc/self/cgroup": ["0::/job"], "/sys/fs/cgroup/job/memory.max": [str(3 * GIB)]}, 2 * GIB),
        ({"/proc/self/cgroup": ["0::/"], "/sys/fs/cgroup/memory.max": [str(2 * GIB)]}, GIB),
        (
            {
                "/proc/self/cgroup": ["5:cpu:/", "4:memory:/box"],
                "/sys/fs/cgroup/memory/memory.limit_in_bytes": [str(2 * GIB)],
            },
            GIB,
        ),
        ({"/proc/self/limits": [f"Max address space   {5 * GIB}   unlimited   bytes"]}, 2 * GIB),
        ({"/proc/self/limits": ["Max address space   unlimited   unlimited   bytes"]}, None),
        ({"/proc/self/cgroup": ["0::/"], "/sys/fs/cgroup/memory.max": ["max"]}, None),
        ({}, None),
    ],
)
def test_available_bytes_smallest_limit_is_used(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, list[str]], expected: int | None
) -> None:
    status = ["VmSize: 3145728 kB", "VmRSS: 1048576 kB"]  # 3 and 1 GiB
    content = {"/proc/self/status": status, **files}
    monkeypatch.setattr(progress, "_read_lines", lambda path: content.get(str(path), []))
    monkeypatch.setattr(progress.os, "sysconf", lambda name: 2**31, raising=False)
    assert progress.available_bytes() == (2**62 if expected is None else expected)


def test_progress_in_a_notebook_replaces_one_line(monkeypatch):
    texts = []

    class Line:
        def update(self, content, raw):
            texts.append(content["text/plain"])

    display = SimpleNamespace(display=lambda content, raw, display_id: Line())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(display=display))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(progress.console, "is_jupyter", True)
    monkeypatch.setattr(progress, "NOTEBOOK_S", 0.0)
    with progress.progress("prepare", 4, "steps") as advance:
        advance(3, "read")
    assert texts[0].startswith("prepare: 3/4 steps")
    assert texts[-1].startswith("prepare: 3 steps in")
