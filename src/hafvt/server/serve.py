"""`hafvt serve`: the application as a process of its own."""

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
from hafvt.server.middleware import KEY

LOCAL = ("localhost", "127.0.0.1", "[::1]")
KEEP_ALIVE_S = 30  # seconds that an idle connection is kept
CONNECTIONS = 800  # at a time; others get 503 (many systems allow a process 1,024 open files)


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
    """Answers over HTTP: recommendations, their reasons, the items, and a page to try it all.

    Where the environment variable HAFVT_API_KEY is set, callers must know it. A model that replaces the one
    in the folder is loaded while the old one answers, then takes its place; SIGHUP asks for that at once.
    SIGTERM and Ctrl-C stop: what is under way is finished first.

    Example: hafvt serve runs/hafvt --port 8000

    Args:
        run: the folder that train or export wrote.
        host: the address to listen at; 0.0.0.0 lets other machines in.
        port: 0 takes a free one.
        queue: how many requests may wait for the model; more get status 429.
        timeout: seconds until a request is given up, with status 504.
        cors_origins: web pages of these origins, such as https://shop.example, may call it; * means all.
        data: the dataset, where it has moved since training.

    Raises:
        HafvtError: no finished run, a port that is taken, an option that cannot be.
    """
    key = os.environ.get(KEY)
    if key is not None and not re.fullmatch(r"[\x21-\x7e]+", key):
        raise HafvtError(f"{KEY} is empty or has other than plain characters: unset it, or give it a key")
    if queue < 1 or not timeout > 0:
        raise HafvtError("--queue and --timeout must be above 0")
    for origin in cors_origins or ():
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise HafvtError(f"--cors-origins: {origin!r} is none: give it as https://shop.example")
    try:
        import uvicorn

        from hafvt.server.app import Settings, create_app
        from hafvt.server.slow_clients import SlowClientProtocol
    except ModuleNotFoundError as error:
        raise missing_package("serve", error.name or "fastapi") from None
    from hafvt.server.manager import ModelSource

    listener = listen(host, port)
    loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
    settings = Settings(
        api_key=key,
        hosts=(*LOCAL, host.lower()) if key is None and loopback else (),
        cors_origins=tuple(cors_origins or ()),
        queue=queue,
        timeout=timeout,
    )
    app = create_app(ModelSource(Path(run), Path(data) if data else None), settings)
    config = uvicorn.Config(
        app,
        http=SlowClientProtocol,
        ws="none",
        access_log=False,
        server_header=False,
        log_level="warning",
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=int(timeout) + 5,
    )
    server, models = uvicorn.Server(config), app.state.models

    def stop() -> None:
        server.should_exit = True

    models.on_problem = stop
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("hafvt.server").setLevel(logging.INFO)
    address = url(listener)
    console.print(f"{address}  (Ctrl-C stops)", highlight=False)
    if key is None and not loopback:
        console.print(f"everybody who reaches {address} may ask, and read people's histories: set {KEY}")
    # uvicorn stops at these two, then raises them again: here they have said all they had to say.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    if hasattr(signal, "SIGHUP"):
        before[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: models.ask())
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if models.problem is not None:
        raise models.problem
    return "stopped"


def listen(host: str, port: int) -> socket.socket:
    """Returns a listening socket.

    Raises:
        HafvtError: the address cannot be had.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise HafvtError(
            f"cannot listen at {host}, port {port} ({said}): choose others by --host, --port"
        ) from None


def url(listener: socket.socket) -> str:
    """Returns the address of a listening socket as people type it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
