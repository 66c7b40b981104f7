"""Events that callers post: they extend the history of a user, in memory and in a real Redis server."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from urllib.request import Request, urlopen

import pytest
from starlette.testclient import TestClient

from hafvt.errors import HafvtError
from hafvt.server import history_store
from hafvt.server.app import create_app
from hafvt.server.history_store import Event, MemoryHistoryStore, open_history_store
from hafvt.server.manager import ModelSource
from hafvt.server.serve import serve
from tests.ports import free_port
from tests.server.redis_server import run_redis

OLD, NEW = "2017-01-01", 1_700_000_000  # before and after the interactions of the dataset


@pytest.fixture(scope="module")
def redis_url():
    with run_redis() as url:
        yield url


@pytest.fixture(params=["memory", "redis"])
def store_url(request):
    return "memory" if request.param == "memory" else request.getfixturevalue("redis_url")


@pytest.fixture
def client(served_run, store_url):
    app = create_app(ModelSource(served_run), history_store=open_history_store(store_url))
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def recommend(client, **body):
    answer = client.post("/recommend", json={"domain": "d0", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


def post(client, user_id, items, **fields):
    answer = client.post("/events", json={"user_id": user_id, "items": items, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_events_of_a_new_user_are_the_history(client):
    missing = client.post("/recommend", json={"user_id": "new 1", "domain": "d0"})
    assert (missing.status_code, "post events" in missing.json()["error"]) == (404, True)
    assert post(client, "new 1", ["i3", "?"]) == {"num_events": 2, "unknown_ids": ["?"]}
    assert post(client, "new 1", [41]) == {"num_events": 3, "unknown_ids": ["41"]}
    post(client, "new 1", ["i41"])
    assert recommend(client, user_id="new 1") == recommend(client, history=["i3", "?", "41", "i41"])
    explained = client.post("/explain", json={"user_id": "new 1", "item": "i5"}).json()
    assert [item["item_id"] for item in explained["history"]] == ["i3", "i41"]
    shown = client.get("/users/new 1").json()
    assert [item["item_id"] for item in shown["history"]] == ["i3", "i41"]
    assert shown["targets"] == []


def test_events_follow_the_interactions_of_the_dataset(client):
    before = client.get("/users/u1").json()
    history = [item["item_id"] for item in before["history"]]
    assert post(client, "u1", ["i9"], time=OLD)["num_events"] == 0  # the dataset has what is that old
    assert client.get("/users/u1").json() == before
    assert post(client, "u1", ["i9", "i44"], time=NEW)["num_events"] == 2
    after = client.get("/users/u1").json()
    assert [item["item_id"] for item in after["history"]] == [*history, "i9", "i44"]
    assert after["targets"] == before["targets"]
    assert recommend(client, user_id="u1") == recommend(client, history=[*history, "i9", "i44"])


def test_events_beyond_the_limit_replace_the_oldest(client):
    for first in range(0, 1200, 300):
        answer = post(client, "many", [f"x{n}" for n in range(first, first + 300)])
    assert answer["num_events"] == 1000
    unknown = recommend(client, user_id="many")["unknown_ids"]
    assert (unknown[0], unknown[-1], len(unknown)) == ("x200", "x1199", 1000)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"user_id": "u1"}, "items is missing"),
        ({"items": ["i3"]}, "user_id is missing"),
        ({"user_id": "u1", "items": []}, "items is too short: give a length of at least 1"),
        ({"user_id": "u1", "items": ["i3"] * 1001}, "items is too long: give a length of at most 1000"),
        ({"user_id": "u" * 257, "items": ["i3"]}, "user_id is too long"),
        ({"user_id": "  ", "items": ["i3"]}, "user_id is wrong"),
        ({"user_id": "u1", "items": ["x" * 257]}, "items.0 is too long"),
        ({"user_id": "u1", "items": [1.5]}, "items.0 is wrong"),
        ({"user_id": "u1", "items": ["i3"], "time": 2024}, "time is wrong"),
        ({"user_id": "u1", "items": ["i3"], "more": 1}, "more is no field of this request"),
    ],
)
def test_wrong_events_are_refused_by_name(client, body, message):
    answer = client.post("/events", json=body)
    assert answer.status_code == 422
    assert message in answer.json()["error"]


def test_events_need_the_api_key(served_run):
    with TestClient(create_app(ModelSource(served_run), api_key="key")) as client:
        body = {"user_id": "u1", "items": ["i3"]}
        assert client.post("/events", json=body).status_code == 401
        assert client.post("/events", json=body, headers={"X-API-Key": "key"}).status_code == 200


def test_servers_with_one_redis_share_events_and_say_when_it_is_gone(served_run, caplog):
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    stores = [open_history_store(url) for _ in range(2)]
    apps = [create_app(ModelSource(served_run), history_store=store) for store in stores]
    with TestClient(apps[0]) as first, TestClient(apps[1]) as second:
        with run_redis(port):
            post(first, "shared", ["i3", "i41"])
            assert recommend(second, user_id="shared") == recommend(second, history=["i3", "i41"])
        for path in ("/recommend", "/events"):
            body = {"user_id": "u1", **({"items": ["i3"]} if path == "/events" else {"domain": "d0"})}
            answer = second.post(path, json=body)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"].startswith("the history store does not answer: try again soon")
        assert recommend(second, history=["i3"])["items"]
        assert "the history store failed: " in caplog.text
        with run_redis(port):
            assert post(second, "shared", ["i3"])["num_events"] == 1


def test_redis_entries_that_others_wrote_are_skipped(redis_url):
    import redis

    key = history_store.KEY_PREFIX + "odd"
    with redis.Redis.from_url(redis_url) as other:
        other.rpush(key, "i3", "x i3", "1 ", b"\xff\xfe", "9" * 30 + " i3", "5 " + "x" * 257, "7 a b\n")
        other.set(history_store.KEY_PREFIX + "text", "i3")

    async def read():
        store = open_history_store(redis_url)
        assert await store.get("odd") == [Event("a b\n", 7)]
        with pytest.raises(Exception, match="does not answer"):
            await store.get("text")
        await store.close()

    asyncio.run(read())


@pytest.mark.slow
def test_serve_with_redis_stores_events(served_run, redis_url):
    command = [sys.executable, "-m", "hafvt", "serve", str(served_run), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "HAFVT_API_KEY"}
    command += ["--history-store", redis_url]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        address = next(re.findall(r"http://\S+", line)[0] for line in server.stderr if "http://" in line)
        for path, body in (("events", {"items": ["i3"]}), ("recommend", {"domain": "d0"})):
            data = json.dumps({"user_id": "by serve", **body}).encode()
            request = Request(f"{address}/{path}", data, {"Content-Type": "application/json"})
            with urlopen(request) as answer:
                assert answer.status == 200
        server.terminate()
        assert server.wait(60) == 0


def test_memory_store_forgets_the_least_recently_active_users():
    async def fill():
        store = MemoryHistoryStore(max_bytes=300_000)
        for number in range(1000):
            await store.append("active", [Event("i1", 1)])
            await store.append(f"u{number}", [Event("x" * 256, 1)] * 3)
            assert store.num_bytes <= 300_000
        assert len(await store.get("active")) > 900
        assert await store.get("u0") == []
        assert len(await store.get("u999")) == 3

    asyncio.run(fill())


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("disk", "give memory, or redis://HOST:PORT/0"),
        ("http://127.0.0.1", "give memory, or redis://HOST:PORT/0"),
        ("redis://me:secret@127.0.0.1:x/0", "give it as redis://HOST:PORT/0"),
        (
            "redis://me:secret@127.0.0.1:1/0",
            r"redis://127.0.0.1:1/0 cannot be used \(.*\): check its address",
        ),
        ("valkey://127.0.0.1:1", r"valkey://127.0.0.1:1 cannot be used"),
    ],
)
def test_serve_with_a_wrong_store_is_refused_without_its_password(served_run, url, message, monkeypatch):
    pytest.importorskip("redis", reason="the client needs the extra redis")
    with pytest.raises(HafvtError, match=message) as raised:
        serve(served_run, port=0, history_store=url)
    assert "secret" not in str(raised.value)
    monkeypatch.setitem(os.environ, "HAFVT_HISTORY_STORE", url)
    with pytest.raises(HafvtError, match=message):
        serve(served_run, port=0)
