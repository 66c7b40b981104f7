"""`hafvt train --devices N`: N processes on this machine train together, under torchrun's agent."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from hafvt.errors import HafvtError
from hafvt.processes import LAUNCH_ID

STOPPED = 130  # exit status of a process that Ctrl-C or SIGTERM stopped
HANDLED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)  # by the agent


def launch_processes(arguments: list[str], count: int, folder: Path | None = None) -> None:
    """Run `hafvt` with the same arguments in several processes, which torch.distributed connects.

    Progress and warnings of process 0 go to stderr; what it prints goes nowhere.

    Args:
        arguments: of `hafvt`.
        count: number of processes.
        folder: of the run, for a training, which can be resumed.

    Raises:
        HafvtError: a process failed or was killed; the others have ended, too.
        KeyboardInterrupt: Ctrl-C or SIGTERM reached this process or one of them; all have ended.
    """
    for name in logging.root.manager.loggerDict:  # each has a level of its own; errors are reported below
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    environment = {
        "OMP_NUM_THREADS": str(max((os.cpu_count() or 1) // count, 1)),  # an equal share of the processors
        "TORCH_CPP_LOG_LEVEL": "ERROR",  # no traces of lost connections when a process is killed
    }
    earlier_model = _read_model(folder)
    remedy = "start the command again"
    with tempfile.TemporaryDirectory() as logs, _environment(environment), _restored_signal_handlers():
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
            codes = {failure.exitcode for failure in error.failures.values()}
            if STOPPED in codes <= {STOPPED, -signal.SIGTERM}:
                raise KeyboardInterrupt from None
            remedy += " with --resume, which continues from the last checkpoint" if folder else ""
            if _read_model(folder) != earlier_model:
                remedy = f"the training had finished; hafvt evaluate {folder} ranks its test targets"
            raise _explain(error, remedy) from None


def _read_model(folder: Path | None) -> bytes:
    """Return the content of the model.json of a run; empty if there is none."""
    path = None if folder is None else folder / "model.json"
    return path.read_bytes() if path is not None and path.exists() else b""


def _explain(error: ChildFailedError, remedy: str) -> HafvtError:
    """Return one line for the process that failed first, or for the one that was killed, with the remedy."""
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
            f"process {index} was killed ({failure.signal_name()}, {reason}), and the others ended: {remedy}"
        )
    content: Any = failure.message  # a dictionary if the process has recorded an exception
    message = content["message"] if isinstance(content, dict) else ""
    if message.startswith(name := f"{HafvtError.__name__}: "):
        return HafvtError(message.removeprefix(name))
    return HafvtError(f"process {index} ended with exit status {failure.exitcode}: see the messages above")


@contextmanager
def _environment(defaults: Mapping[str, str]) -> Iterator[None]:
    """Set those environment variables that are not set while the block runs."""
    added = {name: value for name, value in defaults.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


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
