"""Routes: their answers are those of the recommender, and refusals are one line of JSON."""

from __future__ import annotations

import json
import re
import threading
from functools import partial
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hafvt.inference.recommender import Recommender
from hafvt.server import app
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from tests.served import ODD_ID

HISTORY = ["i3", "?", "i41", ODD_ID]


def client_of(run, **settings):
    """Returns a client of an application."""
    return TestClient(create_app(ModelSource(run), **settings), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(served_run):
    with client_of(served_run) as client:
        yield client


@pytest.fixture(scope="module")
def recommender(served_run):
    return Recommender.open(served_run)


def test_model_routes_describe_the_model(client):
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    assert re.match(r"\d{4}-\d\d-\d\dT", ready.pop("loaded_at"))
    assert ready == {"status": "ready", "model": "hafvt", "domains": ["d0", "d1"], "num_items": 50}
    described = client.get("/model").json()
    assert re.fullmatch(r"[0-9a-f]{16}", described.pop("version"))
    assert described == {
        "name": "hafvt",
        "models": ["hafvt"],
        "attributes": ["brand", "price"],
        "domains": [{"name": "d0", "num_items": 30}, {"name": "d1", "num_items": 20}],
        "sequences": ["d0", "d1", "all domains"],
        "modalities": ["id", "image", "title"],
        "max_length": 50,
        "can_explain": True,
        "has_users": True,
        "has_vectors": True,
        "policies": [],
    }


def test_recommend_returns_the_recommenders_items(client, recommender):
    for domain, exclude_seen in (("d0", True), ("d1", False)):
        options = {"exclude": ["i5", "i33"], "exclude_seen": exclude_seen}
        answer = client.post(
            "/recommend", json={"history": HISTORY, "domain": domain, "k": 7, **options}
        ).json()
        (expected,) = recommender.recommend(
            [HISTORY], domain, 7, exclude=[["i5", "i33"]], exclude_seen=exclude_seen
        )
        assert [(item["item_id"], item["score"]) for item in answer["items"]] == [
            (scored.item.item_id, pytest.approx(scored.score, abs=1e-6)) for scored in expected.items
        ]
        assert (answer["ranked_by"], answer["unknown_ids"]) == ("model", ["?"])
        assert set(answer["items"][0]) == {
            *("item_id", "title", "domain", "picture", "train_count", "attributes", "score")
        }


def test_recommend_and_explain_at_a_time_are_those_of_the_recommender(client, recommender):
    for time in ("2018-01-10", "2018-01-10T00:00:00Z", 1_515_542_400):
        body = {"history": HISTORY, "domain": "d0", "include_shares": True, "time": time}
        items = client.post("/recommend", json=body).json()["items"]
        expected = recommender.recommend([HISTORY], "d0", time="2018-01-10")[0].items
        assert [item["score"] for item in items] == [pytest.approx(one.score, abs=1e-6) for one in expected]
        explanation = client.post("/explain", json={"history": HISTORY, "item": "i5", "time": time}).json()
        assert explanation["score"] == pytest.approx(recommender.explain(HISTORY, "i5", time=time).score)
        (best,) = recommender.recommend([HISTORY], "d0", 1, time=time)
        shares = recommender.explain(HISTORY, best.items[0].item.item_id, time=time).shares
        assert items[0]["shares"]["d0"]["id"] == pytest.approx(shares["d0", "id"], abs=1e-5)


def test_recommend_numbers_are_ids_and_unknown_excluded_ids_are_reported(client):
    body = {"history": ["i3", 7], "domain": "d0", "exclude": ["i5", 12, "nothing"]}
    answer = client.post("/recommend", json=body).json()
    assert (answer["unknown_ids"], answer["unknown_excluded_ids"]) == (["7"], ["12", "nothing"])


def test_recommend_field_named_twice_is_refused_by_name(client):
    body = b'{"history": [], "domain": "d0", "exclude": [], "exclude": ["i3"]}'
    answer = client.post("/recommend", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "'exclude' twice" in answer.json()["error"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 1000}, "k is too large: give at most 100"),
        ({"k": 0}, "k is too small: give at least 1"),
        ({"k": "x"}, "k is no whole number: give one"),
        ({"domain": None}, "domain is wrong: "),
        ({"exclude_seen": 3}, "exclude_seen is neither true nor false"),
        ({"history": "i3"}, "history is no list: give one"),
        ({"history": ["i3", 1.5]}, "history.1 is wrong: an id cannot be of type float"),
        ({"history": ["i3"] * 10_001}, "history is too long: give a length of at most 10000"),
        (
            {"time": 2024},
            "time is wrong: '2024' is no time of a request: give a date of 1973 to 2096 such as 2026-12-24",
        ),
        ({"time": "01/02/2025"}, "time is wrong: '01/02/2025' may begin with the day or the month: write"),
        ({"time": [1_515_542_400]}, "time is wrong: '[1515542400]' is no time of a request"),
        ({"other": 1}, "other is no field of this request: leave it out"),
    ],
)
def test_recommend_wrong_field_is_named_with_the_remedy(client, change, message):
    answer = client.post("/recommend", json={"history": ["i3"], "domain": "d0", **change})
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(message)
    assert answer.json()["error"].endswith("; /openapi.json describes the requests")


def test_recommend_missing_field_and_other_bodies_are_explained(client):
    send = partial(client.post, "/recommend", headers={"Content-Type": "application/json"})
    assert send(content=b'{"history": []}').json()["error"].startswith("domain is missing: give it")
    neither = send(content=b'{"domain": "d0"}').json()["error"]
    assert neither.startswith("the body is wrong: history and user_id are missing: give one of them")
    both = send(content=b'{"domain": "d0", "history": [], "user_id": "u1"}').json()["error"]
    assert both.startswith("the body is wrong: it has both history and user_id: give one of them")
    assert send(content=b"[]").json()["error"].startswith("the body is no object: send one in JSON")
    assert send(content=b"{").json()["error"].startswith("the body is not JSON (")
    assert client.get("/items?limit=x").json()["error"].startswith("limit is no whole number: give one")


def test_method_and_address_are_refused_before_the_body(client):
    for method, path, status in (("POST", "/users", 405), ("DELETE", "/recommend", 405), ("POST", "/x", 404)):
        assert client.request(method, path, content=b"x" * 2_000_000).status_code == status
    assert client.post("/recommend", content=b"{}").status_code == 415


def test_recommend_unknown_history_ranks_by_popularity(client):
    body = {"history": ["?"], "domain": "d0", "include_shares": True}
    answer = client.post("/recommend", json=body).json()
    assert (answer["ranked_by"], len(answer["items"])) == ("popularity", 10)
    assert "shares" not in answer["items"][0]


def test_recommend_concurrent_requests_get_their_own_answers(client, recommender):
    bodies = [
        {"history": [f"i{n}"], "domain": "d0", "k": 1 + n % 5, "exclude": ["i9"]} for n in range(10, 28)
    ]
    answers = [None] * len(bodies)

    def request(n):
        answers[n] = client.post("/recommend", json=bodies[n]).json()["items"]

    threads = [threading.Thread(target=request, args=(n,)) for n in range(len(bodies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for body, items in zip(bodies, answers, strict=True):
        (expected,) = recommender.recommend([body["history"]], "d0", body["k"], exclude=[["i9"]])
        assert [item["item_id"] for item in items] == [scored.item.item_id for scored in expected.items]


def test_explain_agrees_with_shares_of_recommend(client, recommender):
    body = {"history": HISTORY, "domain": "d0", "k": 3, "include_shares": True}
    first = client.post("/recommend", json=body).json()["items"][0]
    answer = client.post("/explain", json={"history": HISTORY, "item": first["item_id"]}).json()
    assert answer["rank"] >= 1
    assert answer["score"] == pytest.approx(first["score"], abs=1e-5)
    assert [item["item_id"] for item in answer["history"]] == ["i3", "i41", ODD_ID]
    assert answer["unknown_ids"] == ["?"]
    expected = recommender.explain(HISTORY, first["item_id"])
    total = 0.0
    for (sequence, modality), share in expected.shares.items():
        assert answer["shares"][sequence][modality] == pytest.approx(share, abs=1e-5)
        assert first["shares"][sequence][modality] == pytest.approx(share, abs=1e-5)
        weights = answer["attention"][sequence][modality]
        assert weights == pytest.approx(expected.attention[sequence, modality], abs=1e-5)
        total += answer["shares"][sequence][modality]
    assert total == pytest.approx(1, abs=1e-5)
    weights = [
        sum(expected.shares[branch] * expected.attention[branch][slot] for branch in expected.shares)
        for slot in range(3)
    ]
    reason = first["reason"]
    assert reason["share"] == pytest.approx(max(weights), abs=1e-5)
    assert reason["item_id"] == answer["history"][weights.index(max(weights))]["item_id"]


def test_explain_unknown_item_or_history_is_refused(client):
    assert client.post("/explain", json={"history": HISTORY, "item": "?"}).status_code == 404
    assert client.post("/explain", json={"history": ["?"], "item": "i3"}).status_code == 422


def test_explain_model_without_explanations_is_refused(sasrec_run):
    with client_of(sasrec_run) as client:
        assert client.get("/model").json()["can_explain"] is False
        answer = client.post("/explain", json={"history": ["i3"], "item": "i4"})
        assert answer.status_code == 422
        assert answer.json()["error"].startswith("sasrec cannot explain")
        body = {"history": ["i3"], "domain": "d0", "include_shares": True}
        assert "shares" not in client.post("/recommend", json=body).json()["items"][0]


def test_recommend_and_explain_user_has_the_users_history(client):
    history = [item["item_id"] for item in client.get("/users/u1").json()["history"]]
    requests = {"/recommend": {"domain": "d0", "k": 5}, "/explain": {"item": "i3"}}
    for path, fields in requests.items():
        answer = client.post(path, json={"user_id": "u1", **fields})
        assert answer.status_code == 200
        assert answer.json() == client.post(path, json={"history": history, **fields}).json()
    answer = client.post("/recommend", json={"user_id": "nobody", "domain": "d0"})
    assert (answer.status_code, "no such user: send a history" in answer.json()["error"]) == (404, True)


def test_metrics_label_requests_by_route_pattern(client):
    client.get("/items/anything/at/all")
    client.get("/no/such/thing")
    text = client.get("/metrics").text
    assert re.search(r'requests_total\{route="/items/\{item_id\}",status="404"\} \d+', text)
    assert "anything" not in text
    assert "/no/such" not in text
    assert "hafvt_items 50.0" in text
    assert "hafvt_ready 1.0" in text


def test_answers_have_security_headers(client):
    for path in ("/health", "/ready", "/no/such", "/items/x", "/pictures/i0", "/openapi.json", "/"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "cache-control" in headers


def test_openapi_needs_no_other_host(client):
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    text = client.get("/openapi.json").text
    assert json.loads(text)["info"]["version"] == "2"
    assert "http://" not in text
    assert "https://" not in text


def test_documentation_names_every_route_and_field(client):
    text = (Path(__file__).parents[2] / "docs" / "reference" / "http.md").read_text(encoding="utf-8")
    description = client.get("/openapi.json").json()
    for path, methods in description["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}" in text
    for name, schema in description["components"]["schemas"].items():
        if name.endswith(("Request", "Response", "Page")):
            for field in schema["properties"]:
                assert f"{field}`" in text or f'"{field}"' in text, f"{name}.{field}"


def test_documentation_example_adds_a_route(served_run, monkeypatch):
    text = (Path(__file__).parents[2] / "docs" / "how-to" / "extend.md").read_text(encoding="utf-8")
    namespace = {}
    exec(re.search(r"```python\n(.*?)```", text.partition("## A new route\n")[2], re.DOTALL)[1], namespace)
    monkeypatch.setattr(app, "ROUTERS", (*app.ROUTERS, namespace["router"]))
    with client_of(served_run) as client:
        assert client.get("/domains").json() == ["d0", "d1"]


def test_api_key_protects_all_but_health_and_page(served_run):
    with client_of(served_run, api_key="right-key") as client:
        assert client.get("/health").status_code == 200
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"X-API-Key": ""},
            {"Authorization": "Bearer right-ke"},
            {"Authorization": "right-key"},
            {"Authorization": b"Bearer \xff"},
        ):
            for path in ("/ready", "/items", "/metrics", "/openapi.json", "/pictures/i0", "/no/such"):
                answer = client.get(path, headers=headers)
                assert answer.status_code == 401
                assert "API key" in answer.json()["error"]
        for headers in ({"X-API-Key": "right-key"}, {"Authorization": "bearer right-key"}):
            assert client.get("/ready", headers=headers).status_code == 200


def test_allowed_hosts_refuse_other_host_names(served_run):
    with client_of(served_run, allowed_hosts=("localhost", "[::1]")) as client:
        for host in ("localhost", "LOCALHOST:8000", "[::1]:80"):
            assert client.get("/ready", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "localhost:80:evil"):
            for path in ("/ready", "/", "/health"):
                assert client.get(path, headers={"Host": host}).status_code == 421


def test_cors_allows_named_origins_only(client, served_run):
    request = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.get("/ready", headers=request).headers
    with client_of(served_run, api_key="k", cors_origins=("https://shop.example",)) as client:
        preflight = client.options("/recommend", headers=request)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
        allowed = client.get("/ready", headers={**request, "X-API-Key": "k"})
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        other = client.get("/ready", headers={"Origin": "https://evil.example", "X-API-Key": "k"})
        assert "access-control-allow-origin" not in other.headers


def test_recommend_full_queue_or_timeout_is_refused(served_run):
    body = {"history": ["i3"], "domain": "d0"}
    with client_of(served_run, queue_size=0) as client:
        refusal = client.post("/recommend", json=body)
        assert (refusal.status_code, refusal.headers["retry-after"]) == (429, "1")
    with client_of(served_run, timeout=1e-9) as client:
        assert client.post("/recommend", json=body).status_code == 504


def test_recommend_crash_is_logged_and_hides_its_cause(client, monkeypatch, caplog):
    monkeypatch.setattr(Recommender, "recommend", lambda *_, **__: 1 / 0)
    answer = client.post("/recommend", json={"history": ["i3"], "domain": "d0"})
    assert answer.status_code == 500
    assert "log" in answer.json()["error"]
    assert "division" not in answer.text
    assert "division by zero" in caplog.text


def test_recommend_json_has_no_nan(client):
    text = client.post("/recommend", json={"history": ["i3"], "domain": "d0", "k": 100}).text
    json.loads(text, parse_constant=pytest.fail)
