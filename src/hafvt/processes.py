"""The processes of one training or evaluation, as torchrun starts them. This module does not import torch."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Environment variables of each process that torchrun starts."""

LAUNCH_ID = "hafvt-devices"
"""Name of a launch by `--devices`, in place of torchrun."""

_reports_errors: bool | None = None


def num_processes() -> int:
    """Return the number of processes that torchrun started together; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if all(name in os.environ for name in VARIABLES) else 1


def process_index() -> int:
    """Return the number of this process, from 0; process 0 alone writes files and messages."""
    return int(os.environ["RANK"]) if num_processes() > 1 else 0


def local_process_index() -> int:
    """Return the number of this process among those of this machine, from 0."""
    return int(os.environ["LOCAL_RANK"]) if num_processes() > 1 else 0


def num_local_processes() -> int:
    """Return the number of processes on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if num_processes() > 1 else 1


def set_reports_errors(value: bool | None) -> None:
    """Set whether this process prints the error that ends the processes; None for process 0 alone."""
    global _reports_errors
    _reports_errors = value


def reports_errors() -> bool:
    """Return whether this process prints the error that ends the processes."""
    return process_index() == 0 if _reports_errors is None else _reports_errors


def is_launched() -> bool:
    """Return whether a process with `--devices` launched this one, and prints its errors."""
    return os.environ.get("TORCHELASTIC_RUN_ID") == LAUNCH_ID


def record_error(error: Exception) -> bool:
    """Pass an error to the process that launched this one with `--devices`; return False without one."""
    if not is_launched():
        return False
    from torch.distributed.elastic.multiprocessing.errors import (
        get_error_handler,  # `hafvt` starts without torch
    )

    get_error_handler().record_exception(error)
    return True


@contextmanager
def sigterm_as_ctrl_c() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C, so that child processes stop and temporary files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
