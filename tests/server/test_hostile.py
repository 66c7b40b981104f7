"""Whatever is sent, the answer is a clear refusal and never a crash."""

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
from tests.served import running, wait_until

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
GOOD = {"history": ["i3"], "domain": "d0"}


@pytest.fixture(scope="module")
def app(served_run):
    return create_app(ModelSource(served_run))


@pytest.fixture(scope="module")
def port(app):
    with running(app) as port:
        wait_until(lambda: app.state.models.live)
        yield port


@pytest.fixture
def ask(port):
    """Returns a function that sends a request and returns status and JSON."""

    def ask(method, path, body=None, headers=JSON):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status >= 400:
            assert set(told) == {"error"}
            assert "\n" not in told["error"]
            assert len(told["error"]) < 500
        return answer.status, told

    return ask


def changed(**fields):
    return json.dumps({**GOOD, **fields}).encode()


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
        (b'{"history": ["\\ud800"], "domain": "d0"}', 422),
        (b'{"history": [], "domain": "d0", "\\ud800": 1}', 422),
        (b'{"history": [], "domain": "x", "domain": "d0"}', 200),
        (changed(history=["x" * 257]), 422),
        (changed(history=["x"] * 10_001), 422),
        (changed(history=["x"] * 10_000), 200),
        (changed(history=["i3"] * 10_000), 200),
        (changed(history="i3"), 422),
        (changed(history=[3]), 422),
        (changed(history=[["i3"]]), 422),
        (changed(history={"0": "i3"}), 422),
        (changed(history=["<script>", "../../etc/passwd", "\0", "%s", "i3\n"]), 200),
        (changed(k=0), 422),
        (changed(k=101), 422),
        (changed(k="10"), 422),
        (changed(k=True), 422),
        (changed(k=10**30), 422),
        (changed(seen="yes"), 422),
        (changed(domain="d" * 300), 422),
        (changed(domain="<b>"), 422),
        (changed(domain=None), 422),
        (changed(exclude=["x"] * 10_001), 422),
        (changed(more=1), 422),
        (json.dumps(["x"] * 100_000).encode(), 422),
        (b'{"history": [' + b"1," * 400_000 + b'1], "domain": "d0"}', 422),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies(ask, body, status):
    assert ask("POST", "/recommend", body)[0] == status


def test_bodies_too_large_with_and_without_their_length(ask):
    ten = b"x" * 10_000_000
    assert ask("POST", "/recommend", ten)[0] == 413
    assert ask("POST", "/explain", (ten[:100_000] for _ in range(100)))[0] == 413
    long = json.dumps({"history": [f"item-{n:020}" for n in range(100_000)], "domain": "d0"}).encode()
    assert ask("POST", "/recommend", long)[0] == 413
    assert ask("POST", "/nothing", ten)[0] == 413


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_types_of_body(ask, kind):
    assert ask("POST", "/recommend", changed(), {"Content-Type": kind} if kind else {})[0] == 415


def test_a_type_with_a_charset_is_json_too(ask):
    assert ask("POST", "/recommend", changed(), {"Content-Type": "Application/JSON; charset=utf-8"})[0] == 200


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
        ("/people/%27%20or%201=1", 404),
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
        ("/people?offset=1e9", 422),
        ("/people?offset=999999999", 200),
        ("//evil.example/items", 404),
    ],
)
def test_addresses(ask, path, status):
    assert ask("GET", path)[0] == status


@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH", "TRACE", "OPTIONS"])
def test_methods(ask, method):
    assert ask(method, "/recommend", b"{}")[0] == 405


def test_whatever_the_description_lets_one_think_of(app, port):
    schema, seen = schemathesis.openapi.from_dict(app.openapi()), set()

    def check(case):
        answer = case.call(base_url=f"http://127.0.0.1:{port}", timeout=30)
        seen.add((case.operation.label, answer.status_code))
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
    for found in schema.get_all_operations():
        for mode in schemathesis.GenerationMode:
            with suppress(Unsatisfiable):  # where nothing is given, nothing can be given wrongly
                limits(given(case=found.ok().as_strategy(generation_mode=mode))(check))()
    assert {label for label, _ in seen} == {found.ok().label for found in schema.get_all_operations()}
    assert {
        ("GET /items", 200),
        ("GET /items", 422),
        ("POST /recommend", 422),
        ("POST /explain", 404),
    } <= seen
