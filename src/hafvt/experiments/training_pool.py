"""Run `hafvt train` in parallel processes, and record in settings.json what a folder of runs is for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, TypeVar

from hafvt.errors import HafvtError
from hafvt.files import read_json, verify_json, write_json
from hafvt.folders import folder_lock
from hafvt.training.config import train_arguments

T = TypeVar("T")

POLL_S = 0.3  # seconds between two looks at a training
HAFVT = [sys.executable, "-m", "hafvt"]


class TrainingPool:
    """Runs trainings in parallel, each in a process with an equal share of the processors.

    Args:
        jobs: number of parallel trainings; default: one per processor.
    """

    def __init__(self, jobs: int | None) -> None:
        processors = os.cpu_count() or 1
        self.jobs = jobs or processors
        self.is_stopped = False
        self._threads = max(processors // self.jobs, 1)
        self._processes: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def start(
        self, model: str, options: Mapping[str, Any], params: Mapping[str, Any], log: Path
    ) -> subprocess.Popen[bytes]:
        """Start or resume a training; wait for one that runs in its folder, whose parent was killed.

        Args:
            model: name of the model.
            options: of `hafvt train`, by name; `out` is the folder.
            params: hyperparameters of the model, by name.
            log: file that the output of the training is appended to.

        Raises:
            KeyboardInterrupt: the pool was stopped.
        """
        command = [*HAFVT, *train_arguments(model, {**options, "resume": True}, params)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(self._threads)}
        while not self.is_stopped and is_in_use(options["out"]):
            time.sleep(POLL_S)
        log.parent.mkdir(parents=True, exist_ok=True)
        with self._lock, log.open("ab") as file:
            if self.is_stopped:
                raise KeyboardInterrupt
            process = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
            self._processes.add(process)
        return process

    def wait(self, process: subprocess.Popen[bytes], log: Path, label: str) -> None:
        """Wait for the end of a training, named `label` in messages, whose output is in `log`.

        Raises:
            KeyboardInterrupt: the pool was stopped.
            HafvtError: the training failed; the message has the last line of the log.
        """
        code = process.wait()
        self._processes.discard(process)
        if self.is_stopped:
            raise KeyboardInterrupt
        if code:
            lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "it left no message: is the disk full?"
            raise HafvtError(f"{label} ended with {code}: {reason} (full output: {log})")

    def stop_one(self, process: subprocess.Popen[bytes]) -> None:
        """Stop one training; it leaves a checkpoint to resume from."""
        process.terminate()
        process.wait()
        self._processes.discard(process)

    def stop(self) -> None:
        """Stop all trainings; each leaves a checkpoint to resume from."""
        with self._lock:
            self.is_stopped = True
        for process in list(self._processes):
            process.terminate()
        for process in list(self._processes):
            process.wait()

    def run(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yield the results of tasks as they end; when one task fails, stop the trainings of all."""
        with ThreadPoolExecutor(self.jobs) as executor:
            try:
                pending = {executor.submit(task) for task in tasks}
                while pending:  # with a timeout, as the Ctrl-C handler of Polars does not end a wait
                    done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            except BaseException:
                self.stop()
                executor.shutdown(cancel_futures=True)
                raise


def is_in_use(folder: Path) -> bool:
    """Return whether a training runs in a folder."""
    try:
        with folder_lock(folder):
            return False
    except HafvtError:
        return True


def read_settings(out: Path) -> dict[str, Any]:
    """Return what `save_or_check_settings` wrote into a folder.

    Raises:
        HafvtError: settings.json is missing or damaged.
    """
    path, remedy = out / "settings.json", "restore it, or choose another folder"
    settings = read_json(path, remedy)
    if not isinstance(settings, dict):
        raise HafvtError(f"{path} is damaged: {remedy}")
    verify_json(path, settings, remedy)
    return settings


def save_or_check_settings(
    out: Path, settings: Mapping[str, Any], content: str, defaults: Mapping[str, Any] | None = None
) -> None:
    """Write settings.json into a new folder; in an existing one, require equal settings.

    Args:
        out: the folder; the caller holds a lock of it.
        settings: what all trainings in the folder have in common.
        content: what the folder holds, for messages, such as "a comparison".
        defaults: values of settings that an earlier version did not save.

    Raises:
        HafvtError: the folder holds something else.
    """
    path, wanted = out / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        if out.exists() and any(file.name[0] != "." for file in out.iterdir()):
            raise HafvtError(f"{out} is not empty and does not hold {content}: choose another folder")
        write_json(path, wanted, checksum=True)
    saved = {**(defaults or {}), **read_settings(out)}
    different = [name for name in wanted if saved.get(name) != wanted[name]]
    if different:
        names = " and ".join(different)
        raise HafvtError(f"{out} holds {content} with another {names}: choose another folder")
