"""Slow and endless requests, on a real socket."""

from __future__ import annotations

import socket

import pytest

from hafvt.server import slow_clients as module
from tests.served import running

REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def ask(monkeypatch):
    """Returns a function that sends some bytes and returns all that comes until the server hangs up."""
    monkeypatch.setattr(module, "ARRIVAL_S", 0.3)
    with running(echo) as port:

        def ask(*parts):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                got = b""
                for part in parts:
                    client.sendall(part)
                    got += client.recv(1000) if part.endswith(b"\r\n\r\n") else b""
                try:
                    while more := client.recv(1000):
                        got += more
                except ConnectionResetError:
                    pass
                return got

        yield ask


def test_requests_on_one_connection(ask):
    got = ask(REQUEST, REQUEST, b"GET /b HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert got.count(b"200 OK") == 3


@pytest.mark.parametrize(
    "begun",
    [b"", b"GET", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r"],
)
def test_a_request_that_does_not_end_is_hung_up_on(ask, begun):
    assert ask(begun) == b""


def test_a_body_that_does_not_end_is_hung_up_on(ask):
    assert ask(b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r\n").count(b"HTTP/1.1") == 1


def test_headers_that_do_not_end(ask):
    got = ask(b"GET /a HTTP/1.1\r\nX: " + b"x" * (module.MAX_HEADERS + 1))
    assert got.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"GET /\xff HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET /a HTTP/9.9", b"\x16\x03\x01"]
)
def test_what_is_not_http(ask, line):
    assert ask(line + b"\r\nHost: x\r\n\r\n").startswith((b"HTTP/1.1 400", b"HTTP/1.1 200"))
