"""Untrusted input: every request gets an answer, a refusal is one line, and none crashes the server."""

from __future__ import annotations

import http.client
import json
import re
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from tests.served import run_in_thread

CHECKS = [
    getattr(schemathesis.checks, name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_schema_conformance",
    )
]
JSON = {"Content-Type": "application/json"}
VALID = {"history": ["i3"], "domain": "d0"}


@pytest.fixture(scope="module")
def app(served_run):
    return create_app(ModelSource(served_run))


@pytest.fixture(scope="module")
def port(app):
    with run_in_thread(app) as port:
        yield port


@pytest.fixture
def send(port):
    """Returns a function that sends a request and returns its status; checks the form of errors."""

    def send(method, path, body=None, headers=JSON):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        content = json.loads(answer.read())
        if answer.status >= 400:
            assert set(content) == {"error"}
            assert "\n" not in content["error"]
            assert len(content["error"]) < 500
        return answer.status

    return send


def body_with(**fields):
    return json.dumps({**VALID, **fields}).encode()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 422),
        (b"{", 422),
        (b"null", 422),
        (b"[]", 422),
        (b'"x"', 422),
        (b"\xff\xfe\x00", 400),
        (b"[" * 200_000, 400),
        (b"1" * 10_000, 400),
        (b'{"history": [NaN], "domain": "d0"}', 422),
        (b'{"history": [], "domain": "d0", "k": NaN}', 422),
        (b'{"history": [], "domain": "d0", "k": Infinity}', 422),
        (b'{"history": [], "domain": "d0", "k": 1e999}', 422),
        (b'{"history": [], "domain": "d0", "\\ud800": 1}', 422),
        (b'{"history": [], "domain": "x", "domain": "d0"}', 422),
        (body_with(history=["x" * 257]), 422),
        (body_with(history=["x"] * 10_001), 422),
        (body_with(history=["x"] * 10_000), 200),
        (body_with(history=["i3"] * 10_000), 200),
        (body_with(history="i3"), 422),
        (body_with(history=[3, 10**30], exclude=[-7], domain="d0"), 200),
        (body_with(history=[3.0]), 422),
        (body_with(history=[True]), 422),
        (body_with(history=[None]), 422),
        (body_with(history=["  "]), 422),
        (b'{"history": ["\\ud800"], "domain": "d0"}', 422),
        (body_with(domain=3), 422),
        (b'{"history": [], "domain": "d0", "k": 1, "k": 2}', 422),
        (b'{"history": [{"a": 1, "a": 2}], "domain": "d0"}', 422),
        (body_with(history=[["i3"]]), 422),
        (body_with(history={"0": "i3"}), 422),
        (body_with(history=["<script>", "../../etc/passwd", "a\0", "%s", "i3\n"]), 200),
        (body_with(k=0), 422),
        (body_with(k=101), 422),
        (body_with(k="10"), 422),
        (body_with(k=True), 422),
        (body_with(k=10**30), 422),
        (body_with(exclude_seen="yes"), 422),
        (body_with(domain="d" * 300), 422),
        (body_with(domain="<b>"), 422),
        (body_with(domain=None), 422),
        (body_with(exclude=["x"] * 10_001), 422),
        (body_with(more=1), 422),
        (json.dumps(["x"] * 100_000).encode(), 422),
        (b'{"history": [' + b"1," * 400_000 + b'1], "domain": "d0"}', 422),
    ],
    ids=lambda value: str(value)[:40],
)
def test_recommend_body_gets_its_status(send, body, status):
    assert send("POST", "/recommend", body) == status


def test_body_too_large_is_refused_with_and_without_length(send):
    large = b"x" * 10_000_000
    assert send("POST", "/recommend", large) == 413
    assert send("POST", "/explain", (large[:100_000] for _ in range(100))) == 413
    long = json.dumps({"history": [f"item-{n:020}" for n in range(100_000)], "domain": "d0"}).encode()
    assert send("POST", "/recommend", long) == 413
    assert send("POST", "/nothing", large) == 404


@pytest.mark.parametrize(
    "media_type", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_body_other_media_type_is_refused(send, media_type):
    assert send("POST", "/recommend", body_with(), {"Content-Type": media_type} if media_type else {}) == 415


def test_body_compressed_is_refused(send):
    for encoding, status in {"gzip": 415, "br, gzip": 415, "Identity": 200}.items():
        headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
        assert send("POST", "/recommend", body_with(), headers) == status


def test_body_json_with_charset_is_accepted(send):
    assert send("POST", "/recommend", body_with(), {"Content-Type": "Application/JSON; charset=utf-8"}) == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/items/../../etc/passwd", 404),
        ("/items/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404),
        ("/items/%ff%fe%00", 404),
        ("/items/%3Cscript%3E", 404),
        ("/items/" + "x" * 5000, 404),
        ("/pictures/..%2f..%2fsecret.png", 404),
        ("/pictures/%00", 404),
        ("/users/%27%20or%201=1", 404),
        ("/static/..%2f..%2fapp.py", 404),
        ("/static/%2e%2e/app.py", 404),
        ("/items?limit=-1", 422),
        ("/items?limit=101", 422),
        ("/items?limit=NaN", 422),
        ("/items?offset=99999999999999999999999", 422),
        ("/items?offset=1000000000", 200),
        ("/items?query=" + "x" * 201, 422),
        ("/items?query=%ff%00%5B%28%2A", 200),
        ("/items?domain=%ff", 422),
        ("/users?offset=1e9", 422),
        ("/users?offset=999999999", 200),
        ("//evil.example/items", 404),
    ],
)
def test_path_gets_its_status(send, path, status):
    assert send("GET", path) == status


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_method_not_of_the_route_is_refused(send, method):
    assert send(method, "/recommend", b"{}") == 405


@pytest.mark.slow
def test_openapi_generated_requests_conform(app, port):
    schema, statuses = schemathesis.openapi.from_dict(app.openapi()), set()

    def check(case):
        answer = case.call(base_url=f"http://127.0.0.1:{port}", timeout=30)
        statuses.add((case.operation.label, answer.status_code))
        assert answer.status_code < 500
        if answer.status_code >= 400:
            assert re.fullmatch(r"[^\n]+", json.loads(answer.content)["error"])
        if answer.status_code != 405:  # of methods that are not in the description
            case.validate_response(answer, checks=CHECKS)

    limits = settings(
        max_examples=20,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for result in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            with suppress(Unsatisfiable):  # a route without parameters has no invalid requests
                limits(given(case=result.ok().as_strategy(generation_mode=mode))(check))()
    assert {label for label, _ in statuses} == {result.ok().label for result in schema.get_all_operations()}
    assert {
        ("GET /items", 200),
        ("GET /items", 422),
        ("POST /recommend", 422),
        ("POST /explain", 404),
    } <= statuses
