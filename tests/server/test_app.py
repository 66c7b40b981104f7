"""The routes give what the recommender gives, and refuse in one line of JSON."""

from __future__ import annotations

import json
import re
import threading
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.testclient import TestClient

from hafvt.inference.recommender import Recommender
from hafvt.server import app as module
from hafvt.server.app import Settings, create_app
from hafvt.server.manager import ModelSource
from tests.served import ODD, wait_until

HISTORY = ["i3", "?", "i41", ODD]


def serving(run, settings=None):
    """Returns a client of an application whose model is loaded, to be used in a `with`."""

    class Ready(TestClient):
        def __enter__(self):
            super().__enter__()
            wait_until(lambda: self.app.state.models.live or self.app.state.models.problem)
            return self

    return Ready(create_app(ModelSource(run), settings), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(served_run):
    with serving(served_run) as client:
        yield client


@pytest.fixture(scope="module")
def recommender(served_run):
    return Recommender.open(served_run)


def test_what_is_served(client):
    assert client.get("/health").json() == {"status": "ok"}
    ready = client.get("/ready").json()
    assert re.match(r"\d{4}-\d\d-\d\dT", ready.pop("loaded"))
    assert ready == {"status": "ready", "model": "hafvt", "domains": ["d0", "d1"], "items": 50}
    assert client.get("/model").json() == {
        "name": "hafvt",
        "domains": [{"name": "d0", "items": 30}, {"name": "d1", "items": 20}],
        "sequences": ["d0", "d1", "all domains"],
        "modalities": ["id", "image", "title"],
        "max_length": 50,
        "explains": True,
        "people": True,
    }


def test_recommendations_are_the_recommenders(client, recommender):
    for domain, seen in (("d0", False), ("d1", True)):
        body = {"history": HISTORY, "domain": domain, "k": 7, "exclude": ["i5", "i33"], "seen": seen}
        got = client.post("/recommend", json=body).json()
        (answer,) = recommender.recommend(
            [HISTORY], domain, 7, exclude=[["i5", "i33"]], exclude_seen=not seen
        )
        assert [(one["item_id"], one["score"]) for one in got["items"]] == [
            (one.item.item_id, pytest.approx(one.score, abs=1e-6)) for one in answer.items
        ]
        assert (got["by"], got["unknown"]) == ("model", ["?"])
        assert set(got["items"][0]) == {"item_id", "title", "domain", "picture", "train_count", "score"}
    empty = client.post("/recommend", json={"history": ["?"], "domain": "d0", "shares": True}).json()
    assert (empty["by"], len(empty["items"])) == ("popularity", 10)
    assert "shares" not in empty["items"][0]


def test_requests_together_get_each_its_own(client, recommender):
    asked = [{"history": [f"i{n}"], "domain": "d0", "k": 1 + n % 5, "exclude": ["i9"]} for n in range(10, 28)]
    got = [None] * len(asked)

    def ask(n):
        got[n] = client.post("/recommend", json=asked[n]).json()["items"]

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for body, items in zip(asked, got, strict=True):
        (answer,) = recommender.recommend([body["history"]], "d0", body["k"], exclude=[["i9"]])
        assert [one["item_id"] for one in items] == [one.item.item_id for one in answer.items]


def test_shares_and_explanations_agree(client, recommender):
    got = client.post("/recommend", json={"history": HISTORY, "domain": "d0", "k": 3, "shares": True}).json()
    first = got["items"][0]
    told = client.post("/explain", json={"history": HISTORY, "item": first["item_id"]}).json()
    assert told["rank"] >= 1
    assert told["score"] == pytest.approx(first["score"], abs=1e-5)
    assert [item["item_id"] for item in told["history"]] == ["i3", "i41", ODD]
    assert told["unknown"] == ["?"]
    assert sum(share["share"] for share in told["shares"]) == pytest.approx(1, abs=1e-5)
    for share in told["shares"]:
        of_first = first["shares"][share["sequence"]][share["modality"]]
        assert of_first == pytest.approx(share["share"], abs=1e-5)
    expected = recommender.explain(HISTORY, first["item_id"]).attention
    for one in told["attention"]:
        assert one["weights"] == pytest.approx(expected[one["sequence"], one["modality"]], abs=1e-5)
    assert client.post("/explain", json={"history": HISTORY, "item": "?"}).status_code == 404
    assert client.post("/explain", json={"history": ["?"], "item": "i3"}).status_code == 422


def test_a_model_that_cannot_explain_says_so(other_run):
    with serving(other_run) as client:
        assert client.get("/model").json()["explains"] is False
        refused = client.post("/explain", json={"history": ["i3"], "item": "i4"})
        assert refused.status_code == 422
        assert "sasrec cannot explain" in refused.json()["error"]
        body = {"history": ["i3"], "domain": "d0", "shares": True}
        assert "shares" not in client.post("/recommend", json=body).json()["items"][0]


def test_items_and_their_search(client):
    found = client.get("/items", params={"query": "STÁR w"}).json()
    assert {item["item_id"] for item in found["items"]} == {"i3", "i5"}
    assert found["total"] == 2
    everything = client.get("/items", params={"domain": "d1", "limit": 5, "offset": 2}).json()
    assert (len(everything["items"]), everything["total"]) == (5, 20)
    met = [item["train_count"] for item in client.get("/items").json()["items"]]
    assert met == sorted(met, reverse=True)
    odd = client.get(f"/items/{quote(ODD, safe='')}").json()
    assert (odd["item_id"], odd["picture"]) == (ODD, None)
    assert client.get("/items/i1").json()["title"] == "<script>alert(1)</script>"
    assert client.get("/items/nothing").status_code == 404
    assert client.get("/items", params={"domain": "d7"}).json()["error"].startswith("no domain 'd7'")


def test_pictures_come_from_the_catalog_alone(client):
    got = client.get(client.get("/items/i0").json()["picture"], params={"side": 320})
    with Image.open(BytesIO(got.content)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 320)
    assert got.headers["content-type"] == "image/jpeg"
    assert "max-age" in got.headers["cache-control"]
    again = client.get("/pictures/i0?side=320", headers={"If-None-Match": got.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    for item in ("i1", "i2", "i3", "i4", "i9", "nothing", "red.png", "..%2fsecret.png"):
        assert client.get(f"/pictures/{item}").status_code == 404
    assert client.get("/pictures/i0?side=100000").status_code == 422


def test_people_and_what_they_met(client, served_data):
    people = client.get("/people", params={"limit": 3, "offset": 1}).json()
    assert [person["user_id"] for person in people["people"]] == ["u1", "u2", "u3"]
    assert people["total"] == 40
    history = client.get("/people/u1").json()["history"]
    start, stop = served_data.offsets[1:3]
    met = served_data.item_table["item_id"].gather(served_data.items[start:stop]).to_list()
    assert [item["item_id"] for item in history] == met
    assert people["people"][0]["history"] == history[-12:]
    pictures = {item["item_id"]: item["picture"] for person in people["people"] for item in person["history"]}
    assert None in pictures.values()  # the page asks for none of those
    assert client.get("/people/nobody").status_code == 404


def test_everything_is_counted_under_few_names(client):
    client.get("/items/anything/at/all")
    client.get("/no/such/thing")
    text = client.get("/metrics").text
    assert re.search(r'requests_total\{route="/items/\{item_id\}",status="404"\} \d+', text)
    assert "anything" not in text
    assert "/no/such" not in text
    assert re.search(r"^hafvt_resident_memory_bytes \d{7,}$", text, re.MULTILINE)
    assert "hafvt_items 50" in text


def test_every_answer_is_strict_about_what_a_browser_may_do(client):
    for path in ("/health", "/ready", "/no/such", "/items/x", "/pictures/i0", "/openapi.json", "/"):
        headers = client.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert "cache-control" in headers


def test_the_description_needs_no_other_host(client):
    assert client.get("/docs").status_code == client.get("/redoc").status_code == 404
    text = client.get("/openapi.json").text
    assert "http://" not in text
    assert "https://" not in text


def test_the_documentation_knows_every_route(client):
    text = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for path, methods in client.get("/openapi.json").json()["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}" in text


def test_the_page_and_nothing_beside_it(served_run, tmp_path, monkeypatch):
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "index.html").write_text("<p>page")
    (folder / "app.js").write_text("1")
    (tmp_path / "secret").write_text("2")
    monkeypatch.setattr(module, "STATIC", folder)
    with serving(served_run, Settings(api_key="k")) as client:
        page = client.get("/")
        assert (page.text, page.headers["cache-control"]) == ("<p>page", "no-cache")
        assert page.headers["content-type"].startswith("text/html")
        assert client.get("/static/app.js").headers["content-type"].startswith("text/javascript")
        for path in ("/static/../secret", "/static/%2e%2e/secret", "/static/", "/static/none"):
            assert client.get(path).status_code in (401, 404)


def test_an_api_key_opens_all_but_health_and_page(served_run):
    with serving(served_run, Settings(api_key="right-key")) as client:
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
                refused = client.get(path, headers=headers)
                assert refused.status_code == 401
                assert "API key" in refused.json()["error"]
        for headers in ({"X-API-Key": "right-key"}, {"Authorization": "bearer right-key"}):
            assert client.get("/ready", headers=headers).status_code == 200


def test_at_loopback_it_answers_as_localhost_alone(served_run):
    with serving(served_run, Settings(hosts=("localhost", "[::1]"))) as client:
        for host in ("localhost", "LOCALHOST:8000", "[::1]:80"):
            assert client.get("/ready", headers={"Host": host}).status_code == 200
        for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "localhost:80:evil"):
            for path in ("/ready", "/", "/health"):
                assert client.get(path, headers={"Host": host}).status_code == 421


def test_other_origins_are_let_in_by_name_only(client, served_run):
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client.get("/ready", headers=asked).headers
    with serving(served_run, Settings(api_key="k", cors_origins=("https://shop.example",))) as client:
        before = client.options("/recommend", headers=asked)
        assert before.status_code == 200
        assert before.headers["access-control-allow-origin"] == "https://shop.example"
        allowed = client.get("/ready", headers={**asked, "X-API-Key": "k"})
        assert allowed.headers["access-control-allow-origin"] == "https://shop.example"
        other = client.get("/ready", headers={"Origin": "https://evil.example", "X-API-Key": "k"})
        assert "access-control-allow-origin" not in other.headers


def test_too_many_and_too_slow(served_run):
    body = {"history": ["i3"], "domain": "d0"}
    with serving(served_run, Settings(queue=0)) as client:
        refused = client.post("/recommend", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    with serving(served_run, Settings(timeout=1e-9)) as client:
        assert client.post("/recommend", json=body).status_code == 504


def test_a_crash_is_told_without_its_insides(served_run, monkeypatch, caplog):
    with serving(served_run) as client:
        monkeypatch.setattr(Recommender, "recommend", lambda *_, **__: 1 / 0)
        failed = client.post("/recommend", json={"history": ["i3"], "domain": "d0"})
        assert failed.status_code == 500
        assert "log" in failed.json()["error"]
        assert "division" not in failed.text
        assert "division by zero" in caplog.text


def test_the_recommender_cannot_say_nan(served_run):
    with serving(served_run) as client:
        text = client.post("/recommend", json={"history": ["i3"], "domain": "d0", "k": 100}).text
        json.loads(text, parse_constant=pytest.fail)
