"""Pictures at web addresses and in object stores: read into memory, nothing is kept."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from hafvt.data.http_client import HttpClient, RequestError, iter_body, open_url, parse_url
from hafvt.errors import missing_package
from hafvt.features.images import MAX_BYTES, PictureError

REQUESTS_PER_SECOND = 20.0  # to one host, of one process
MAX_ATTEMPTS = 3
STALL_TIMEOUT_S = 20.0
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
}  # other protocols of fsspec, such as file://, are not for item tables


def is_picture_address(value: str) -> bool:
    """Return whether a cell of the item table is an address, and no path."""
    return re.match(r"(?i)(https?|s3|gs)://", value) is not None


def read_remote(address: str) -> bytes:
    """Return the bytes of a picture at http://, https://, s3:// or gs://.

    Raises:
        PictureError: it cannot be read, is too large, or the host has a private address.
        HafvtError: the package for an object store is not installed.
    """
    protocol = address.partition("://")[0].lower()
    return _read_object(protocol, address) if protocol in PACKAGES else _read_url(address)


@cache
def http_client() -> HttpClient:
    """Return the client of this process, with its limits."""
    return HttpClient(
        max_bytes=MAX_BYTES,
        requests_per_second=REQUESTS_PER_SECOND,
        max_attempts=MAX_ATTEMPTS,
        stall_timeout_s=STALL_TIMEOUT_S,
    )


def _read_url(url: str) -> bytes:
    """Return the bytes of a picture of a web server, whose address is public."""
    client = http_client()
    try:
        host = parse_url(url).host
        for attempt in range(1, client.max_attempts + 1):
            client.check_host(host)
            try:
                data = _attempt(url, client)
                client.record_file(host, has_response=True)
                return data
            except RequestError as failure:
                if not failure.is_retryable or attempt == client.max_attempts:
                    client.record_file(host, has_response=not failure.is_retryable)
                    raise
                if not failure.has_retry_after:
                    client.back_off(attempt)
    except RequestError as failure:
        raise PictureError(str(failure).removesuffix(" (--allow-private permits it)")) from None
    raise AssertionError("the last attempt returns or raises")


def _attempt(url: str, client: HttpClient) -> bytes:
    """Return the body of one response."""
    with open_url(url, {}, client) as (response, reader):
        if response.status != 200:
            raise RequestError(f"the server responded with status {response.status}")
        data = bytearray()
        length = response.headers.get("Content-Length", "")
        num_bytes = int(length) if re.fullmatch(r"\d{1,15}", length) and not response.chunked else None
        for chunk in iter_body(response, reader, num_bytes):
            data += chunk
            if len(data) > client.max_bytes:
                raise RequestError(f"larger than {client.max_bytes // 2**20} MiB")
        if num_bytes is not None and len(data) != num_bytes:
            raise RequestError(f"{len(data):,} bytes came, not {num_bytes:,}", is_retryable=True)
    return bytes(data)


def _read_object(protocol: str, address: str) -> bytes:
    """Return the bytes of a picture in an object store, with the credentials of the environment."""
    try:
        with file_system(protocol).open(f"{protocol}{address[len(protocol) :]}", "rb") as file:
            data: bytes = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise PictureError("no such file") from None
    except ImportError as error:
        raise missing_package("cluster", error.name or PACKAGES[protocol]) from None
    except Exception as error:  # stores raise errors of many types
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise PictureError(f"cannot be read ({reason})") from None
    if len(data) > MAX_BYTES:
        raise PictureError(f"larger than {MAX_BYTES // 2**20} MiB")
    return data


@cache
def file_system(protocol: str) -> Any:
    """Return the file system of fsspec for a protocol."""
    try:
        import fsspec
    except ImportError:
        raise missing_package("cluster", "fsspec") from None
    return fsspec.filesystem(protocol)
