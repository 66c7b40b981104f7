"""`hafvt train --devices N`: N processes on this machine train together, under torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hafvt.errors import HafvtError
from hafvt.processes import LAUNCH_ID

HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by the agent


def launch_processes(arguments: list[str], count: int) -> None:
    """Run `hafvt` with the same arguments in several processes, which torch.distributed connects.

    Progress and warnings of process 0 go to stderr; what it prints goes nowhere.

    Raises:
        HafvtError: a process failed or was killed; the others have ended, too.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the processes have written a checkpoint.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # errors are reported below
    with tempfile.TemporaryDirectory() as logs, _own_threads(count), _restored_signal_handlers():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=LAUNCH_ID,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs, redirects=Std.OUT),
        )
        try:
            elastic_launch(config, sys.executable)("-m", "hafvt", *arguments)
        except SignalException:
            raise KeyboardInterrupt from None
        except ChildFailedError as error:
            raise _explain(error) from None


def _explain(error: ChildFailedError) -> HafvtError:
    """Return one line for the process that failed first, or for the one that was killed."""
    killed = [
        (index, failure)
        for index, failure in error.failures.items()
        if failure.exitcode < 0 and -failure.exitcode != signal.SIGTERM  # which the agent sends to the others
    ]
    failed = [(index, failure) for index, failure in error.failures.items() if failure.exitcode > 0]
    failed.sort(key=lambda item: not isinstance(item[1].message, dict))  # those with a recorded error first
    index, failure = (killed or failed or [error.get_first_failure()])[0]
    if failure.exitcode < 0:
        reason = (
            "as when the memory runs out" if -failure.exitcode == signal.SIGKILL else "see messages above"
        )
        return HafvtError(
            f"process {index} was killed ({failure.signal_name()}, {reason}), and the others ended: start "
            "the command again with --resume, which continues from the last checkpoint"
        )
    content: Any = failure.message  # a dictionary if the process has recorded an exception
    message = content["message"] if isinstance(content, dict) else ""
    if message.startswith(name := f"{HafvtError.__name__}: "):
        return HafvtError(message.removeprefix(name))
    return HafvtError(f"process {index} ended with exit status {failure.exitcode}: see the messages above")


@contextmanager
def _own_threads(count: int) -> Iterator[None]:
    """Give each process an equal share of the processors, unless OMP_NUM_THREADS is set."""
    if "OMP_NUM_THREADS" in os.environ:
        yield
        return
    os.environ["OMP_NUM_THREADS"] = str(max((os.cpu_count() or 1) // count, 1))
    try:
        yield
    finally:
        del os.environ["OMP_NUM_THREADS"]


@contextmanager
def _restored_signal_handlers() -> Iterator[None]:
    """Restore the handlers of signals, which the agent replaces in the main thread."""
    handlers = {number: signal.getsignal(number) for number in HANDLED_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)
