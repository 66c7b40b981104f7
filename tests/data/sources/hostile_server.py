"""A local web server that sends correct, faulty and malicious responses, by the path of the request."""

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
OTHER_BODY = b"\x1f\x8b\x08" + random.Random(1).randbytes(250_000)
LARGE_PNG = b"\x89PNG\r\n\x1a\n" + BODY[8:]
HALF = 150_000
PICTURES = {
    "jpg": b"\xff\xd8\xff\xe0" + bytes(60),
    "png": b"\x89PNG\r\n\x1a\n" + bytes(60),
    "gif": b"GIF89a" + bytes(60),
    "avif": b"\0\0\0\x20ftypavif" + bytes(60),
    "webp": b"RIFF\x40\0\0\0WEBPVP8 " + bytes(60),
}


class HostileHandler(BaseHTTPRequestHandler):
    """Responds to /NAME/ANYTHING?QUERY with the method NAME, hyphens replaced by underscores.

    Attributes:
        num_earlier: number of earlier requests of the same path.
        query: first value of each query parameter.
    """

    protocol_version = "HTTP/1.1"
    server: HostileServer

    def do_GET(self):
        path = urlsplit(self.path)
        with self.server.lock:
            self.num_earlier = sum(request.path == self.path for request in self.server.requests)
            self.server.requests.append(self)
        self.query = {name: values[0] for name, values in parse_qs(path.query, True).items()}
        with suppress(ConnectionError, ssl.SSLError):
            getattr(self, path.path.split("/")[1].replace("-", "_"))()
        self.close_connection = True

    def log_message(self, *arguments):
        pass

    def respond(self, status, body=b"", *, length=None, **headers):
        """Send a response; `length` replaces the true Content-Length, "" omits it."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if length != "":
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    def respond_range(self, body=BODY, tag='"one"'):
        """Send the requested range if the client has the same version of the file, else the complete file."""
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not match or self.headers.get("If-Range") != tag:
            return self.respond(200, body, ETag=tag)
        start = int(match[1])
        content_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.respond(206, body[start:], ETag=tag, Content_Range=content_range)

    def respond_first_half(self, tag='"one"', body=BODY):
        self.respond(200, body[:HALF], length=len(body), ETag=tag)

    def good(self):
        self.respond_range()

    def files(self):
        """Send a file of `server.files`."""
        name = urlsplit(self.path).path.removeprefix("/files/")
        body = self.server.files.get(name)
        self.respond(404, b"no") if body is None else self.respond_range(body)

    def truncated(self):
        self.respond_range() if self.num_earlier else self.respond_first_half()

    def thirds(self):
        """Send a third of the file per request."""
        start = int(self.headers.get("Range", "bytes=0-")[6:-1])
        content_range = {"Content_Range": f"bytes {start}-300002/300003"} if start else {}
        chunk = BODY[start : start + 100_001]
        self.respond(206 if start else 200, chunk, length=len(BODY) - start, ETag='"one"', **content_range)

    def ignores_range(self):
        self.respond(200, BODY, ETag='"one"') if self.num_earlier else self.respond_first_half()

    def changed_file(self):
        self.respond_range(OTHER_BODY, '"two"') if self.num_earlier else self.respond_first_half()

    def other_version_part(self):
        """Send the second half of another version."""
        if self.num_earlier == 1:
            self.respond(206, BODY[HALF:], ETag='"two"', Content_Range=f"bytes {HALF}-300002/300003")
        else:
            self.respond_range() if self.num_earlier else self.respond_first_half()

    def wrong_part(self):
        if self.num_earlier == 1:
            self.respond(206, BODY, ETag='"one"', Content_Range="bytes 0-300002/300003")
        else:
            self.respond_range() if self.num_earlier else self.respond_first_half()

    def shorter_file(self):
        if self.headers.get("Range"):
            self.respond(416, Content_Range="bytes */250003")
        else:
            self.respond(200, OTHER_BODY, ETag='"two"') if self.num_earlier else self.respond_first_half()

    def no_validator(self):
        self.respond(200, BODY) if self.num_earlier else self.respond(200, BODY[:HALF], length=len(BODY))

    def weak(self):
        """Send a weak ETag and a date."""
        validators = {"ETag": 'W/"one"', "Last_Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}
        if self.num_earlier:
            self.respond_range(tag="Mon, 01 Jan 2024 00:00:00 GMT")
        else:
            self.respond(200, BODY[:HALF], length=len(BODY), **validators)

    def missing_bytes(self):
        """Announce more bytes than follow."""
        self.respond(200, BODY, length=len(BODY) + 1000, ETag='"one"')

    def surplus_bytes(self):
        """Announce fewer bytes than follow."""
        self.respond(200, BODY, length=len(BODY) - 1000, ETag='"one"')

    def chunked(self):
        """Send chunks; ?cut closes the first connection after two of them."""
        if self.num_earlier:
            return self.respond_range()
        self.respond(200, length="", Transfer_Encoding="chunked", ETag='"one"')
        for start in range(0, len(BODY), 50_000):
            chunk = BODY[start : start + 50_000]
            self.wfile.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            if "cut" in self.query and start:
                return None
        return self.wfile.write(b"0\r\n\r\n")

    def endless(self):
        self.respond(200, length="", ETag='"one"', **({"Transfer_Encoding": "chunked"} if self.query else {}))
        frame = b"%x\r\n%b\r\n" if self.query else b"%.0s%b"
        while not self.server.stop_event.is_set():
            self.wfile.write(frame % ((len(BODY), BODY) if self.query else (b"", BODY)))

    def huge(self):
        self.respond(200, BODY, length=10**15)

    def html(self):
        self.respond(200, b"<html>Too many requests, come back later</html>", Content_Type="application/gzip")

    def encoded(self):
        self.respond(200, BODY, Content_Encoding="br")

    def stalls(self):
        self.respond_first_half()
        self.server.stop_event.wait(20)

    def stalls_before(self):
        self.server.stop_event.wait(20)

    def slow_bytes(self):
        """Send one byte every 20 ms: of headers with ?headers, else of a body."""
        if "headers" in self.query:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        else:
            self.respond(200, length=len(BODY))
        while not self.server.stop_event.wait(0.02):
            self.wfile.write(b"x")

    def interrupts(self):
        """Send half a file, raise Ctrl-C in the main thread and stall, once; ?png sends a picture."""
        body = LARGE_PNG if "png" in self.query else BODY
        if sum(request.path.startswith("/interrupts") for request in self.server.requests) > 1:
            return self.respond_range(body)
        self.respond_first_half(body=body)
        self.wfile.flush()
        self.server.stop_event.wait(0.3)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return self.server.stop_event.wait(20)

    def redirect(self):
        self.respond(int(self.query.get("status", 302)), b"moved", Location=self.query["to"])

    def loop(self):
        self.respond(302, Location=f"/loop/{self.num_earlier}")

    def status(self):
        """Respond ?times with ?status, afterwards with the file; ?after sets Retry-After."""
        if self.num_earlier >= int(self.query.get("times", 99)):
            return self.respond_range()
        headers = {}
        if after := self.query.get("after"):
            headers["Retry_After"] = formatdate(usegmt=True) if after == "date" else after
        return self.respond(int(self.query["status"]), b"no", **headers)

    def parallel(self):
        """Respond when a second request arrives."""
        self.server.pair_barrier.wait(5)
        self.respond_range()

    def picture(self):
        self.respond(200, PICTURES[self.query["is"]], Content_Type="text/html", ETag='"one"')

    def no_http(self):
        self.wfile.write(b"\x1b[31mSMTP ready\r\n")


class HostileServer(ThreadingHTTPServer):
    """Listens on a free local port until `close`.

    Args:
        certificate: PEM file with key and certificate for https; None serves http.

    Attributes:
        requests: the requests, in order of arrival.
        files: content of /files/ by path.
        sni_names: server names that TLS clients requested.
    """

    daemon_threads = True

    def __init__(self, certificate: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), HostileHandler)
        self.requests: list[HostileHandler] = []
        self.files: dict[str, bytes] = {}
        self.sni_names: list[str | None] = []
        self.lock, self.stop_event, self.pair_barrier = (
            threading.Lock(),
            threading.Event(),
            threading.Barrier(2),
        )
        self.scheme = "https" if certificate else "http"
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            context.sni_callback = lambda sock, name, context: self.sni_names.append(name)
            self.socket = context.wrap_socket(self.socket, server_side=True)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.server_port}/{path}"

    def handle_error(self, request, client_address):
        pass

    def close(self) -> None:
        self.stop_event.set()
        self.shutdown()
        self.server_close()
