"""The files of the web page: in memory, compressed, at addresses that name their content.

The address of the files contains a hash of all of them, so that browsers may use a file forever and still see
each new version at once. Only the page itself, which names that address, is fetched each time.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import NamedTuple

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from hafvt.words import MODALITY_NAMES, MODALITY_REASONS, PHRASES

STATIC = Path(__file__).with_name("static")
KEEP_FOREVER = "public, max-age=31536000, immutable"
CHECK_EACH_TIME = "no-cache"
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


class PageFile(NamedTuple):
    """A file of the page: its bytes, plain and compressed, and its media type."""

    content: bytes
    compressed: bytes
    media_type: str


def page_file(name: str, content: bytes) -> PageFile:
    """Return a file of the page, compressed once."""
    return PageFile(content, gzip.compress(content, mtime=0), MEDIA_TYPES[Path(name).suffix])


def page_router() -> APIRouter:
    """Return the routes of the page and its files, which are read once."""
    files = {path.name: page_file(path.name, path.read_bytes()) for path in sorted(STATIC.iterdir())}
    contents = b"".join(name.encode() + b"\0" + file.content for name, file in files.items())
    digest = hashlib.sha256(contents).hexdigest()[:16]
    preloads = "".join(
        f'\n  <link rel="modulepreload" href="/static/{digest}/{name}">'
        for name in files
        if name.endswith(".js") and name != "theme.js"
    )
    html = files.pop("index.html").content.decode()
    html = html.replace("/static/", f"/static/{digest}/").replace("\n</head>", f"{preloads}\n</head>")
    words = {"modalities": MODALITY_NAMES, "reasons": MODALITY_REASONS, "phrases": PHRASES}
    html = html.replace("{}</script>", f"{json.dumps(words)}</script>")
    page = page_file("index.html", html.encode())
    router = APIRouter(include_in_schema=False)

    def answer(request: Request, file: PageFile, cache_control: str) -> Response:
        etag = f'"{hashlib.sha256(file.content).hexdigest()[:32]}"'
        headers = {"Cache-Control": cache_control, "ETag": etag, "Vary": "Accept-Encoding"}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if "gzip" not in request.headers.get("accept-encoding", ""):
            return Response(file.content, headers=headers, media_type=file.media_type)
        headers["Content-Encoding"] = "gzip"
        return Response(file.compressed, headers=headers, media_type=file.media_type)

    @router.api_route("/", methods=["GET", "HEAD"])
    async def get_page(request: Request) -> Response:
        return answer(request, page, CHECK_EACH_TIME)

    @router.api_route("/static/{path:path}", methods=["GET", "HEAD"])
    async def get_file(request: Request, path: str) -> Response:
        version, _, name = path.rpartition("/")
        if name not in files:
            raise HTTPException(404)
        return answer(request, files[name], KEEP_FOREVER if version == digest else CHECK_EACH_TIME)

    return router
