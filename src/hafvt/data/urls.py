"""URLs and IP addresses that downloads may use."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from hafvt.errors import HafvtError

MAX_URL_LENGTH = 4096
DEFAULT_PORTS = {"http": 80, "https": 443}
SAFE_URL_CHARACTERS = "!#$%&'()*+,-./:;=?@[]_~"  # not percent-encoded
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class InvalidUrlError(HafvtError):
    """A URL is invalid or not allowed."""


@dataclass(frozen=True)
class ParsedUrl:
    """The parts of a URL; `target` is path and query, percent-encoded."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def host_header(self) -> str:
        """Value of the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


def is_public(address: str) -> bool:
    """Return whether an IP address is public; for IPv6 with an embedded IPv4 address, whether that one is."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF) if ip in _NAT64 else None
        embedded = ip.ipv4_mapped or ip.sixtofour or translated
        if embedded is not None:
            return is_public(str(embedded))
        if ip.is_site_local:
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_unspecified)


def parse_url(url: str) -> ParsedUrl:
    """Return the parts of a URL.

    Raises:
        InvalidUrlError: the URL is invalid, neither http nor https, or contains a user name or password.
    """
    # urlsplit silently removes line breaks and tabs, so that the checks would not see the original text
    if len(url) > MAX_URL_LENGTH or any(char < " " or char == "\x7f" for char in url):
        raise InvalidUrlError("invalid URL: too long, or with control characters")
    try:
        parts = urlsplit(url.strip())
        if parts.scheme not in DEFAULT_PORTS:
            raise InvalidUrlError("only http and https URLs are allowed")
        if parts.username is not None or parts.password is not None:
            raise InvalidUrlError("a URL with a user name or a password is not allowed")
        host = (parts.hostname or "").encode("idna").decode("ascii")
        if not re.fullmatch(r"[\w-][\w.-]*|[0-9a-f:.]*:[0-9a-f:.]*", host, re.ASCII):
            raise InvalidUrlError("invalid URL: no valid host name")
        query = f"?{quote(parts.query, safe=SAFE_URL_CHARACTERS)}" if parts.query else ""
        target = quote(parts.path or "/", safe=SAFE_URL_CHARACTERS) + query
        return ParsedUrl(parts.scheme, host, parts.port or DEFAULT_PORTS[parts.scheme], target)
    except ValueError as error:
        raise InvalidUrlError(f"invalid URL ({str(error)[:80]})") from None
