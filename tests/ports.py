"""Free ports for servers that tests start."""

from __future__ import annotations

import socket


def free_port() -> int:
    """Returns a port of the loopback interface that nothing uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
