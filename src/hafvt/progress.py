"""Progress of long work: how far, how fast, how long still, how much memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

console = Console(stderr=True)

Advance = Callable[..., None]
"""`advance(n, note="")`: n more units are done; the note stands at the end of the line."""


def memory_gib() -> float:
    """Returns the resident memory of this process in GiB (0 where the system does not tell)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    return 0.0


def peak_gib() -> float:
    """Returns the most resident memory of this process so far in GiB (0 where the system does not tell)."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**20
    except OSError:
        pass
    return 0.0


@contextmanager
def progress(title: str, total: int, unit: str, *, done: int = 0, every_s: float = 10.0) -> Iterator[Advance]:
    """Shows a bar on a terminal and a plain line every `every_s` seconds elsewhere, both on stderr.

    Args:
        title: what is being done.
        total: how many units there are.
        unit: the name of a unit, for the rate.
        done: how many of them were done before, by a run that was stopped.
        every_s: seconds between two plain lines.
    """
    start, before, last = time.monotonic(), done, time.monotonic()

    def state(note: str) -> str:
        rate = (done - before) / max(time.monotonic() - start, 1e-9)
        return f"{rate:,.{0 if rate >= 10 else 1}f} {unit}/s  {memory_gib():.1f} GiB  {note}".rstrip()

    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[state]}"),
        )
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(title, total=total, completed=done, state="")

            def advance(n: int = 1, note: str = "") -> None:
                nonlocal done
                done += n
                bar.update(task, completed=done, state=state(note))

            yield advance
        return

    def advance_plain(n: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += n
        now = time.monotonic()
        if now - last >= every_s:
            last = now
            left = (now - start) / max(done - before, 1) * max(total - done, 0)
            print(
                f"{title}: {done:,}/{total:,} {unit}  {left:,.0f} s left  {state(note)}",
                file=sys.stderr,
                flush=True,
            )

    yield advance_plain
