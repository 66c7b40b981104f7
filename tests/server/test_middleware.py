"""Bodies of requests: their size and time, with and without a Content-Length."""

from __future__ import annotations

import asyncio

import pytest

from hafvt.server import middleware
from hafvt.server.middleware import MAX_BODY, MAX_DISCARDED, ClientDisconnected, RequestRejected, read_body


def make_receive(*parts, ends=True):
    """Returns an ASGI `receive` of the parts of a body, and the list of parts read so far."""
    remaining, read = list(parts), []

    async def receive():
        if not remaining:
            if ends:
                return {"type": "http.disconnect"}
            await asyncio.sleep(60)
        read.append(remaining.pop(0))
        return {"type": "http.request", "body": read[-1], "more_body": bool(remaining) or not ends}

    return receive, read


def test_read_body_parts_are_joined():
    assert asyncio.run(read_body({}, make_receive(b"ab", b"", b"c")[0])) == b"abc"
    assert asyncio.run(read_body({}, make_receive(b"x" * MAX_BODY)[0])) == b"x" * MAX_BODY


def test_read_body_too_large_is_discarded_up_to_a_bound():
    part = b"x" * (MAX_BODY // 2)
    receive, read = make_receive(*[part] * 5)
    with pytest.raises(RequestRejected) as rejection:
        asyncio.run(read_body({}, receive))
    response = rejection.value.response
    assert (response.status_code, response.headers["connection"], len(read)) == (413, "close", 5)
    receive, read = make_receive(*[part] * 1000)
    with pytest.raises(RequestRejected):
        asyncio.run(read_body({}, receive))
    assert len(read) <= MAX_DISCARDED // len(part) + 1


@pytest.mark.parametrize("length", [b"99999999999999999999999999", b"-1", b"1e3", "²".encode()])
def test_read_body_bad_content_length_is_refused_unread(length):
    receive, read = make_receive(b"x")
    with pytest.raises(RequestRejected) as rejection:
        asyncio.run(read_body({b"content-length": length}, receive))
    assert rejection.value.response.status_code == 413
    assert not read


def test_read_body_slow_or_disconnected_client_is_noticed(monkeypatch):
    monkeypatch.setattr(middleware, "BODY_TIMEOUT_S", 0.05)
    with pytest.raises(RequestRejected) as rejection:
        asyncio.run(read_body({}, make_receive(b"x", ends=False)[0]))
    assert rejection.value.response.status_code == 408
    with pytest.raises(ClientDisconnected):
        asyncio.run(read_body({}, make_receive()[0]))
