"""Time and size limits for arriving requests, which uvicorn lacks.

Its timeout_keep_alive counts after an answer only, and h11_max_incomplete_event_size bounds headers for the
slower h11 alone; uvicorn waits for a request that trickles in without end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ARRIVAL_TIMEOUT_S = 20.0  # seconds in which a request must arrive, from the connection or its first byte on
MAX_HEADERS = 64 * 2**10  # bytes, the request line included


class SlowClientProtocol(HttpToolsProtocol):
    """uvicorn's connection that closes when a request arrives too slowly or its headers are too large."""

    arrival_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the timer of the first request."""
        super().connection_made(transport)
        self.expect_request()

    def expect_request(self) -> None:
        """Counts header bytes from 0; closes the connection in ARRIVAL_TIMEOUT_S unless the timer stops."""
        self.in_headers, self.header_bytes = True, 0
        if self.arrival_timer is None:
            self.arrival_timer = self.loop.call_later(ARRIVAL_TIMEOUT_S, self.timeout_keep_alive_handler)

    def stop_timer(self) -> None:
        """Lets the connection stay open."""
        if self.arrival_timer is not None:
            self.arrival_timer.cancel()
            self.arrival_timer = None

    def data_received(self, data: bytes) -> None:
        """Parses bytes, and refuses headers that are too large."""
        super().data_received(data)
        self.header_bytes += len(data) if self.in_headers else 0
        if self.header_bytes > MAX_HEADERS and not self.transport.is_closing():
            self.send_400_response("Headers too large.")

    def on_message_begin(self, *arguments: Any) -> None:
        """Starts the timer at the first byte of a request."""
        super().on_message_begin(*arguments)
        self.expect_request()

    def on_headers_complete(self) -> None:
        """Stops counting header bytes."""
        self.in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Stops the timer of a complete request."""
        self.stop_timer()
        super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the timer of a closed connection."""
        self.stop_timer()
        super().connection_lost(exc)
