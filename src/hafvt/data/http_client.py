"""HTTP client for untrusted URLs: public addresses only, rate limits per host, and timeouts on every read.

The client ignores proxy settings of the environment: a proxy resolves host names itself, so the client could
not check that a URL does not lead into the local network.
"""

from __future__ import annotations

import http.client
import io
import ipaddress
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cached_property
from http.client import HTTPResponse
from typing import Any, NamedTuple, cast
from urllib.parse import quote, urljoin, urlsplit

MAX_URL_LENGTH = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_URL_CHARACTERS = "!#$%&'()*+,-./:;=?@[]_~"  # not percent-encoded
NAT64 = ipaddress.ip_network("64:ff9b::/96")

CHUNK_BYTES = 2**18
MIN_PROGRESS_BYTES = 2**14  # a response with fewer bytes than this per stall timeout counts as stalled
POLL_INTERVAL_S = 0.5  # longest delay until a waiting thread reacts to the stop event
CONNECT_TIMEOUT_S = 10.0  # longest wait for a connection, and for its TLS handshake
CLOSE_TIMEOUT_S = 0.5  # longest wait for the server to close the connection after the last byte
INITIAL_BACKOFF_S = 1.0  # wait after the first failure; each further failure doubles it
MAX_WAIT_S = 120.0  # longest wait between two attempts, even if the server requests a longer one
MAX_REDIRECTS = 5  # of a request
MAX_FAILED_FILES = 20  # consecutive files without a response after which the client gives up on a host
REDIRECT_STATUSES = (301, 302, 303, 307, 308)
TRANSIENT_STATUSES = (408, 425, 429, 500, 502, 503, 504)


class RequestError(Exception):
    """A failed request.

    Args:
        problem: what is wrong, in a few words.
        is_retryable: whether another attempt may succeed.
        has_retry_after: whether the server named the time of the next attempt.
    """

    def __init__(self, problem: str, *, is_retryable: bool = False, has_retry_after: bool = False) -> None:
        super().__init__(problem)
        self.is_retryable, self.has_retry_after = is_retryable, has_retry_after


class DownloadCancelled(Exception):
    """The stop event was set during a download."""


class ParsedUrl(NamedTuple):
    """The parts of a URL, the value of the Host header, and path and query, percent-encoded (`target`)."""

    scheme: str
    host: str
    port: int
    host_header: str
    target: str


def parse_url(url: str) -> ParsedUrl:
    """Return the parts of a URL.

    Raises:
        RequestError: the URL is invalid, neither http nor https, or contains a user name or password.
    """
    # urlsplit silently removes line breaks and tabs, so that the checks would not see the original text
    if len(url) > MAX_URL_LENGTH or any(char < " " or char == "\x7f" for char in url):
        raise RequestError("invalid URL: too long, or with control characters")
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in DEFAULT_PORTS:
            raise RequestError("only http and https URLs are allowed")
        if parts.username is not None or parts.password is not None:
            raise RequestError("a URL with a user name or a password is not allowed")
        host = (parts.hostname or "").encode("idna").decode("ascii")
        if not re.fullmatch(r"[\w-][\w.-]*|[0-9a-f:.]*:[0-9a-f:.]*", host, re.ASCII):
            raise RequestError("invalid URL: no valid host name")
        port = parts.port or DEFAULT_PORTS[parts.scheme]
        query = f"?{quote(parts.query, safe=SAFE_URL_CHARACTERS)}" if parts.query else ""
        target = quote(parts.path or "/", safe=SAFE_URL_CHARACTERS) + query
    except ValueError as error:
        raise RequestError(f"invalid URL ({str(error)[:80]})") from None
    host_header = f"[{host}]" if ":" in host else host
    host_header += f":{port}" if port != DEFAULT_PORTS[parts.scheme] else ""
    return ParsedUrl(parts.scheme, host, port, host_header, target)


def is_public(address: str) -> bool:
    """Return whether an IP address is public; for IPv6 with an embedded IPv4 address, whether that one is."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in NAT64 else None
        embedded = ip.ipv4_mapped or ip.sixtofour or translated
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


@dataclass
class HttpClient:
    """Limits that parallel downloads share, the request schedule of each host, and the stop event.

    Attributes:
        max_bytes: largest size of a file.
        requests_per_second: largest rate of requests to one host, including redirects and repeated attempts.
        allow_private: also connect to addresses that are not public.
        max_attempts: consecutive attempts without progress after which a download fails.
        stall_timeout_s: longest wait for the headers, and for each 16 KiB of a body, in seconds.
        sleep: function that waits some seconds; default: waits until the time is over or `stop_event` is set.
        clock: function that returns the time in seconds.
        stop_event: set it to end all downloads; they can be resumed.
    """

    max_bytes: int = 40 * 2**30
    requests_per_second: float = 4.0
    allow_private: bool = False
    max_attempts: int = 6
    stall_timeout_s: float = 60.0
    sleep: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic
    stop_event: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _next_request_time: dict[str, float] = field(default_factory=dict)  # by host
    _failed_files: dict[str, int] = field(default_factory=dict)  # in a row without a response, by host

    @cached_property
    def tls_context(self) -> ssl.SSLContext:
        """TLS settings; certificates are always verified."""
        return ssl.create_default_context()

    def wait(self, seconds: float) -> None:
        """Wait some seconds; raise DownloadCancelled if the stop event is set."""
        if seconds > 0:
            (self.sleep or self.stop_event.wait)(seconds)
        if self.stop_event.is_set():
            raise DownloadCancelled

    def wait_for_host(self, host: str) -> None:
        """Wait until the rate limit permits the next request to `host`."""
        with self._lock:
            now = self.clock()
            start = max(now, self._next_request_time.get(host, now))
            self._next_request_time[host] = start + 1 / self.requests_per_second
        self.wait(start - now)

    def delay_host(self, host: str, seconds: float) -> None:
        """Delay all requests to `host` by some seconds."""
        with self._lock:
            until = self.clock() + min(seconds, MAX_WAIT_S)
            self._next_request_time[host] = max(until, self._next_request_time.get(host, until))

    def back_off(self, num_failures: int) -> None:
        """Wait after a failure: exponentially longer with their number, plus a jitter of up to 50 %."""
        self.wait(min(INITIAL_BACKOFF_S * 2 ** (num_failures - 1) * random.uniform(1, 1.5), MAX_WAIT_S))

    def record_file(self, host: str, *, has_response: bool) -> None:
        """Record whether `host` sent a final response for a file; an error such as 404 counts as one."""
        with self._lock:
            self._failed_files[host] = 0 if has_response else self._failed_files.get(host, 0) + 1

    def check_host(self, host: str) -> None:
        """Raise RequestError if `host` sent no response for too many consecutive files."""
        if self._failed_files.get(host, 0) >= MAX_FAILED_FILES:
            problem = f"{MAX_FAILED_FILES} files in a row failed; try again later"
            raise RequestError(f"{host} is unavailable: {problem}")


class DeadlineReader(io.RawIOBase):
    """Reads from a socket until a deadline, which moves only after 16 KiB of progress.

    A timeout per read is not enough: a server that sends one byte per minute would never reach it.
    """

    def __init__(self, sock: socket.socket, client: HttpClient) -> None:
        super().__init__()
        self._sock, self._client = sock, client
        self.reset_deadline()

    def reset_deadline(self) -> None:
        """Set the deadline to one stall timeout from now."""
        self._progress_bytes, self.deadline = 0, time.monotonic() + self._client.stall_timeout_s

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read available bytes into `buffer`, waiting until the deadline, and return their number."""
        while (remaining := self.deadline - time.monotonic()) > 0:
            self._client.wait(0)
            self._sock.settimeout(min(remaining, POLL_INTERVAL_S))
            with suppress(TimeoutError):
                return self._sock.recv_into(buffer)
        raise TimeoutError("timeout: the server stopped sending data")

    def add_progress(self, num_bytes: int) -> None:
        """Count bytes of a body; move the deadline after every 16 KiB."""
        self._progress_bytes += num_bytes
        if self._progress_bytes >= MIN_PROGRESS_BYTES:
            self.reset_deadline()

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a buffered reader of this connection; http.client calls this method of its sockets."""
        return io.BufferedReader(self)


@contextmanager
def network_errors_as_retryable() -> Iterator[None]:
    """Raise network and protocol errors as RequestError that another attempt may fix."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        message = "".join(char for char in str(error) if char.isprintable())[:100]
        problem = f"connection lost ({message or type(error).__name__})"
        raise RequestError(problem, is_retryable=True) from None


@contextmanager
def open_url(
    url: str, headers: dict[str, str], client: HttpClient
) -> Iterator[tuple[HTTPResponse, DeadlineReader]]:
    """Send a GET request and follow redirects; each redirect passes the same checks as the first URL.

    Yields:
        The response, neither a redirect nor a transient error, and the reader of its connection.

    Raises:
        RequestError: a URL is not allowed, its host is unreachable, or the server reports a transient error.
    """
    redirect_note = ""
    for _ in range(MAX_REDIRECTS + 1):
        try:
            parsed_url = parse_url(url)
            client.wait_for_host(parsed_url.host)
            sock = _connect(parsed_url, client)
        except RequestError as failure:
            raise RequestError(f"{redirect_note}{failure}", is_retryable=failure.is_retryable) from None
        with closing(sock):
            reader = DeadlineReader(sock, client)
            response = _send_request(parsed_url, headers, sock, reader)
            if response.status in TRANSIENT_STATUSES:
                seconds = _retry_after_seconds(response.headers.get("Retry-After", "").strip())
                if seconds is not None:
                    client.delay_host(parsed_url.host, seconds)
                problem = f"the server responded with status {response.status}"
                raise RequestError(problem, is_retryable=True, has_retry_after=seconds is not None)
            if response.status not in REDIRECT_STATUSES:
                reader.reset_deadline()
                yield response, reader
                return
            location = response.headers.get("Location", "").strip()
        try:
            url = urljoin(url, quote(location, safe=SAFE_URL_CHARACTERS, encoding="latin-1"))
        except ValueError:
            raise RequestError(f"redirected to {location[:100]!r}, which is an invalid URL") from None
        redirect_note = f"redirected to {url[:100]!r}: "
        if parsed_url.scheme == "https" and url.startswith("http:"):
            raise RequestError(f"{redirect_note}from https to http")
    raise RequestError(f"redirected more than {MAX_REDIRECTS} times")


def iter_body(response: HTTPResponse, reader: DeadlineReader, num_bytes: int | None) -> Iterator[bytes]:
    """Yield the chunks of the body of a response of `open_url` as they arrive.

    `num_bytes` is the announced length; None reads until the body ends. If the server sends more than this,
    one byte more is yielded, so that the caller can detect it.

    Raises:
        RequestError: the connection is lost, or the server stops sending data.
    """
    if not response.chunked:
        response.length = None  # otherwise http.client hides bytes beyond the announced length
    while num_bytes is None or num_bytes > 0:
        with network_errors_as_retryable():
            chunk = response.read1(CHUNK_BYTES if num_bytes is None else min(num_bytes, CHUNK_BYTES))
        if not chunk:
            return
        reader.add_progress(len(chunk))
        num_bytes = None if num_bytes is None else num_bytes - len(chunk)
        yield chunk
    reader.deadline = min(reader.deadline, time.monotonic() + CLOSE_TIMEOUT_S)
    surplus = b""
    with suppress(RequestError), network_errors_as_retryable():
        surplus = response.read1(1)
    yield surplus


def _connect(url: ParsedUrl, client: HttpClient) -> socket.socket:
    """Return a connection to one of the IP addresses of a host, all of which must be public."""
    try:
        resolved = socket.getaddrinfo(url.host, url.port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:
        is_retryable = isinstance(error, socket.gaierror) and error.errno == socket.EAI_AGAIN
        problem = f"{url.host} cannot be resolved: check the name and the network"
        raise RequestError(problem, is_retryable=is_retryable) from None
    for *_, address in resolved:
        if not client.allow_private and not is_public(str(address[0])):
            problem = "not a public address (--allow-private permits it)"
            raise RequestError(f"{url.host} is {address[0]}, {problem}")
    problem = "no address"
    for family, kind, protocol, _, address in resolved[:4]:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(CONNECT_TIMEOUT_S)
            sock.connect(address)  # the checked address: resolving the name again could return another one
            if url.scheme == "https":
                return client.tls_context.wrap_socket(sock, server_hostname=url.host)
            return sock
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise RequestError(f"the certificate of {url.host} is invalid ({error.verify_message})") from None
        except (OSError, ValueError) as error:
            sock.close()
            problem = str(error)[:100]
    raise RequestError(f"no connection to {url.host} ({problem})", is_retryable=True)


def _send_request(
    url: ParsedUrl, headers: dict[str, str], sock: socket.socket, reader: DeadlineReader
) -> HTTPResponse:
    """Send a GET request and return the response after reading its headers."""
    default_headers = {
        "Host": url.host_header,
        "User-Agent": "hafvt-fetch",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    header_lines = [f"{name}: {value}" for name, value in (default_headers | headers).items()]
    with network_errors_as_retryable():
        sock.sendall("\r\n".join([f"GET {url.target} HTTP/1.1", *header_lines, "", ""]).encode("ascii"))
        response = HTTPResponse(cast(socket.socket, reader), method="GET")
        response.begin()
    return response


def _retry_after_seconds(value: str) -> float | None:
    """Return the wait in seconds that a Retry-After header requests; None if it is invalid or empty."""
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        time_of_retry = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    time_of_retry = time_of_retry.replace(tzinfo=time_of_retry.tzinfo or UTC)
    return max((time_of_retry - datetime.now(UTC)).total_seconds(), 0.0)
