"""What the page needs over HTTP: files, items, pictures, users, targets, similar items, several models."""

from __future__ import annotations

import re
from io import BytesIO
from urllib.parse import quote

import pytest
from PIL import Image
from starlette.testclient import TestClient

from hafvt.inference.recommender import Recommender
from hafvt.server import page_files
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from tests.served import ODD_ID
from tests.server.test_app import HISTORY, client_of


@pytest.fixture(scope="module")
def client(served_run):
    with client_of(served_run) as client:
        yield client


@pytest.fixture(scope="module")
def recommender(served_run):
    return Recommender.open(served_run)


def test_rank_of_an_item_is_its_place_in_the_whole_list(client):
    for exclude_seen in (True, False):
        body = {
            "history": HISTORY,
            "domain": "d1",
            "k": 100,
            "exclude": ["i33"],
            "exclude_seen": exclude_seen,
        }
        items = client.post("/recommend", json=body).json()["items"]
        for place in (0, 7, len(items) - 1):
            answer = client.post("/recommend", json=body | {"rank_of": items[place]["item_id"], "k": 1})
            assert answer.json()["rank"] == pytest.approx(place + 1, abs=1)  # ties count half
        for item in ("i33", "i1", "?"):
            assert client.post("/recommend", json=body | {"rank_of": item}).json()["rank"] is None
        assert "rank" not in client.post("/recommend", json=body).json()


def test_targets_of_a_user_are_the_test_targets(client, served_data):
    user = client.get("/users/u1").json()
    start, stop = served_data.offsets[1:3]
    positions = [position for position in served_data.test if start <= position < stop]
    assert [target["num_before"] for target in user["targets"]] == [
        position - start for position in positions
    ]
    for target in user["targets"]:
        assert target["item"] == user["history"][target["num_before"]]


def test_each_model_answers_by_its_name(served_run, sasrec_run):
    sources = [ModelSource(served_run), ModelSource(sasrec_run), ModelSource(sasrec_run)]
    with TestClient(create_app(*sources[:2])) as client:
        assert client.get("/model").json()["models"] == ["hafvt", "sasrec"]
        assert client.get("/model", params={"model": "sasrec"}).json()["can_explain"] is False
        body = {"history": ["i3", "i41"], "domain": "d0"}
        answers = {
            name: client.post("/recommend", params={"model": name}, json=body).json()
            for name in ("", "hafvt", "sasrec")
        }
        assert answers[""] == answers["hafvt"] != answers["sasrec"]
        assert answers["sasrec"]["model"] == "sasrec"
        refused = client.get("/items", params={"model": "mifn"})
        assert refused.status_code == 422
        assert refused.json()["error"] == "no model 'mifn': choose one of hafvt, sasrec"
    with TestClient(create_app(*sources)) as client:
        assert client.get("/model").json()["models"] == ["run", "sas 2", "sas 3"]


def test_similar_items_are_the_recommenders(client, recommender):
    (expected,) = recommender.similar_items(["i3"], 4, domain="d1")
    answer = client.get("/similar-items/i3", params={"k": 4, "domain": "d1"}).json()
    assert answer["item"]["item_id"] == "i3"
    for item, one in zip(answer["items"], expected.items, strict=True):
        assert item["item_id"] == one.item.item_id
        assert item["similarity"] == pytest.approx(one.score, abs=1e-5)
    assert client.get("/similar-items/nothing").status_code == 404
    assert client.get("/similar-items/i3", params={"by": "smell"}).status_code == 422
    assert len(client.get(f"/similar-items/{quote(ODD_ID, safe='')}").json()["items"]) == 10


def test_page_serves_its_own_files_only(served_run, tmp_path, monkeypatch):
    folder = tmp_path / "static"
    folder.mkdir()
    (folder / "index.html").write_text('<script src="/static/app.js">\n</head>')
    (folder / "app.js").write_text("1")
    (tmp_path / "secret").write_text("2")
    monkeypatch.setattr(page_files, "STATIC", folder)
    with client_of(served_run, api_key="k") as client:
        page = client.get("/")
        assert (page.headers["content-encoding"], page.headers["cache-control"]) == ("gzip", "no-cache")
        assert page.headers["content-type"].startswith("text/html")
        script = client.get(re.search(r'src="(/static/\w{16}/app.js)"', page.text)[1])
        assert script.headers["content-type"].startswith("text/javascript")
        assert "immutable" in script.headers["cache-control"]
        assert client.get("/static/another/app.js").headers["cache-control"] == "no-cache"
        etag = {"If-None-Match": script.headers["etag"]}
        assert client.get("/static/app.js", headers=etag).status_code == 304
        plain = client.get("/static/app.js", headers={"Accept-Encoding": "identity"})
        assert ("content-encoding" in plain.headers, plain.text) == (False, "1")
        for path in ("/static/../secret", "/static/%2e%2e/secret", "/static/", "/static/none"):
            assert client.get(path).status_code in (401, 404)


def test_items_are_listed_and_searched(client):
    matches = client.get("/items", params={"query": "STÁR w"}).json()
    assert {item["item_id"] for item in matches["items"]} == {"i3", "i5"}
    assert matches["total"] == 2
    of_domain = client.get("/items", params={"domain": "d1", "limit": 5, "offset": 2}).json()
    assert (len(of_domain["items"]), of_domain["total"]) == (5, 20)
    train_counts = [item["train_count"] for item in client.get("/items").json()["items"]]
    assert train_counts == sorted(train_counts, reverse=True)
    odd_item = client.get(f"/items/{quote(ODD_ID, safe='')}").json()
    assert (odd_item["item_id"], odd_item["picture"]) == (ODD_ID, None)
    assert client.get("/items/i1").json()["title"] == "<script>alert(1)</script>"
    assert client.get("/items/nothing").status_code == 404
    answer = client.post("/items", json={"ids": ["i4", "?", ODD_ID, "i4"]}).json()
    assert [item["item_id"] for item in answer["items"]] == ["i4", ODD_ID]
    assert answer["unknown_ids"] == ["?"]
    assert client.get("/items", params={"domain": "d7"}).json()["error"].startswith("no domain 'd7'")


def test_pictures_come_from_the_catalog_only(client):
    answer = client.get(client.get("/items/i0").json()["picture"], params={"side": 320})
    with Image.open(BytesIO(answer.content)) as image:
        assert (image.format, max(image.size)) == ("JPEG", 320)
    assert answer.headers["content-type"] == "image/jpeg"
    assert "max-age" in answer.headers["cache-control"]
    cached = client.get("/pictures/i0?side=320", headers={"If-None-Match": answer.headers["etag"]})
    assert (cached.status_code, cached.content) == (304, b"")
    for item in ("i1", "i2", "i3", "i4", "i9", "nothing", "red.png", "..%2fsecret.png"):
        assert client.get(f"/pictures/{item}").status_code == 404
    assert client.get("/pictures/i0?side=100000").status_code == 422


def test_users_are_listed_with_their_histories(client, served_data):
    page = client.get("/users", params={"limit": 3, "offset": 1}).json()
    assert [user["user_id"] for user in page["users"]] == ["u1", "u2", "u3"]
    assert page["total"] == 40
    history = client.get("/users/u1").json()["history"]
    start, stop = served_data.offsets[1:3]
    item_ids = served_data.item_table["item_id"].gather(served_data.items[start:stop]).to_list()
    assert [item["item_id"] for item in history] == item_ids
    assert page["users"][0]["history"] == history[-12:]
    pictures = {item["item_id"]: item["picture"] for user in page["users"] for item in user["history"]}
    assert None in pictures.values()  # the page requests no picture of these items
    assert client.get("/users/nobody").status_code == 404
    matches = client.get("/users", params={"query": "U1"}).json()
    ids = [user["user_id"] for user in matches["users"]]
    assert (ids[:2], matches["total"], len(ids)) == (["u1", "u10"], 11, 11)
    assert client.get("/users", params={"query": "."}).json() == {"users": [], "total": 0}
