"""Progress of long work on stderr: position, rate, remaining time, memory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hafvt.processes import process_index

console = Console(stderr=True)

NOTEBOOK_S = 0.5  # seconds between two changes of a line in a notebook

Advance = Callable[..., None]
"""`advance(n, note="")` reports that n more units are done; the note appears at the end of the line."""


def report(message: str) -> None:
    """Print a remark on what a function does, such as a guess, on stderr; of several processes, the first."""
    if process_index() == 0:
        console.print(message, markup=False, highlight=False, soft_wrap=True)


def memory_gib() -> float:
    """Return the resident memory of this process in GiB (0 if the system does not report it)."""
    return _status_gib("VmRSS")


def peak_memory_gib() -> float:
    """Return the peak resident memory of this process in GiB (0 if the system does not report it)."""
    return _status_gib("VmHWM")


def available_bytes() -> int:
    """Return the memory that this process can still use, in bytes; 2**62 if the system does not report it."""
    limits = [2**62]
    with suppress(AttributeError, OSError, ValueError):  # not on Windows
        limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    meminfo = _read_lines("/proc/meminfo")
    limits += [int(line.split()[1]) << 10 for line in meminfo if line.startswith("MemAvailable")]
    for line in _read_lines("/proc/self/limits"):  # of `ulimit -v`
        if line.startswith("Max address space") and line.split()[3].isdigit():
            limits.append(int(line.split()[3]) - int(_status_gib("VmSize") * 2**30))
    for folder in _memory_groups():
        for name in ("memory.max", "memory.limit_in_bytes"):  # control groups 2 and 1
            used = int(memory_gib() * 2**30)
            limits += [int(limit) - used for limit in _read_lines(folder / name) if limit.isdigit()]
    return max(min(limits), 0)


def _memory_groups() -> Iterator[Path]:
    """Yield the folders that may hold the memory limits of this process and of its container."""
    for line in _read_lines("/proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        root = Path("/sys/fs/cgroup", "memory" if controllers else "")
        if controllers in ("", "memory"):
            yield from (root / group.lstrip("/"), root)


def _read_lines(path: str | Path) -> list[str]:
    """Return the lines of a file, none where it does not exist."""
    with suppress(OSError):
        return Path(path).read_text().splitlines()
    return []


def _status_gib(field: str) -> float:
    """Return a field of /proc/self/status in GiB, 0 where there is no such file or field."""
    lines = _read_lines("/proc/self/status")
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith(field)), 0.0)


@contextmanager
def progress(title: str, total: int, unit: str, *, done: int = 0, every_s: float = 10.0) -> Iterator[Advance]:
    """Show a bar on a terminal, a line in a notebook, and elsewhere a line every `every_s` seconds on stderr.

    Args:
        title: name of the work.
        total: number of units.
        unit: name of a unit, for the rate.
        done: number of units that an earlier, interrupted run has done.
        every_s: seconds between two plain lines.

    Yields:
        The function to call after each step, see `Advance`.

    Of several processes, only process 0 prints.
    """
    if process_index() > 0:
        yield lambda n=1, note="": None
        return
    start, done_before, last_print = time.monotonic(), done, time.monotonic()

    def state(note: str) -> str:
        rate = (done - done_before) / max(time.monotonic() - start, 1e-9)
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

    show = _notebook_line() if console.is_jupyter else partial(print, file=sys.stderr, flush=True)
    every_s = NOTEBOOK_S if console.is_jupyter else every_s

    def advance_plain(n: int = 1, note: str = "") -> None:
        nonlocal done, last_print
        done += n
        now = time.monotonic()
        if now - last_print >= every_s:
            last_print = now
            remaining_s = (now - start) / max(done - done_before, 1) * max(total - done, 0)
            show(f"{title}: {done:,}/{total:,} {unit}  {remaining_s:,.0f} s left  {state(note)}")

    yield advance_plain
    if console.is_jupyter:
        show(f"{title}: {done:,} {unit} in {time.monotonic() - start:,.0f} s")


def _notebook_line() -> Callable[[str], None]:
    """Show a line below a notebook's cell, and return the function that replaces its text."""
    from IPython.display import display  # only a notebook has it

    line = display({"text/plain": ""}, raw=True, display_id=True)

    def replace_text(text: str) -> None:
        line.update({"text/plain": text}, raw=True)

    return replace_text
