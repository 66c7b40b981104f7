"""Requests that arrive slowly, never end or are no HTTP, on a real socket."""

from __future__ import annotations

import json
import socket
import struct
import time
from contextlib import ExitStack, suppress

import pytest

from hafvt.server import connections
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from tests.served import run_in_thread

HOST = b"Host: localhost\r\n"
REQUEST = b"GET /a HTTP/1.1\r\n" + HOST + b"\r\n"
CHUNKED = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
MAX_ACCEPTED = 40 * 2**20  # bytes of one request, those in the buffers of the sockets included


async def echo(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})


def receive_all(client):
    """Returns all bytes that the server sends until it closes the connection."""
    received = b""
    try:
        while more := client.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


@pytest.fixture
def exchange(monkeypatch):
    """Returns a function that sends parts of requests and returns all bytes until the server closes."""
    monkeypatch.setattr(connections, "ARRIVAL_TIMEOUT_S", 0.3)
    with run_in_thread(echo) as port:

        def exchange(*parts):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                received = b""
                for part in parts:
                    client.sendall(part)
                    received += client.recv(1000) if part.endswith(b"\r\n\r\n") else b""
                return received + receive_all(client)

        yield exchange


@pytest.fixture(scope="module")
def port(served_run):
    """The port of a server of a model."""
    with run_in_thread(create_app(ModelSource(served_run), allowed_hosts=("localhost",))) as port:
        yield port


@pytest.fixture
def status_of(port):
    """Returns a function that sends bytes and returns the status of the answer."""

    def status_of(*parts):
        with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
            for part in parts:
                client.sendall(part)
            return int(client.recv(1000).split(b" ")[1])

    return status_of


def test_connection_several_requests_are_answered(exchange):
    received = exchange(REQUEST, REQUEST, b"GET /b HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
    assert received.count(b"200 OK") == 3


@pytest.mark.parametrize(
    "beginning",
    [
        b"",
        b"GET",
        b"GET /a HTTP/1.1\r\nHost: x\r\n",
        b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r",
    ],
)
def test_connection_unfinished_request_is_closed(exchange, beginning):
    assert exchange(beginning) == b""


def test_connection_unfinished_body_is_closed(exchange):
    assert exchange(b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n").count(b"HTTP/1.1") == 1


def test_connection_endless_headers_are_refused(exchange):
    received = exchange(b"GET /a HTTP/1.1\r\nX: " + b"x" * (connections.MAX_HEADERS + 1))
    assert received.startswith(b"HTTP/1.1 400")
    assert json.loads(received.split(b"\r\n\r\n")[1])["error"]


@pytest.mark.parametrize(
    "line", [b"\xff\xfe", b"GET /\xff HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"GET /a HTTP/9.9", b"\x16\x03\x01"]
)
def test_connection_invalid_http_is_answered(exchange, line):
    assert exchange(line + b"\r\nHost: x\r\n\r\n").startswith((b"HTTP/1.1 400", b"HTTP/1.1 200"))


@pytest.mark.parametrize("method", [b"GET /health", b"POST /recommend"])
@pytest.mark.parametrize(
    ("beginning", "part"),
    [
        (CHUNKED + b"0\r\n", b"X-Trailer: " + b"x" * 1000 + b"\r\n"),
        (CHUNKED + b"0\r\nX-Trailer: ", b"x" * 1000),
        (CHUNKED + b"1;extension=", b"x" * 1000),
        (CHUNKED, b"1;extension=" + b"x" * 60_000 + b"\r\nx\r\n"),
        (CHUNKED, b"0" * 1000),
        (CHUNKED, b"8000\r\n" + b" " * 0x8000 + b"\r\n"),
        (b"Content-Length: 99999999999\r\n\r\n", b"x" * 1000),
        (b"", b"X-Header: " + b"x" * 1000 + b"\r\n"),
        (b"\r\n", REQUEST),
    ],
    ids=["trailers", "trailer", "extension", "extensions", "size", "chunks", "body", "headers", "requests"],
)
def test_connection_endless_request_is_closed(port, method, beginning, part):
    with socket.create_connection(("127.0.0.1", port), timeout=1) as client:
        client.sendall(method + b" HTTP/1.1\r\n" + HOST + beginning)
        parts, sent = part * (1 + 2**17 // len(part)), 0
        with suppress(OSError):  # closed, or full since nothing is read
            while sent < MAX_ACCEPTED:
                sent += client.send(parts)
        assert sent < MAX_ACCEPTED


def test_connection_stalled_reader_is_closed(port, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT_S", 1)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall((b"GET /static/app.js HTTP/1.1\r\n" + HOST + b"\r\n") * 1500)
        time.sleep(5)
        answered = receive_all(client).count(b"200 OK")
        assert 0 < answered < 1500


def test_connection_beyond_the_limit_replaces_the_longest_waiting(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 4)
    with run_in_thread(echo) as port, ExitStack() as stack:

        def connect(address):
            client = socket.create_connection(("127.0.0.1", port), 20, source_address=(address, 0))
            client.sendall(REQUEST)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")
            time.sleep(0.01)  # the server compares times in milliseconds
            return stack.enter_context(client)

        first, *others = [connect("127.0.0.1") for _ in range(5)]
        assert receive_all(first) == b""
        flood = [connect("127.0.0.2") for _ in range(20)]
        assert receive_all(others[0]) == receive_all(others[1]) == receive_all(flood[0]) == b""
        for client in (others[-1], flood[-1]):  # two connections of each address remain
            client.sendall(REQUEST)
            assert client.recv(1000).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        (b"/health", HOST * 2, 400),
        (b"/health", b"", 400),
        (b"/health", b"Host: evil.example\r\n", 421),
        (b"http://localhost/health", HOST, 200),
        (b"HTTP://LOCALHOST/items?limit=1", HOST, 200),
        (b"http://localhost", HOST, 200),
        (b"http://evil.example/health", HOST, 400),
        (b"http://evil.example/health", b"Host: evil.example\r\n", 421),
        (b"http://localhost@evil.example/health", HOST, 400),
        (b"http://localhost:99/health", HOST, 400),
        (b"//evil.example/health", HOST, 404),
        (b"*", HOST, 404),
        (b"/health", HOST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"/health", HOST + b"Content-Length: 5\r\nContent-Length: 6\r\n", 400),
        (b"/health", HOST + b"Content-Length: 99999999999999999999999999\r\n", 400),
        (b"/health", HOST + b"Content-Length: -1\r\n", 400),
        (b"/health", HOST + b"Content-Length: 1e3\r\n", 400),
    ],
)
def test_request_host_and_length_must_be_unambiguous(status_of, target, headers, status):
    assert status_of(b"GET " + target + b" HTTP/1.1\r\n" + headers + b"\r\n0\r\n\r\n") == status


def test_connection_left_by_its_client_is_no_error_in_the_log(port, caplog):
    body = json.dumps({"history": ["i3"] * 5000, "domain": "d0", "k": 50, "include_shares": True}).encode()
    post = b"POST /recommend HTTP/1.1\r\nContent-Type: application/json\r\n" + HOST
    complete = post + b"Content-Length: %d\r\n\r\n" % len(body) + body
    get = b"GET /static/app.js HTTP/1.1\r\n" + HOST + b"\r\n"
    requests = [
        complete,
        complete[:-9],
        complete * 3,
        complete + b"\0\r\n\r\n",
        get,
        get * 30,
        get + b"\0\r\n\r\n",
    ]
    requests += [
        post + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        post + CHUNKED + b"z\r\n",
        b"\xff\r\n\r\n",
    ]
    requests += [get[:-2] + CHUNKED + b"zz\r\n", b"GET /health HTTP/1.1\r\n" + HOST + CHUNKED + b"zz\r\n"]
    for request in requests:
        for pause_s in (0, 0.001, 0.02):
            for linger in (struct.pack("ii", 1, 0), struct.pack("ii", 0, 0)):  # reset, or closed in order
                with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                    client.sendall(request)
                    time.sleep(pause_s)
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n" + HOST + b"\r\n")
        assert b'status="500"' not in receive_all(client)
    assert not [record for record in caplog.records if record.levelname in ("ERROR", "CRITICAL")]
