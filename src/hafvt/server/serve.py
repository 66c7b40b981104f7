"""`hafvt serve`: runs the application in this process."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import os
import re
import signal
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from hafvt.errors import ArgumentError, HafvtError, missing_package
from hafvt.progress import console
from hafvt.settings import Folder, Port, PositiveCount, PositiveNumber, check_arguments
from hafvt.training.hub_download import local_folder

if TYPE_CHECKING:
    import uvicorn

    from hafvt.server.history_store import HistoryStore

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "[::1]")


@check_arguments
def serve(
    run: Folder,
    more: list[str] | None = None,
    *,
    host: str = "127.0.0.1",
    port: Port = 8000,
    queue: PositiveCount = 1024,
    timeout: PositiveNumber = 10.0,
    cors_origins: list[str] | None = None,
    data: Folder | None = None,
    policies: str | Path | None = None,
    history_store: str | None = None,
) -> str:
    """Serve models over HTTP: recommendations, explanations, items, and a page to try the models with.

    The address is printed once the model is loaded. If the environment variable HAFVT_API_KEY is set, callers
    must send its value. A newer model in the folder is loaded while the old one answers; SIGHUP loads it at
    once. SIGTERM and Ctrl-C stop the server after the requests under way are answered.

    Example: hafvt serve runs/hafvt --port 8000

    Args:
        run: folder of a run or an export, or hf://owner/name of the Hugging Face Hub.
        more: folders of further ones, which the page shows side by side and requests name by ?model=.
        host: address to listen at; 0.0.0.0 lets other machines in.
        port: port to listen at; 0 takes a free one.
        queue: largest number of requests that wait for the model; further ones get status 429.
        timeout: seconds until a request is answered with status 504.
        cors_origins: origins, such as https://shop.example, whose web pages may call; * means all.
        data: the dataset, if it has moved since training.
        policies: a YAML file of named rules, which requests choose by `policy`; the policy "default" holds
            for requests that name none. A changed file is loaded while the server runs.
        history_store: where events are kept that callers post to /events: memory, or redis://HOST:PORT/0 of
            a Redis or Valkey server, which several servers share. Default: the environment variable
            HAFVT_HISTORY_STORE, else memory. A URL with a password belongs there.

    Raises:
        HafvtError: there is no finished run, the address is in use, the history store cannot be reached, or
            an option is invalid.
    """
    try:
        from hafvt.server.app import create_app
        from hafvt.server.connections import make_server
        from hafvt.server.history_store import history_store_url, open_history_store
        from hafvt.server.manager import ModelSource
        from hafvt.server.middleware import API_KEY_VARIABLE
    except ModuleNotFoundError as error:
        raise missing_package("serve", error.name or "fastapi") from None
    _check_process(Path(run))
    api_key = os.environ.get(API_KEY_VARIABLE)
    if api_key is not None and not re.fullmatch(r"[\x21-\x7e]+", api_key):
        raise HafvtError(f"{API_KEY_VARIABLE} is empty or not ASCII without blanks: unset or change it")
    for origin in cors_origins or ():
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise ArgumentError(f"--cors-origins: {origin!r} is no origin: give it as https://shop.example")
    store_url = history_store_url(history_store)
    asyncio.run(check_and_close(open_history_store(store_url)))  # that of the server needs its event loop
    logging.basicConfig(stream=sys.stderr, format="%(asctime)s %(message)s")
    logging.getLogger("hafvt.server").setLevel(logging.INFO)
    with listen(host, port) as listener:
        is_loopback = ipaddress.ip_address(listener.getsockname()[0]).is_loopback
        app = create_app(
            *(
                ModelSource(
                    local_folder(folder),
                    Path(data) if data else None,
                    None if policies is None else Path(policies),
                )
                for folder in (run, *(more or ()))
            ),
            api_key=api_key,
            allowed_hosts=(*LOOPBACK_HOSTS, host.lower()) if api_key is None and is_loopback else (),
            cors_origins=tuple(cors_origins or ()),
            queue_size=queue,
            timeout=timeout,
            history_store=open_history_store(store_url),
        )
        address = url_of(listener)
        console.print(f"{address}  (Ctrl-C stops)", highlight=False)
        if api_key is None and not is_loopback:
            console.print(
                f"all who reach {address} can read and extend the histories of users: set {API_KEY_VARIABLE}"
            )
        run_until_stopped(make_server(app, stop_timeout=int(timeout) + 5), listener)
    return "stopped"


async def check_and_close(store: HistoryStore) -> None:
    """Raise HafvtError if a history store cannot be reached; close its connections."""
    try:
        await store.check()
    finally:
        await store.close()


def _check_process(run: Path) -> None:
    """Raise HafvtError in a notebook or a thread, where a server cannot wait for the signals that stop it."""
    with suppress(RuntimeError):  # no event loop is running
        asyncio.get_running_loop()
        raise HafvtError(f"a notebook cannot serve: run hafvt serve {run} in a terminal")
    if threading.current_thread() is not threading.main_thread():
        raise HafvtError(
            f"a thread cannot serve: run hafvt serve {run} in a terminal, or start it with "
            f'subprocess.Popen(["hafvt", "serve", "{run}"])'
        )


def run_until_stopped(server: uvicorn.Server, listener: socket.socket) -> None:
    """Answer requests until SIGTERM or Ctrl-C; load the model again at SIGHUP."""
    # uvicorn raises the signal that stopped it again after its end; these handlers ignore it then.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    if hasattr(signal, "SIGHUP"):
        models = server.config.app.state.models  # type: ignore[union-attr]

        def reload() -> None:
            for manager in models.values():
                manager.request_reload()

        handlers[signal.SIGHUP] = signal.signal(signal.SIGHUP, lambda *_: reload())
    try:
        server.run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        HafvtError: the address is in use or does not exist.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: no name of a host
        reason = getattr(error, "strerror", None) or str(error)
        raise HafvtError(
            f"cannot listen at {host}, port {port} ({reason}): choose others by --host, --port"
        ) from None


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
