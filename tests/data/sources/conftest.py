"""A misbehaving server on this machine, from which `hafvt fetch` downloads."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import pytest

from hafvt.data.http_client import HttpClient
from hafvt.data.sources import fetch as fetch_module
from tests.data.sources.hostile_server import HostileServer


@pytest.fixture
def server(monkeypatch):
    """Return a server; clients do not wait between two attempts."""
    monkeypatch.setattr(fetch_module, "HttpClient", partial(HttpClient, sleep=lambda seconds: None))
    with closing(HostileServer()) as server:
        yield server
