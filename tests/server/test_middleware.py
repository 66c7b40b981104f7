"""Bodies of requests: their size and time, with and without a Content-Length."""

from __future__ import annotations

import asyncio

import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from hafvt.server import middleware
from hafvt.server.middleware import MAX_BODY, read_body


def make_receive(*parts, ends=True):
    """Returns an ASGI `receive` of the parts of a body, and the list of parts read so far."""
    remaining, parts_read = list(parts), []

    async def receive():
        if not remaining:
            if ends:
                return {"type": "http.disconnect"}
            await asyncio.sleep(60)
        parts_read.append(remaining.pop(0))
        return {"type": "http.request", "body": parts_read[-1], "more_body": bool(remaining) or not ends}

    return receive, parts_read


def read(receive):
    """Returns the body that `receive` gives."""
    headers = [(b"content-type", b"application/json")]
    return asyncio.run(read_body(Request({"type": "http", "headers": headers}, receive)))


def test_read_body_parts_are_joined():
    assert read(make_receive(b"ab", b"", b"c")[0]) == b"abc"
    assert read(make_receive(b"x" * MAX_BODY)[0]) == b"x" * MAX_BODY


def test_read_body_too_large_is_refused_without_its_rest():
    part = b"x" * (MAX_BODY // 2)
    receive, parts = make_receive(*[part] * 5)
    with pytest.raises(HTTPException) as rejection:
        read(receive)
    assert (rejection.value.status_code, len(parts)) == (413, 3)


def test_read_body_slow_or_disconnected_client_is_noticed(monkeypatch):
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.05)
    with pytest.raises(HTTPException) as rejection:
        read(make_receive(b"x", ends=False)[0])
    assert rejection.value.status_code == 408
    with pytest.raises(ClientDisconnect):
        read(make_receive()[0])
