"""A Redis server of its own for tests; they are skipped where Debian's redis-server is missing."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.served import wait_until

PROGRAM = Path("/usr/bin/redis-server")


@contextmanager
def run_redis(port: int = 0) -> Iterator[str]:
    """Runs a server that stores nothing on disk; yields its URL."""
    pytest.importorskip("redis", reason="the client needs the extra redis")
    if not PROGRAM.exists():
        pytest.skip(f"there is no {PROGRAM}: apt-get install redis-server")
    port = port or free_port()
    command = [str(PROGRAM), "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        wait_until(lambda: is_open(port))
        try:
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()


def is_open(port: int) -> bool:
    """Returns whether something listens at a port."""
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
