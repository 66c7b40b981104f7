"""A new model takes the old one's place, and a broken one does not."""

from __future__ import annotations

import gc
import threading
import weakref

import pytest
from starlette.testclient import TestClient

from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.server import manager as module
from hafvt.server.app import create_app
from hafvt.server.manager import LoadedModel, ModelSource
from tests.served import put, wait_until


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(module, "WATCH_S", 0.05)


def name_of(client):
    return client.get("/ready").json().get("model")


def test_a_new_model_is_noticed_and_none_asked_in_vain(own_run, other_run, impatient):
    with TestClient(create_app(ModelSource(own_run))) as client:
        wait_until(lambda: name_of(client) == "hafvt")
        answers, stop = [], threading.Event()

        def ask():
            while not stop.is_set():
                answers.append(client.post("/recommend", json={"history": ["i3"], "domain": "d0"}))

        asking = threading.Thread(target=ask)
        asking.start()
        put(other_run, own_run)
        wait_until(lambda: name_of(client) == "sasrec")
        stop.set()
        asking.join()
        assert {answer.status_code for answer in answers} == {200}
        assert 'reloads_total{outcome="ok"} 2' in client.get("/metrics").text


def test_a_broken_model_is_told_and_the_old_one_stays(own_run, other_run, impatient, caplog):
    with TestClient(create_app(ModelSource(own_run))) as client:
        wait_until(lambda: name_of(client) == "hafvt")
        (own_run / "model.json").write_text("{")
        wait_until(lambda: 'outcome="failed"} 1' in client.get("/metrics").text)
        assert "the old one stays" in caplog.text
        assert client.post("/recommend", json={"history": ["i3"], "domain": "d0"}).status_code == 200
        (own_run / "model.safetensors").write_bytes(b"nothing")
        client.app.state.models.ask()
        wait_until(lambda: 'outcome="failed"} 2' in client.get("/metrics").text)
        put(other_run, own_run)
        wait_until(lambda: name_of(client) == "sasrec")


def test_nothing_is_loaded_again_where_only_results_change(own_run):
    source = ModelSource(own_run)
    before = source.version()
    (own_run / "results.json").write_text("{}")
    assert source.version() == before
    (own_run / "added_items").mkdir()
    (own_run / "added_items" / "items.parquet").write_bytes(b"1")
    assert source.version() != before


def test_while_the_first_model_is_loaded_it_lives_but_is_not_ready(own_run):
    gate = threading.Event()

    class Slow(ModelSource):
        def open(self):
            assert gate.wait(20)
            return super().open()

    with TestClient(create_app(Slow(own_run))) as client:
        assert client.get("/health").status_code == 200
        for answer in (
            client.get("/ready"),
            client.get("/items"),
            client.post("/recommend", json={"history": [], "domain": "d0"}),
        ):
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        gate.set()
        wait_until(lambda: name_of(client) == "hafvt")


def test_a_model_whose_scores_are_no_numbers_is_refused(own_run, monkeypatch):
    monkeypatch.setattr(Recommender, "scores", lambda self, histories, domain: [[float("nan")]])
    with pytest.raises(HafvtError, match="no numbers"):
        LoadedModel.open(ModelSource(own_run))


def test_the_collector_leaves_the_model_alone_and_yet_old_ones_go(own_run):
    frozen = gc.get_freeze_count()
    with TestClient(create_app(ModelSource(own_run))) as client:
        wait_until(lambda: gc.get_freeze_count() > frozen)
        models = client.app.state.models
        for _ in range(2):
            old = weakref.ref(models.live)
            models.ask()
            wait_until(lambda old=old: old() is None)
        assert name_of(client) == "hafvt"
    assert gc.get_freeze_count() == 0


def test_without_the_dataset_there_are_no_people(own_run, monkeypatch):
    with TestClient(create_app(ModelSource(own_run))) as client:
        wait_until(lambda: name_of(client) == "hafvt")
        object.__setattr__(client.app.state.models.live, "people", None)
        assert client.get("/model").json()["people"] is False
        assert client.get("/people").json() == {"people": [], "total": 0}
        assert client.get("/people/u1").status_code == 404
    assert ModelSource(own_run, own_run / "nowhere").people() is None
