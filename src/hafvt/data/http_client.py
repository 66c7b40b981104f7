"""Requests that reach public addresses only, at a polite rate, and answers that cannot keep us waiting.

The proxies that the environment names are not used: behind one, nobody could tell which address a host's name
leads to, so nothing would keep a picture's address from reaching into the local network.
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
from typing import Any, cast
from urllib.parse import quote, urljoin, urlsplit

PIECE = 2**18
TRICKLE = 2**14  # fewer bytes than this in the time of a stall are a stall
SLICE_S = 0.5  # how soon a stop is noticed while nothing comes
GRACE_S = 0.5  # how long a server may take to end a connection after the last byte
PATIENCE = 20  # files in a row that a host may leave unanswered before it is left alone
LONGEST_ADDRESS = 4096
PORTS = {"http": 80, "https": 443}
REDIRECTS = (301, 302, 303, 307, 308)
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
SAFE = "!#$%&'()*+,-./:;=?@[]_~"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class TryError(Exception):
    """A try that failed; `again` says whether another may succeed, `held` that its host has named a time."""

    def __init__(self, problem: str, *, again: bool = False, held: bool = False) -> None:
        super().__init__(problem)
        self.again, self.held = again, held


class StopError(Exception):
    """The run was stopped while a file was under way."""


@dataclass
class Web:
    """What the downloads of a run share: bounds, manners, and how they are stopped.

    Attributes:
        max_bytes: the largest file.
        per_second: requests to one host, redirects and tries included.
        allow_private: also connect to addresses that are not public.
        tries: failures in a row, without getting further, before a file is given up.
        redirects: how many may be followed for one file.
        connect_s: longest wait for a connection, and for its encryption, in seconds.
        stall_s: longest wait for the headers, and for each 16 KiB of a body.
        backoff_s: the first wait after a failure, doubled each time and moved by up to a half at random.
        longest_wait_s: the longest wait between two tries, also where a server asks for more.
        seed: of the random part of the waits.
        sleep: waits some seconds; default: until then or until `stop` is set.
        clock: seconds that `sleep` lets pass.
        stop: set it and every download ends, resumable.
    """

    max_bytes: int = 40 * 2**30
    per_second: float = 4.0
    allow_private: bool = False
    tries: int = 6
    redirects: int = 5
    connect_s: float = 10.0
    stall_s: float = 60.0
    backoff_s: float = 1.0
    longest_wait_s: float = 120.0
    seed: int = 0
    sleep: Callable[[float], object] | None = None
    clock: Callable[[], float] = time.monotonic
    stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _free: dict[str, float] = field(default_factory=dict)  # when each host may be asked again
    _silent: dict[str, int] = field(default_factory=dict)  # files in a row that each host did not answer

    @cached_property
    def tls(self) -> ssl.SSLContext:
        """Certificates are checked, always."""
        return ssl.create_default_context()

    @cached_property
    def _random(self) -> random.Random:
        return random.Random(self.seed)

    def pause(self, seconds: float) -> None:
        """Waits, unless everything stops."""
        if seconds > 0:
            (self.sleep or self.stop.wait)(seconds)
        if self.stop.is_set():
            raise StopError

    def turn(self, host: str) -> None:
        """Waits until `host` may be asked again."""
        with self._lock:
            now = self.clock()
            start = max(now, self._free.get(host, now))
            self._free[host] = start + 1 / self.per_second
        self.pause(start - now)

    def hold(self, host: str, seconds: float) -> None:
        """Leaves `host` alone for some seconds, whichever file is next."""
        with self._lock:
            until = self.clock() + min(seconds, self.longest_wait_s)
            self._free[host] = max(until, self._free.get(host, until))

    def back_off(self, failures: int) -> None:
        """Waits after a failure, longer each time."""
        wait = self.backoff_s * 2 ** (failures - 1) * (1 + self._random.random() / 2)
        self.pause(min(wait, self.longest_wait_s))

    def answered(self, host: str, answered: bool) -> None:
        """Notes whether a file's host had an answer, be it a refusal."""
        with self._lock:
            self._silent[host] = 0 if answered else self._silent.get(host, 0) + 1

    def given_up(self, host: str) -> bool:
        """Whether a host has been silent for too long."""
        return self._silent.get(host, 0) >= PATIENCE


@dataclass(frozen=True)
class Address:
    """An address taken apart; `target` is path and query, percent-encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def name(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def is_public(address: str) -> bool:
    """Tells whether an IP address is one of the public internet; an IPv4 address inside IPv6 counts."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        inner = ip.ipv4_mapped or ip.sixtofour or translated
        if inner is not None:
            return is_public(str(inner))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


class Wire(io.RawIOBase):
    """A connection to read from, up to a deadline that only bytes move on.

    A time limit on each read would not do: a server that sends a byte a minute would keep us for ever.
    """

    def __init__(self, sock: socket.socket, web: Web) -> None:
        super().__init__()
        self._sock, self._web, self._come = sock, web, 0
        self.deadline = time.monotonic() + web.stall_s

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Reads what has come, waiting until the deadline for anything."""
        while (left := self.deadline - time.monotonic()) > 0:
            self._web.pause(0)
            self._sock.settimeout(min(left, SLICE_S))
            try:
                return self._sock.recv_into(buffer)
            except TimeoutError:
                pass
        raise TimeoutError("nothing comes any more")

    def got(self, count: int) -> None:
        """Moves the deadline on where enough has come."""
        self._come += count
        if self._come >= TRICKLE:
            self._come, self.deadline = 0, time.monotonic() + self._web.stall_s

    def makefile(self, mode: str) -> io.BufferedReader:
        """Returns itself, buffered, as http.client asks for it."""
        return io.BufferedReader(self)


@contextmanager
def network() -> Iterator[None]:
    """Turns whatever goes wrong on the way into a failure that another try may mend."""
    try:
        yield
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = "".join(char for char in str(error) if char.isprintable())[:100]
        raise TryError(f"connection lost ({said or type(error).__name__})", again=True) from None


@contextmanager
def open_url(url: str, headers: dict[str, str], web: Web) -> Iterator[tuple[HTTPResponse, Wire]]:
    """Asks for a file, following redirects, each of which is checked like the first address.

    Yields:
        The answer, neither a redirect nor a transient error, and its connection.

    Raises:
        TryError: an address is refused, its host cannot be reached, or it answers that it cannot now.
    """
    via = ""
    for _ in range(web.redirects + 1):
        try:
            address = parse(url)
            web.turn(address.host)
            sock = _connect(address, web)
        except TryError as failure:
            raise TryError(f"{via}{failure}", again=failure.again) from None
        with closing(sock):
            wire = Wire(sock, web)
            response = _ask(address, headers, sock, wire)
            if response.status in TRANSIENT:
                wait = _retry_after(response)
                if wait is not None:
                    web.hold(address.host, wait)
                raise TryError(f"the server answers {response.status}", again=True, held=wait is not None)
            if response.status not in REDIRECTS:
                wire.deadline = time.monotonic() + web.stall_s
                yield response, wire
                return
            location = response.headers.get("Location", "").strip()
        try:
            url = urljoin(url, quote(location, safe=SAFE, encoding="latin-1"))
        except ValueError:
            raise TryError(f"redirected to {location[:100]!r}, which is no address") from None
        via = f"redirected to {url[:100]!r}: "
        if address.scheme == "https" and url.startswith("http:"):
            raise TryError(f"{via}from https to http")
    raise TryError(f"redirected more than {web.redirects} times")


def pieces(response: HTTPResponse, wire: Wire, left: int | None) -> Iterator[bytes]:
    """Yields a body as it comes; None: until it ends. A byte beyond the announced `left` is yielded too."""
    if not response.chunked:
        response.length = None  # http.client would hide what comes beyond the announced length
    while left is None or left > 0:
        with network():
            piece = response.read1(PIECE if left is None else min(left, PIECE))
        if not piece:
            return
        wire.got(len(piece))
        left = None if left is None else left - len(piece)
        yield piece
    wire.deadline = min(wire.deadline, time.monotonic() + GRACE_S)
    surplus = b""
    with suppress(TryError), network():
        surplus = response.read1(1)
    yield surplus


def parse(url: str) -> Address:
    """Takes an address apart.

    Raises:
        TryError: it is none, not of http or https, or holds a password.
    """
    # urlsplit drops line breaks and tabs in silence, so what it checks would not be what was written
    if len(url) > LONGEST_ADDRESS or any(char < " " or char == "\x7f" for char in url):
        raise TryError("no address: too long, or with control characters")
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in PORTS:
            raise TryError("only http and https are fetched")
        if parts.username is not None or parts.password is not None:
            raise TryError("an address with a user or a password is not fetched")
        host = (parts.hostname or "").encode("idna").decode("ascii")
        if not re.fullmatch(r"[\w-][\w.-]*|[0-9a-f:.]*:[0-9a-f:.]*", host, re.ASCII):
            raise TryError("no address: it names no host")
        target = quote(parts.path or "/", safe=SAFE) + (
            f"?{quote(parts.query, safe=SAFE)}" if parts.query else ""
        )
        return Address(parts.scheme, host, parts.port or PORTS[parts.scheme], target)
    except ValueError as error:
        raise TryError(f"no address ({str(error)[:80]})") from None


def _connect(address: Address, web: Web) -> socket.socket:
    """Returns a connection to one of the addresses of a host, all of which must be public."""
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        again = error.errno == socket.EAI_AGAIN
        raise TryError(f"{address.host} is not known: is there a network?", again=again) from None
    except (OSError, ValueError):
        raise TryError(f"{address.host} is not known") from None
    for *_, where in found:
        if not web.allow_private and not is_public(str(where[0])):
            raise TryError(
                f"{address.host} is {where[0]}, not a public address "
                "(--allow-private true fetches it all the same)"
            )
    problem = "no address"
    for family, kind, protocol, _, where in found[:4]:
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(web.connect_s)
            sock.connect(where)  # what was checked: a second look-up of the name might answer otherwise
            return (
                web.tls.wrap_socket(sock, server_hostname=address.host) if address.scheme == "https" else sock
            )
        except ssl.SSLCertVerificationError as error:
            sock.close()
            raise TryError(f"{address.host} cannot prove who it is ({error.verify_message})") from None
        except (OSError, ValueError) as error:
            sock.close()
            problem = str(error)[:100]
    raise TryError(f"no connection to {address.host} ({problem})", again=True)


def _ask(address: Address, headers: dict[str, str], sock: socket.socket, wire: Wire) -> HTTPResponse:
    """Sends a request and returns the answer, its headers read."""
    asked = {
        "Host": address.name,
        "User-Agent": "hafvt-fetch",
        "Accept": "*/*",
        "Accept-Encoding": "identity",
        "Connection": "close",
    }
    lines = [f"GET {address.target} HTTP/1.1", *(f"{k}: {v}" for k, v in (asked | headers).items()), "", ""]
    with network():
        sock.sendall("\r\n".join(lines).encode("ascii"))
        response = HTTPResponse(cast(socket.socket, wire), method="GET")
        response.begin()
    return response


def _retry_after(response: HTTPResponse) -> float | None:
    """Returns how many seconds a server asks us to wait; None where it does not say."""
    said = response.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", said):
        return float(said)
    try:
        when = parsedate_to_datetime(said)
    except ValueError:
        return None
    return max((when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds(), 0.0)
