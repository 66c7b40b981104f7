"""A web server on this machine that does what servers do on bad days, and hostile ones on good days."""

from __future__ import annotations

import random
import re
import signal
import ssl
import threading
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

BODY = b"\x1f\x8b\x08" + random.Random(0).randbytes(300_000)
OTHER = b"\x1f\x8b\x08" + random.Random(1).randbytes(250_000)
LARGE_PNG = b"\x89PNG\r\n\x1a\n" + BODY[8:]
HALF = 150_000
PICTURES = {
    "jpg": b"\xff\xd8\xff\xe0" + bytes(60),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "gif": b"GIF89a" + bytes(60),
    "webp": b"RIFF\x40\0\0\0WEBPVP8 " + bytes(60),
}


class Handler(BaseHTTPRequestHandler):
    """Answers /NAME/WHATEVER?QUERY by the method NAME (hyphens as underscores)."""

    protocol_version = "HTTP/1.1"
    server: HostileServer

    def do_GET(self):
        path = urlsplit(self.path)
        with self.server.lock:
            self.before = sum(request.path == self.path for request in self.server.requests)
            self.server.requests.append(self)
        self.query = {name: values[0] for name, values in parse_qs(path.query, True).items()}
        with suppress(ConnectionError, ssl.SSLError):
            getattr(self, path.path.split("/")[1].replace("-", "_"))()
        self.close_connection = True

    def log_message(self, *arguments):
        pass

    def answer(self, status, body=b"", *, length=None, **headers):
        """Sends a whole answer, whose length may be a lie; "" leaves it out."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != "":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def ranged(self, body=BODY, tag='"one"'):
        """Answers as a good server does: from where the client stopped, if the file is still the same."""
        span = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not span or self.headers.get("If-Range") != tag:
            return self.answer(200, body, ETag=tag)
        start = int(span[1])
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.answer(206, body[start:], ETag=tag, Content_Range=content_range)

    def cut(self, tag='"one"', body=BODY):
        self.answer(200, body[:HALF], length=len(body), ETag=tag)

    def good(self):
        self.ranged()

    def files(self):
        """Serves what the test has put into `server.files`."""
        name = urlsplit(self.path).path.removeprefix("/files/")
        body = self.server.files.get(name)
        self.answer(404, b"no") if body is None else self.ranged(body)

    def truncated(self):
        self.ranged() if self.before else self.cut()

    def crumbles(self):
        """Sends a third at a time."""
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        content_range = {"Content_Range": f"bytes {start}-300002/300003"} if start else {}
        piece = BODY[start : start + 100_001]
        self.answer(206 if start else 200, piece, length=len(BODY) - start, ETag='"one"', **content_range)

    def ignores_range(self):
        self.answer(200, BODY, ETag='"one"') if self.before else self.cut()

    def changes(self):
        self.ranged(OTHER, '"two"') if self.before else self.cut()

    def mixes(self):
        """Sends the rest of another version."""
        if self.before == 1:
            self.answer(206, BODY[HALF:], ETag='"two"', Content_Range=f"bytes {HALF}-300002/300003")
        else:
            self.ranged() if self.before else self.cut()

    def wrong_part(self):
        if self.before == 1:
            self.answer(206, BODY, ETag='"one"', Content_Range="bytes 0-300002/300003")
        else:
            self.ranged() if self.before else self.cut()

    def shrinks(self):
        if self.headers.get("Range"):
            self.answer(416, Content_Range="bytes */250003")
        else:
            self.answer(200, OTHER, ETag='"two"') if self.before else self.cut()

    def no_validator(self):
        self.answer(200, BODY) if self.before else self.answer(200, BODY[:HALF], length=len(BODY))

    def weak(self):
        """Names a version only weakly, but a date."""
        dated = {"ETag": 'W/"one"', "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        if self.before:
            self.ranged(tag="Mon, 01 Jan 2024 00:00:00 GMT")
        else:
            self.answer(200, BODY[:HALF], length=len(BODY), **dated)

    def longer(self):
        """Announces more than it ever sends."""
        self.answer(200, BODY, length=len(BODY) + 1000, ETag='"one"')

    def shorter(self):
        """Announces less than it sends."""
        self.answer(200, BODY, length=len(BODY) - 1000, ETag='"one"')

    def chunked(self):
        """In chunks; ?cut ends between two of them, without the last, and then goes on."""
        if self.before:
            return self.ranged()
        self.answer(200, length="", Transfer_Encoding="chunked", ETag='"one"')
        for start in range(0, len(BODY), 50_000):
            piece = BODY[start : start + 50_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            if "cut" in self.query and start:
                return None
        return self.wfile.write(b"0\r\n\r\n")

    def endless(self):
        self.answer(200, length="", ETag='"one"', **({"Transfer_Encoding": "chunked"} if self.query else {}))
        frame = b"%x\r\n%b\r\n" if self.query else b"%.0s%b"
        while not self.server.stop.is_set():
            self.wfile.write(frame % ((len(BODY), BODY) if self.query else (b"", BODY)))

    def huge(self):
        self.answer(200, BODY, length=10**15)

    def html(self):
        self.answer(200, b"<html>Too many requests, come back later</html>", Content_Type="application/gzip")

    def encoded(self):
        self.answer(200, BODY, Content_Encoding="br")

    def stalls(self):
        self.cut()
        self.server.stop.wait(20)

    def stalls_before(self):
        self.server.stop.wait(20)

    def drips(self):
        """Sends a byte now and then: headers with ?headers, else a body."""
        if "headers" in self.query:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        else:
            self.answer(200, length=len(BODY))
        while not self.server.stop.wait(0.02):
            self.wfile.write(b"x")

    def interrupts(self):
        """Sends half of it, then presses Ctrl-C and stalls, once; ?png sends a picture."""
        body = LARGE_PNG if "png" in self.query else BODY
        if sum(request.path.startswith("/interrupts") for request in self.server.requests) > 1:
            return self.ranged(body)
        self.cut(body=body)
        self.wfile.flush()
        self.server.stop.wait(0.3)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return self.server.stop.wait(20)

    def redirect(self):
        self.answer(int(self.query.get("status", 302)), b"moved", Location=self.query["to"])

    def loop(self):
        self.answer(302, Location=f"/loop/{self.before}")

    def status(self):
        """Answers ?status so many ?times, then well."""
        if self.before >= int(self.query.get("times", 99)):
            return self.ranged()
        headers = {}
        if after := self.query.get("after"):
            headers["Retry_After"] = formatdate(usegmt=True) if after == "date" else after
        return self.answer(int(self.query["status"]), b"no", **headers)

    def meets(self):
        """Answers once another request is waiting too."""
        self.server.pair.wait(5)
        self.ranged()

    def picture(self):
        self.answer(200, PICTURES[self.query["is"]], Content_Type="text/html", ETag='"one"')

    def no_http(self):
        self.wfile.write(b"\x1b[31mSMTP ready\r\n")


class HostileServer(ThreadingHTTPServer):
    """Listens on a port of its own until it is closed.

    Attributes:
        requests: what came, in order.
        files: what lies under /files/.
        names: the server names of TLS that clients asked for.
    """

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[Handler] = []
        self.files: dict[str, bytes] = {}
        self.names: list[str | None] = []
        self.lock, self.stop, self.pair = threading.Lock(), threading.Event(), threading.Barrier(2)
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            context.sni_callback = lambda sock, name, context: self.names.append(name)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_port}/{path}"

    def handle_error(self, request, client_address):
        pass

    def close(self) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()
