"""Kill a command before each of its file operations: every state on disk that a kill leaves must lead on.

A test gives the command as Python source, a function that restores the state before it, and a function that
asserts what must hold after the kill, for example that the command succeeds when it is started again:

    def test_prepare_killed_anywhere_keeps_a_dataset(tmp_path):
        imports = "from hafvt.data.prepare import prepare"
        action = "prepare(root / 'log.csv', out=root / 'data', overwrite=True)"
        crash_before_each_operation(tmp_path, action, imports=imports, reset=reset, check=check)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

KILLED = 99  # exit status of a process that was killed before the wanted operation
OPERATIONS = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


def crash_before_each_operation(
    root: Path,
    action: str,
    *,
    imports: str = "",
    reset: Callable[[], None] = lambda: None,
    check: Callable[[int], None] = lambda step: None,
    stride: int = 1,
) -> int:
    """Run an action once for each of its file operations, and kill it before that operation.

    Operations are every rename, replace, unlink, rmdir, mkdir, link, fsync, exchange of folders, and open for
    writing, as far as Python carries them out in `root`. The process that is killed is a fork of one that has
    run `imports`, so that a kill costs milliseconds.

    Args:
        root: the folder in which operations count; `root` in the action.
        action: Python source of the command.
        imports: Python source that runs once before all actions, such as imports.
        reset: called before each action; restores the files.
        check: called after each kill with the number of the operation before which it came, from 1.
        stride: kill only before each `stride`-th operation, where an action has many.

    Returns:
        The number of kills; at least one.

    Raises:
        AssertionError: the action failed, or it has no file operation.
    """
    server = subprocess.Popen(
        [sys.executable, "-c", "from tests.crash import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[1],
    )
    assert server.stdin is not None
    assert server.stdout is not None
    assert server.stderr is not None
    kills = 0
    with server:
        server.stdin.write(json.dumps({"root": str(root), "action": action, "imports": imports}) + "\n")
        while True:
            reset()
            server.stdin.write(f"{1 + kills * stride}\n")
            server.stdin.flush()
            status = server.stdout.readline().strip()
            if status != str(KILLED):
                break
            check(1 + kills * stride)
            kills += 1
        server.stdin.close()
        assert status == "0", f"{action}: exit status {status or 'unknown'}\n{server.stderr.read()}"
    assert kills, f"{action}: no file operation in {root}"
    return kills


def serve() -> None:
    """Read the action, then numbers of operations, from stdin; print the exit status of each run."""
    task = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    namespace: dict[str, Any] = {"root": Path(task["root"])}
    exec(task["imports"], namespace)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _run_and_exit(task["action"], namespace, int(line))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def _run_and_exit(action: str, namespace: dict[str, Any], last: int) -> NoReturn:
    """Run an action in this process, end it before operation number `last`, and never return."""
    root, count = os.path.realpath(namespace["root"]), 0

    def operation() -> None:
        nonlocal count
        count += 1
        if count == last:
            os._exit(KILLED)

    def is_inside(path: Any) -> bool:
        """Whether a path is in `root`; a name alone is that of a file in an open folder."""
        if isinstance(path, int):
            return False
        name = os.fsdecode(path)
        return os.path.realpath(name).startswith(root) or (os.sep not in name and not Path(name).exists())

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        is_write = event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES
        if (event in OPERATIONS or is_write) and is_inside(arguments[0]):
            operation()

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            operation()
            return function(*arguments)

        return call

    status = 0
    try:
        from hafvt import folders

        os.fsync = counted(os.fsync)
        folders._exchange = counted(folders._exchange)
        sys.addaudithook(audit)
        exec(action, namespace)
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 1
    sys.stderr.flush()
    os._exit(status)
