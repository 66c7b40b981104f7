"""Limits on connections and arriving requests.

uvicorn with h11 bounds the bytes of a request's headers, of its trailers and of each chunk's extensions, and
stops reading while an answer waits for its reader. This module adds times and a number, which uvicorn lacks.
"""

from __future__ import annotations

import asyncio
import math
import socket
from collections import Counter
from typing import Any, cast

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hafvt.server.middleware import error_response

MAX_HEADERS = 64 * 2**10  # bytes of headers, of trailers, and of one chunk's extensions
MAX_REQUEST = 32 * 2**20  # bytes of a request, the body that no route reads included
MAX_PIPELINED = 2**20  # bytes of further requests, received before the answer to the first
MAX_CONNECTIONS = 800  # many systems allow a process 1,024 open files
ARRIVAL_TIMEOUT_S = 20  # seconds until the first byte of a request, and from there to its last byte
UNREAD_TIMEOUT_S = 30  # seconds until a connection is closed whose client does not read an answer


def make_server(app: Any, *, stop_timeout: int) -> uvicorn.Server:
    """Return a server of an ASGI application, with the limits of this module.

    Requests under way have `stop_timeout` seconds when the server stops.
    """
    config = uvicorn.Config(
        app,
        http=LimitedConnection,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        log_level="error",
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_keep_alive=ARRIVAL_TIMEOUT_S,
        timeout_graceful_shutdown=stop_timeout,
    )
    return uvicorn.Server(config)


class LimitedConnection(H11Protocol):
    """uvicorn's connection, closed if a request arrives too slowly or its place is needed for another."""

    arrival_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer of the first request; close another connection if there are too many."""
        super().connection_made(transport)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            unread = transport.get_extra_info("socket")
            unread.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNREAD_TIMEOUT_S * 1000)
        self.start_timer()
        self.make_room()

    def make_room(self) -> None:
        """Of too many connections, close one of the address with most, if possible the longest waiting."""
        all_connections = cast("set[LimitedConnection]", self.connections)
        connections = [connection for connection in all_connections if not connection.transport.is_closing()]
        if len(connections) <= MAX_CONNECTIONS:
            return
        num_connections = Counter(connection.address for connection in connections)

        def order(connection: LimitedConnection) -> tuple[int, float, bool]:
            timer = connection.arrival_timer or connection.timeout_keep_alive_task
            waiting_since = timer.when() if timer else math.inf
            return num_connections[connection.address], -waiting_since, connection is not self

        max(connections, key=order).transport.abort()

    @property
    def address(self) -> str:
        """The address of the client; that of a proxy stands for all its clients."""
        return self.client[0] if self.client else ""

    def start_timer(self) -> None:
        """Close the connection in ARRIVAL_TIMEOUT_S unless a request arrives."""
        self.request_bytes = 0
        self.arrival_timer = self.loop.call_later(ARRIVAL_TIMEOUT_S, self.transport.close)

    def stop_timer(self) -> None:
        """Let the connection stay open."""
        if self.arrival_timer is not None:
            self.arrival_timer.cancel()
            self.arrival_timer = None

    def data_received(self, data: bytes) -> None:
        """Start the timer at the first byte of a request; close the connection if too many bytes arrive."""
        if self.arrival_timer is None:
            self.start_timer()
        self.request_bytes += len(data)
        super().data_received(data)
        is_flooded = self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) > MAX_PIPELINED
        if self.request_bytes > MAX_REQUEST or is_flooded:
            self.transport.close()

    def handle_events(self) -> None:
        """Stop the timer of a complete request."""
        super().handle_events()
        if self.conn.their_state not in (h11.IDLE, h11.SEND_BODY):
            self.stop_timer()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, in JSON; cut off an answer under way."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # else its answer is sent, too
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = bytes(error_response(400, "this is no HTTP request, or its headers are too large").body)
            headers = {
                "content-type": "application/json",
                "content-length": f"{len(body)}",
                "connection": "close",
            }
            response = h11.Response(status_code=400, headers=list(headers.items()), reason="Bad Request")
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer of a closed connection."""
        self.stop_timer()
        super().connection_lost(exc)
