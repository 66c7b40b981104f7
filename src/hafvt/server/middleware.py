"""Checks of every request before the application reads it, and headers of every answer.

Starlette's TrustedHostMiddleware and FastAPI's limit of bodies refuse with plain text; FastAPI's security
dependencies leave unknown addresses and /openapi.json open. Hence none of them is used.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hafvt.server.prometheus import ServerMetrics

logger = logging.getLogger("hafvt.server")

API_KEY_VARIABLE = "HAFVT_API_KEY"  # environment variable
MAX_BODY = 2**20  # bytes; the connection bounds those of a larger body that are received and dropped
BODY_TIMEOUT_S = 10.0  # seconds in which a body must arrive
CLOSE = {"Connection": "close"}
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
        self.app, self.metrics, self.api_key, self.allowed_hosts = app, metrics, api_key, allowed_hosts
        headers = SECURITY_HEADERS | ({} if cross_origin else {"cross-origin-resource-policy": "same-origin"})
        self.headers = [(name.encode(), value.encode()) for name, value in headers.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request: by the application, or with an error."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 0
        body: bytes | None = None

        async def receive_checked() -> Message:
            """Give the whole body, which is read and checked where a route first wants it."""
            nonlocal body
            if body is None:
                try:
                    body = await read_body(Request(scope, receive))
                except ClientDisconnect:
                    raise HTTPException(CLIENT_CLOSED) from None
                return {"type": "http.request", "body": body, "more_body": False}
            return await receive()

        # Browsers ask for the page's files each time, so that none keeps an old one; they store no answer.
        cache_control = b"no-cache" if is_page(scope["path"]) else b"no-store"

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
            self.check(Request(scope))
            has_body = scope["method"] not in ("GET", "HEAD", "OPTIONS")
            await self.app(scope, receive_checked if has_body else receive, send_secured)
        except HTTPException as error:
            response = error_response(error.status_code, error.detail, error.headers)
            await response(scope, receive, send_secured)
        except Exception:
            logger.exception("a request failed: %s %s", scope["method"], route_pattern(scope))
            if not status:
                response = error_response(500, "the server failed at this request: see its log")
                await response(scope, receive, send_secured)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.count_request(route_pattern(scope), status or CLIENT_CLOSED, seconds)

    def check(self, request: Request) -> None:
        """Raise HTTPException if a request must not reach the application.

        An address with scheme and host becomes the path alone, as HTTP wants.
        """
        headers, scope = request.headers, request.scope
        if "content-length" in headers and "transfer-encoding" in headers:  # proxies may read another body
            message = "the body has a Content-Length and a Transfer-Encoding: send one of them"
            raise HTTPException(400, message, CLOSE)
        if absolute := re.fullmatch(r"(?i)https?://([^/]*)(.*)", scope["path"], re.DOTALL):
            if absolute[1].lower() != headers.get("host", "").lower():
                raise HTTPException(400, "the address and the Host header differ: send the path alone")
            scope["path"] = absolute[2] or "/"
            scope["raw_path"] = re.sub(rb"(?i)^https?://[^/]*", b"", scope["raw_path"]) or b"/"
        path = scope["path"]
        # Without this, a web page could point its own host name here and read the answers as its own.
        host = re.sub(r":\d*$", "", headers.get("host", "").lower())
        if self.allowed_hosts and host not in self.allowed_hosts:
            raise HTTPException(
                421, f"this server answers at localhost only, unless {API_KEY_VARIABLE} is set"
            )
        if self.api_key is not None and not is_page(path) and path != "/health":
            scheme, _, token = headers.get("authorization", "").partition(" ")
            key = token.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
            if not hmac.compare_digest(key.encode(), self.api_key.encode()):
                message = "wrong or no API key: send it as Authorization: Bearer KEY or X-API-Key: KEY"
                raise HTTPException(401, message, {"WWW-Authenticate": "Bearer"})


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        HTTPException: the body is no JSON, names a field twice, is too large or too slow.
        ClientDisconnect: the client disconnected meanwhile.
    """
    if request.headers.get("content-type", "").split(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "send JSON, with Content-Type: application/json")
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise HTTPException(415, "send JSON as it is, without Content-Encoding")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise HTTPException(413, f"the body is larger than {MAX_BODY // 2**20} MiB: send less")
    except TimeoutError:
        message = f"the body took longer than {BODY_TIMEOUT_S:.0f} s: send it faster"
        raise HTTPException(408, message, CLOSE) from None
    with suppress(ValueError, RecursionError):  # FastAPI parses the body again and refuses what is no JSON
        json.loads(body, object_pairs_hook=distinct_fields)
    return bytes(body)


def distinct_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object, or raise HTTPException if it names a field twice."""
    fields = dict(pairs)
    if len(fields) < len(pairs):
        name = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise HTTPException(422, f"the body has the field {name[:80]!r} twice: send it once")
    return fields


def error_response(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error as every route gives it: {"error": message}."""
    body = json.dumps({"error": message.encode(errors="replace").decode()})
    return Response(body, status, headers, "application/json")


def is_page(path: str) -> bool:
    """Return whether a path is the page or one of its files."""
    return path == "/" or path.startswith("/static/")


def route_pattern(scope: Scope) -> str:
    """Return the pattern that a path matches: there are few of them, while a path may be anything."""
    if (route := scope.get("route")) is not None:
        return str(getattr(route, "path_format", route.path))
    return "/static" if scope["path"].startswith("/static/") else "other"
