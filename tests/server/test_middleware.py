"""Bodies too large and too slow, however they are sent."""

from __future__ import annotations

import asyncio

import pytest

from hafvt.server import middleware as module
from hafvt.server.middleware import MAX_BODY, MAX_DRAINED, ClientDisconnected, RequestRejected, read_body


def sent(*parts, end=True):
    """Returns an ASGI `receive` of these parts of a body, and how many have been read."""
    left, read = list(parts), []

    async def receive():
        if not left:
            if end:
                return {"type": "http.disconnect"}
            await asyncio.sleep(60)
        read.append(left[0])
        part = left.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(left) or not end}

    return receive, read


def test_a_body_in_parts():
    assert asyncio.run(read_body({}, sent(b"ab", b"", b"c")[0])) == b"abc"
    assert asyncio.run(read_body({}, sent(b"x" * MAX_BODY)[0])) == b"x" * MAX_BODY


def test_a_body_too_large_is_read_and_forgotten_within_reason():
    part = b"x" * (MAX_BODY // 2)
    receive, read = sent(*[part] * 5)
    with pytest.raises(RequestRejected) as refused:
        asyncio.run(read_body({}, receive))
    assert (refused.value.status, refused.value.close, len(read)) == (413, True, 5)
    receive, read = sent(*[part] * 1000)
    with pytest.raises(RequestRejected):
        asyncio.run(read_body({}, receive))
    assert len(read) <= MAX_DRAINED // len(part) + 1


@pytest.mark.parametrize("length", [b"99999999999999999999999999", b"-1", b"1e3", "²".encode()])
def test_a_length_that_says_enough(length):
    receive, read = sent(b"x")
    with pytest.raises(RequestRejected) as refused:
        asyncio.run(read_body({b"content-length": length}, receive))
    assert refused.value.status == 413
    assert not read


def test_a_slow_body_and_one_that_never_comes(monkeypatch):
    monkeypatch.setattr(module, "BODY_S", 0.05)
    with pytest.raises(RequestRejected) as refused:
        asyncio.run(read_body({}, sent(b"x", end=False)[0]))
    assert refused.value.status == 408
    with pytest.raises(ClientDisconnected):
        asyncio.run(read_body({}, sent()[0]))
