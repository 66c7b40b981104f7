"""Requests that arrive slowly or never end, on a real socket."""

from __future__ import annotations

import socket

import pytest

from hafvt.server import connections
from tests.served import run_in_thread

REQUEST = b"GET /a HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture
def exchange(monkeypatch):
    """Returns a function that sends parts of requests and returns all bytes until the server closes."""
    monkeypatch.setattr(connections, "ARRIVAL_TIMEOUT_S", 0.3)
    monkeypatch.setattr(connections, "KEEP_ALIVE_S", 1)
    with run_in_thread(echo) as port:

        def exchange(*parts):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                received = b""
                for part in parts:
                    client.sendall(part)
                    received += client.recv(1000) if part.endswith(b"\r\n\r\n") else b""
                try:
                    while more := client.recv(1000):
                        received += more
                except ConnectionResetError:
                    pass
                return received

        yield exchange


def test_connection_several_requests_are_answered(exchange):
    received = exchange(REQUEST, REQUEST, b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert received.count(b"200 OK") == 3


@pytest.mark.parametrize(
    "beginning",
    [b"", b"GET", b"GET /a HTTP/1.1\r\nHost: x\r\n", b"POST /a HTTP/1.1\r\nContent-Length: 9\r\n\r"],
)
def test_connection_unfinished_request_is_closed(exchange, beginning):
    assert exchange(beginning) == b""


def test_connection_unfinished_body_is_closed(exchange):
    assert exchange(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").count(b"200 OK") == 1


def test_connection_endless_headers_are_refused(exchange):
    received = exchange(b"GET /a HTTP/1.1\r\nX: " + b"x" * (connections.MAX_HEADERS + 1))
    assert received.startswith(b"HTTP/1.1 400")


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"GET /\xff HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET /a HTTP/9.9", b"\x16\x03\x01"]
)
def test_connection_invalid_http_is_answered(exchange, line):
    assert exchange(line + b"\r\nHost: x\r\n\r\n").startswith((b"HTTP/1.1 400", b"HTTP/1.1 200"))
