"""Checks of every request before the application reads it, and headers of every answer.

Starlette's TrustedHostMiddleware refuses with plain text and status 400; FastAPI's security dependencies run
after the body is read and leave unknown addresses and /openapi.json open. Hence neither is used.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time

from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hafvt.server.prometheus import ServerMetrics

logger = logging.getLogger("hafvt.server")

API_KEY_VARIABLE = "HAFVT_API_KEY"  # environment variable
MAX_BODY = 2**20  # bytes
MAX_DISCARDED = (
    32 * 2**20
)  # bytes of a larger body that are read and dropped, so that its sender reads the answer
BODY_TIMEOUT_S = 10.0  # seconds in which a body must arrive
CLIENT_CLOSED = 499  # status counted where the client disconnects before the answer (nginx's number)

SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class RequestRejected(Exception):
    """A request that the application must not see.

    Args:
        status: status of the answer.
        message: what is wrong and the remedy, in one line.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = error_response(status, message, headers)


class ClientDisconnected(Exception):
    """The client closed the connection before its request was complete."""


class SecurityMiddleware:
    """ASGI middleware that checks host, key and body, adds security headers, counts, and reports failures.

    Args:
        app: the application.
        metrics: counts every request.
        api_key: the key that callers must send; None answers everybody.
        allowed_hosts: the values of the Host header, without port, that are answered; empty answers all.
        cross_origin: whether pages of other origins may use answers; else browsers keep pictures from them.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: ServerMetrics,
        api_key: str | None,
        allowed_hosts: tuple[str, ...],
        cross_origin: bool,
    ) -> None:
        self.app, self.metrics = app, metrics
        self.api_key = api_key.encode() if api_key else None
        self.allowed_hosts = {host.encode() for host in allowed_hosts}
        headers = SECURITY_HEADERS | ({} if cross_origin else {"cross-origin-resource-policy": "same-origin"})
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request: by the application, or with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        # Browsers ask for the page's files each time, so that none keeps an old one; they store no answer.
        cache_control = b"no-cache" if is_page(scope) else b"no-store"

        async def send_secured(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], *self.headers]
                if all(name.lower() != b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", cache_control))
                message["headers"] = headers
            await send(message)

        try:
            body = await self.check(scope, receive)
            await self.app(scope, receive if body is None else replay(body, receive), send_secured)
        except RequestRejected as rejection:
            await rejection.response(scope, receive, send_secured)
        except ClientDisconnected:
            status = CLIENT_CLOSED
        except Exception:
            logger.exception("a request failed: %s %s", scope["method"], route_pattern(scope))
            if not status:
                response = error_response(500, "the server failed at this request: see its log")
                await response(scope, receive, send_secured)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.count_request(route_pattern(scope), status or CLIENT_CLOSED, seconds)

    async def check(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body of an acceptable request, None if its method has none.

        Raises:
            RequestRejected: the request must not reach the application.
            ClientDisconnected: the client disconnected meanwhile.
        """
        headers = dict(scope["headers"])
        # Without this, a web page could point its own host name here and read the answers as its own.
        host = re.sub(rb":\d*$", b"", headers.get(b"host", b"").lower())
        if self.allowed_hosts and host not in self.allowed_hosts:
            message = (
                f"without {API_KEY_VARIABLE}, this server answers at localhost only: set {API_KEY_VARIABLE}"
            )
            raise RequestRejected(421, message)
        if self.api_key is not None and not is_page(scope) and scope["path"] != "/health":
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            key = token.strip() if scheme.lower() == b"bearer" else headers.get(b"x-api-key", b"")
            if not hmac.compare_digest(key, self.api_key):
                message = "wrong or no API key: send it as Authorization: Bearer KEY or X-API-Key: KEY"
                raise RequestRejected(401, message, {"WWW-Authenticate": "Bearer"})
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return None
        media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise RequestRejected(415, "send JSON, with Content-Type: application/json")
        return await read_body(headers, receive)


def is_page(scope: Scope) -> bool:
    """Returns whether a request is for the page or one of its files."""
    path: str = scope["path"]
    return path == "/" or path.startswith("/static/")


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Returns the body of a request.

    Raises:
        RequestRejected: the body is too large or too slow; the connection is closed after the answer.
        ClientDisconnected: the client disconnected meanwhile.
    """
    close = {"Connection": "close"}
    too_large = RequestRejected(413, f"the body is larger than {MAX_BODY // 2**20} MiB: send less", close)
    content_length = headers.get(b"content-length", b"0")
    if not content_length.isdigit() or int(content_length[:20]) > MAX_DISCARDED:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                part = message.get("body", b"")
                size += len(part)
                if size <= MAX_BODY:
                    body += part
                elif size > MAX_DISCARDED:
                    raise too_large
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        too_slow = f"the body took longer than {BODY_TIMEOUT_S:.0f} s: send it faster"
        raise RequestRejected(408, too_slow, close) from None
    if size > MAX_BODY:
        raise too_large
    return bytes(body)


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that first gives the whole body, then what `receive` gives."""
    parts = [body]

    async def receive_replayed() -> Message:
        if parts:
            return {"type": "http.request", "body": parts.pop(), "more_body": False}
        return await receive()

    return receive_replayed


def error_response(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    """Returns an error as every route gives it: {"error": message}."""
    body = json.dumps({"error": message.encode(errors="replace").decode()})
    return Response(body, status, headers, "application/json")


def route_pattern(scope: Scope) -> str:
    """Returns the pattern that a path matches: there are few of them, while a path may be anything."""
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path_format", route.path))
    return "/static" if scope["path"].startswith("/static/") else "other"
