"""Ctrl-C and SIGTERM as a flag that a loop checks between its steps."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hafvt.processes import num_processes


@contextmanager
def deferred_interrupts() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether Ctrl-C or SIGTERM arrived, which do not interrupt the block.

    A second signal raises KeyboardInterrupt at once, but not in one of several processes: torchrun repeats
    the signal that the terminal has sent, and the processes write a checkpoint together. Outside the main
    thread, where Python cannot handle signals, the function always returns False.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    interrupted = False

    def handle(number: int, frame: object) -> None:
        nonlocal interrupted
        if interrupted and num_processes() == 1:
            raise KeyboardInterrupt
        interrupted = True

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
