"""What every request passes before the application sees it, and every answer after."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from typing import TYPE_CHECKING, Any

from hafvt.server.prometheus import Metrics

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("hafvt.server")

KEY = "HAFVT_API_KEY"  # the environment variable
MAX_BODY = 2**20  # bytes
MAX_DRAINED = 32 * 2**20  # bytes of a body too large that are read and forgotten, so that its sender listens
BODY_S = 10.0  # seconds in which a body must arrive
GONE = 499  # counted where the client hangs up before it is answered

CONTENT_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": CONTENT_POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
}


class RequestRejected(Exception):
    """A request that the application never sees.

    Args:
        status: of the answer.
        said: what is wrong and how to mend it.
        close: whether the connection is of no more use.
    """

    def __init__(self, status: int, said: str, *, close: bool = False) -> None:
        super().__init__(said)
        self.status, self.close = status, close


class ClientDisconnected(Exception):
    """The client hung up."""


class SecurityMiddleware:
    """ASGI middleware: API key, type, size and time of the body, security headers, metrics, no bare crash.

    Args:
        app: what is guarded.
        metrics: count every request.
        api_key: what callers must know; None lets everybody in.
        hosts: the names that callers may know the server by; none means any.
        shared: whether pages of other origins may use answers; else browsers keep pictures from them.
    """

    def __init__(
        self, app: ASGIApp, metrics: Metrics, api_key: str | None, hosts: tuple[str, ...], shared: bool
    ) -> None:
        self.app, self.metrics = app, metrics
        self.hosts = {host.encode() for host in hosts}
        self.key = api_key.encode() if api_key else None
        headers = HEADERS if shared else {**HEADERS, "cross-origin-resource-policy": "same-origin"}
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun, status = time.perf_counter(), 0
        # The page is asked after each time, so that nobody keeps an old one; answers are nobody's to keep.
        age = b"no-cache" if is_page(scope) else b"no-store"

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = [*message["headers"], *self.headers]
                if all(name.lower() != b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", age))
                message["headers"] = headers
            await send(message)

        try:
            await self.guarded(scope, receive, send_guarded)
        except RequestRejected as refused:
            await send_error(send_guarded, refused.status, str(refused), close=refused.close)
        except ClientDisconnected:
            status = GONE
        except Exception:
            logger.exception("a request failed: %s %s", scope["method"], _route(scope))
            if not status:
                await send_error(send_guarded, 500, "the server failed at this request: its log says where")
        finally:
            self.metrics.answered(_route(scope), status or GONE, time.perf_counter() - begun)

    async def guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets a request through to the application.

        Raises:
            RefusedError: it must not pass.
        """
        headers = dict(scope["headers"])
        # A page of another site could else have its own name lead here, and read as if it were ours.
        host = headers.get(b"host", b"").lower()
        if self.hosts and re.sub(rb":\d*$", b"", host) not in self.hosts:
            raise RequestRejected(421, f"without {KEY} set, this server answers as localhost alone: set it")
        if self.key is not None and not self.may_enter(scope, headers):
            raise RequestRejected(
                401, "wrong or no API key: send it as Authorization: Bearer KEY or X-API-Key: KEY"
            )
        if scope["method"] in ("POST", "PUT", "PATCH"):
            kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
            if kind != b"application/json":
                raise RequestRejected(415, "send JSON, with Content-Type: application/json")
            body = await read_body(headers, receive)
            receive = _replayed(body, receive)
        await self.app(scope, receive, send)

    def may_enter(self, scope: Scope, headers: dict[bytes, bytes]) -> bool:
        """Returns whether a request knows the key, or needs none."""
        if is_page(scope) or scope["path"] == "/health":
            return True
        kind, _, token = headers.get(b"authorization", b"").partition(b" ")
        given = token.strip() if kind.lower() == b"bearer" else headers.get(b"x-api-key", b"")
        assert self.key is not None
        return hmac.compare_digest(given, self.key)


def is_page(scope: Scope) -> bool:
    """Returns whether a request asks for the page or one of its files."""
    path: str = scope["path"]
    return path == "/" or path.startswith("/static/")


async def read_body(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """Returns a body.

    Raises:
        RefusedError: it is too large or too slow.
        GoneError: the client hung up.
    """
    too_large = RequestRejected(
        413, f"the body is larger than {MAX_BODY // 2**20} MiB: send less", close=True
    )
    length = headers.get(b"content-length", b"0")
    if not length.isdigit() or int(length[:20]) > MAX_DRAINED:
        raise too_large
    body, size = bytearray(), 0
    try:
        async with asyncio.timeout(BODY_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected
                part = message.get("body", b"")
                size += len(part)
                if size <= MAX_BODY:
                    body += part
                elif size > MAX_DRAINED:
                    raise too_large
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        said = f"the body took longer than {BODY_S:.0f} s: send it faster"
        raise RequestRejected(408, said, close=True) from None
    if size > MAX_BODY:
        raise too_large
    return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that gives the whole body first."""
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def send_error(send: Send, status: int, said: str, *, close: bool = False) -> None:
    """Sends an error as the application would."""
    body = json.dumps({"error": said}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if close:
        headers.append((b"connection", b"close"))
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _route(scope: Any) -> str:
    """Returns the pattern that a path matched: a path itself could be anything."""
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path_format", route.path))
    return "/static" if scope["path"].startswith("/static/") else "other"
