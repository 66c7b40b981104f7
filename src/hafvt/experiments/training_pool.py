"""`hafvt train` in processes of their own, side by side, and the folder that remembers what they are for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from hafvt.errors import HafvtError
from hafvt.files import read_json, write_json

T = TypeVar("T")

PROGRAM = [sys.executable, "-m", "hafvt", "train"]


class TrainingPool:
    """Trainings side by side, each a process with its share of the processors.

    Args:
        jobs: how many at once.

    Raises:
        HafvtError: fewer than one.
    """

    def __init__(self, jobs: int) -> None:
        if jobs < 1:
            raise HafvtError(f"--jobs {jobs}: give 1 or more")
        self.jobs, self.threads = jobs, max((os.cpu_count() or 1) // jobs, 1)
        self.running: set[subprocess.Popen[bytes]] = set()
        self.stopped = False
        self.lock = threading.Lock()

    def start(
        self, model: str, options: Mapping[str, Any], params: Mapping[str, Any], log: BinaryIO
    ) -> subprocess.Popen[bytes]:
        """Starts a training, or goes on with it.

        Args:
            model: its name.
            options: of `hafvt train`, by name.
            params: the model's hyperparameters, by name.
            log: takes what the training says; the process inherits it.

        Raises:
            KeyboardInterrupt: all were asked to stop.
        """
        options = {**options, "resume": True, **{f"params.{name}": value for name, value in params.items()}}
        command = [*PROGRAM, model]
        command += [f"--{name}={_spelt(value)}" for name, value in options.items()]
        with self.lock:
            if self.stopped:
                raise KeyboardInterrupt
            environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            self.running.add(process)
        return process

    def ended(self, process: subprocess.Popen[bytes], log: Path, label: str) -> None:
        """Waits for a training.

        Raises:
            KeyboardInterrupt: all were asked to stop.
            HafvtError: it failed; the last that it said is in the message.
        """
        code = process.wait()
        self.running.discard(process)
        if self.stopped:
            raise KeyboardInterrupt
        if code:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise HafvtError(f"{label} ended with {code}: {said[-1] if said else ''} (all of it: {log})")

    def stop(self) -> None:
        """Asks the trainings to stop; they leave a state to go on from."""
        with self.lock:
            self.stopped = True
        for process in list(self.running):
            process.terminate()
        for process in list(self.running):
            process.wait()

    def side_by_side(self, tasks: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yields what tasks return, as they end; where one fails, the trainings of all are stopped."""
        with ThreadPoolExecutor(self.jobs) as pool:
            try:
                left = {pool.submit(task) for task in tasks}
                while left:  # not for ever at once: Polars' handler of Ctrl-C does not wake who waits
                    done, left = wait(left, timeout=0.5, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield future.result()
            except BaseException:
                self.stop()
                pool.shutdown(cancel_futures=True)
                raise


def keep_settings(out: Path, settings: Mapping[str, Any], what: str) -> None:
    """Makes a folder for trainings with settings.json, or checks that it is one of the same settings.

    Args:
        out: the folder.
        settings: what the trainings have in common.
        what: they are, in words, such as "a comparison".

    Raises:
        HafvtError: it holds something else.
    """
    path, plain = out / "settings.json", json.loads(json.dumps(settings))
    if not path.exists():
        # Another process may be at the same: then the file that fills the folder is settings.json.
        if out.exists() and any(f.name[0] != "." for f in out.iterdir()) and not path.exists():
            raise HafvtError(f"{out} is not empty and does not hold {what}: choose another folder")
        write_json(path, plain)
    held = read_json(path)
    other = [name for name in plain if held.get(name) != plain[name]]
    if other:
        raise HafvtError(f"{out} holds {what} with another {' and '.join(other)}: choose another folder")


def _spelt(value: Any) -> str:
    return str(value) if isinstance(value, str | Path) else json.dumps(value)
