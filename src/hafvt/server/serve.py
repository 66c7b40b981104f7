"""`hafvt serve`: runs the application in this process."""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import signal
import socket
import sys
from pathlib import Path

from hafvt.errors import HafvtError, missing_package
from hafvt.progress import console

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_S = 30  # seconds until an idle connection is closed
MAX_CONNECTIONS = 800  # further ones get 503 (many systems allow a process 1,024 open files)


def serve(
    run: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    queue: int = 1024,
    timeout: float = 10.0,
    cors_origins: list[str] | None = None,
    data: str | Path | None = None,
) -> str:
    """Serves a model over HTTP: recommendations, explanations, items, and a page to try the model with.

    If the environment variable HAFVT_API_KEY is set, callers must send its value. A newer model in the folder
    is loaded while the old one answers; SIGHUP loads it at once. SIGTERM and Ctrl-C stop the server after the
    requests under way are answered.

    Example: hafvt serve runs/hafvt --port 8000

    Args:
        run: folder of a run or an export.
        host: address to listen at; 0.0.0.0 lets other machines in.
        port: port to listen at; 0 takes a free one.
        queue: largest number of requests that wait for the model; further ones get status 429.
        timeout: seconds until a request is answered with status 504.
        cors_origins: origins, such as https://shop.example, whose web pages may call; * means all.
        data: the dataset, if it has moved since training.

    Raises:
        HafvtError: there is no finished run, the address is in use, or an option is invalid.
    """
    try:
        import uvicorn

        from hafvt.server.app import create_app
        from hafvt.server.manager import ModelSource
        from hafvt.server.middleware import API_KEY_VARIABLE
        from hafvt.server.slow_clients import SlowClientProtocol
    except ModuleNotFoundError as error:
        raise missing_package("serve", error.name or "fastapi") from None
    api_key = os.environ.get(API_KEY_VARIABLE)
    if api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise HafvtError(
            f"{API_KEY_VARIABLE} is empty or has other than ASCII characters: unset or change it"
        )
    if queue < 1 or not timeout > 0:
        raise HafvtError("--queue and --timeout must be above 0")
    for origin in cors_origins or ():
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise HafvtError(f"--cors-origins: {origin!r} is no origin: give it as https://shop.example")
    listener = listen(host, port)
    is_loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    app = create_app(
        ModelSource(Path(run), Path(data) if data else None),
        api_key=api_key,
        allowed_hosts=(*LOOPBACK_HOSTS, host.lower()) if api_key is None and is_loopback else (),
        cors_origins=tuple(cors_origins or ()),
        queue_size=queue,
        timeout=timeout,
    )
    config = uvicorn.Config(
        app,
        http=SlowClientProtocol,
        ws="none",
        access_log=False,
        server_header=False,
        log_level="warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(timeout) + 5,
    )
    server, models = uvicorn.Server(config), app.state.models
    models.on_startup_error = lambda: setattr(server, "should_exit", True)
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("hafvt.server").setLevel(logging.INFO)
    address = url_of(listener)
    console.print(f"{address}  (Ctrl-C stops)", highlight=False)
    if api_key is None and not is_loopback:
        console.print(
            f"everybody who can reach {address} can read the histories of all users: set {API_KEY_VARIABLE}"
        )
    # uvicorn raises the signal that stopped it again after its end; these handlers ignore it then.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    if hasattr(signal, "SIGHUP"):
        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: models.request_reload())
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if models.startup_error is not None:
        raise models.startup_error
    return "stopped"


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket.

    Raises:
        HafvtError: the address is in use or does not exist.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise HafvtError(
            f"cannot listen at {host}, port {port} ({reason}): choose others by --host, --port"
        ) from None


def url_of(listener: socket.socket) -> str:
    """Returns the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
