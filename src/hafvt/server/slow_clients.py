"""One connection: uvicorn's, with an end to its patience and to the memory it gives to headers."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

ARRIVAL_S = 20.0  # seconds in which a request must arrive, from the connection or its first byte on
MAX_HEADERS = 64 * 2**10  # bytes of headers, the address included


class SlowClientProtocol(HttpToolsProtocol):
    """Hangs up on requests that trickle in or whose headers never end; uvicorn would keep them for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self.deadline: asyncio.TimerHandle | None = None
        self.in_headers, self.received = True, 0
        self.wait()

    def wait(self) -> None:
        """Sets the time by which the request must be there."""
        if self.deadline is None:
            self.deadline = self.loop.call_later(ARRIVAL_S, self.timeout_keep_alive_handler)

    def arrived(self) -> None:
        """Ends the waiting."""
        if self.deadline is not None:
            self.deadline.cancel()
            self.deadline = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the waiting."""
        self.arrived()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads some bytes; counts them while they are headers, which nothing else bounds."""
        super().data_received(data)
        if self.in_headers:
            self.received += len(data)
            if self.received > MAX_HEADERS and not self.transport.is_closing():
                self.send_400_response("Headers too large.")

    def on_message_begin(self, *arguments: Any) -> None:
        """Called at a request's first byte."""
        super().on_message_begin(*arguments)
        self.in_headers, self.received = True, 0
        self.wait()

    def on_headers_complete(self) -> None:
        """Called when the body begins."""
        self.in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Called when all of a request is there."""
        self.arrived()
        super().on_message_complete()
