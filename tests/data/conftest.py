"""A misbehaving server on this machine, clients that do not wait, and a DNS of names that a test chooses."""

from __future__ import annotations

import socket
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest

from hafvt.data.http_client import HttpClient
from tests.data.sources.hostile_server import HostileServer


@pytest.fixture
def server():
    with closing(HostileServer()) as server:
        yield server


@pytest.fixture
def waits():
    """Return the list of waits in seconds that clients request; the tests do not wait."""
    return []


@pytest.fixture
def make_client(waits):
    return partial(
        HttpClient, requests_per_second=1e6, allow_private=True, sleep=waits.append, stall_timeout_s=5.0
    )


@pytest.fixture
def dns(monkeypatch):
    """Replace DNS; return `addresses` (IP addresses by host name, to fill) and `lookups` (resolved names)."""
    addresses, lookups = {}, []

    def getaddrinfo(host, port, *arguments, **options):
        lookups.append(host)
        if host not in addresses:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return SimpleNamespace(addresses=addresses, lookups=lookups)
