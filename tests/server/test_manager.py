"""Hot reload: a new model replaces the current one, and a broken one does not."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.server import manager
from hafvt.server.app import create_app
from hafvt.server.manager import LoadedModel, ModelSource
from hafvt.training.train import train
from tests.conftest import write_small
from tests.served import replace_model, wait_until

BODY = {"history": ["i3"], "domain": "d0"}


@pytest.fixture
def client(writable_run, monkeypatch):
    """A client of a server of `writable_run` that looks for new models 20 times a second."""
    monkeypatch.setattr(manager, "CHECK_INTERVAL_S", 0.05)
    with TestClient(create_app(ModelSource(writable_run))) as client:
        yield client


def model_name(client):
    return client.get("/ready").json().get("model")


def test_manager_new_files_replace_the_model_without_a_failed_request(client, writable_run, sasrec_run):
    answers, stop = [], threading.Event()

    def send_requests():
        while not stop.is_set():
            answers.append(client.post("/recommend", json=BODY))

    sender = threading.Thread(target=send_requests)
    sender.start()
    replace_model(writable_run, sasrec_run)
    wait_until(lambda: model_name(client) == "sasrec")
    stop.set()
    sender.join()
    assert {answer.status_code for answer in answers} == {200}
    assert 'reloads_total{outcome="ok"} 1.0' in client.get("/metrics").text


def test_manager_broken_files_keep_the_current_model(client, writable_run, sasrec_run, caplog):
    (writable_run / "model.json").write_text("{")
    wait_until(lambda: 'outcome="failed"} 1.0' in client.get("/metrics").text)
    assert "the old one stays" in caplog.text
    assert client.post("/recommend", json=BODY).status_code == 200
    (writable_run / "model.safetensors").write_bytes(b"nothing")
    client.app.state.models["hafvt"].request_reload()
    wait_until(lambda: 'outcome="failed"} 2.0' in client.get("/metrics").text)
    replace_model(writable_run, sasrec_run)
    wait_until(lambda: model_name(client) == "sasrec")


def test_manager_reload_freezes_the_model_and_frees_the_old_one(client):
    wait_until(lambda: gc.get_freeze_count() > 0)
    models = client.app.state.models["hafvt"]
    for _ in range(2):
        old, freeze_count = weakref.ref(models.current.users), gc.get_freeze_count()
        models.current.users.cycle = models.current.users  # only the garbage collector frees cycles
        models.request_reload()
        wait_until(lambda old=old: old() is None)
        wait_until(lambda n=freeze_count: gc.get_freeze_count() > 0.9 * n)
    assert model_name(client) == "hafvt"
    assert 'reloads_total{outcome="ok"} 2.0' in client.get("/metrics").text
    client.__exit__(None, None, None)
    assert gc.get_freeze_count() == 0


def test_file_states_change_with_the_model_but_not_with_results(writable_run):
    source = ModelSource(writable_run)
    before = source.file_states()
    (writable_run / "results.json").write_text("{}")
    assert source.file_states() == before
    (writable_run / "added_items").mkdir()
    (writable_run / "added_items" / "items.parquet").write_bytes(b"1")
    assert source.file_states() != before


def test_loaded_model_scores_not_finite_are_refused(served_run, monkeypatch):
    monkeypatch.setattr(Recommender, "scores", lambda self, histories, domain: [[float("nan")]])
    with pytest.raises(HafvtError, match="not finite"):
        LoadedModel.open(ModelSource(served_run))


def test_users_without_the_dataset_are_none(served_run, monkeypatch):
    monkeypatch.setattr(ModelSource, "open_dataset", lambda self: None)
    with TestClient(create_app(ModelSource(served_run))) as client:
        assert client.get("/model").json()["has_users"] is False
        assert client.get("/users").json() == {"users": [], "total": 0}
        assert client.get("/users/u1").status_code == 404
        answer = client.post("/recommend", json={"user_id": "u1", "domain": "d0"})
        assert (answer.status_code, "this server has no dataset" in answer.json()["error"]) == (404, True)


def test_server_of_a_run_whose_dataset_was_prepared_again_has_the_new_users(tmp_path):
    data = write_small(tmp_path / "data")
    train("sasrec", data, tmp_path / "run", params={"width": 8}, epochs=1, test=False)
    shutil.rmtree(data.folder)
    with TestClient(create_app(ModelSource(tmp_path / "run"))) as client:
        expected = client.post("/recommend", json=BODY).json()
        assert client.get("/model").json()["has_users"] is False
    write_small(data.folder, users=60, sizes=(31, 21), seed=1)
    with TestClient(create_app(ModelSource(tmp_path / "run"))) as client:
        assert client.post("/recommend", json=BODY).json() == expected
        assert client.get("/users").json()["total"] == 60
        assert client.post("/recommend", json={"user_id": "u59", "domain": "d0"}).json()["items"]


def test_manager_link_to_another_run_is_followed_and_taken_back(
    tmp_path, served_run, sasrec_run, monkeypatch
):
    monkeypatch.setattr(manager, "CHECK_INTERVAL_S", 0.05)
    current = tmp_path / "current"
    current.symlink_to(served_run)

    def swap(run):
        (tmp_path / "next").symlink_to(run)
        (tmp_path / "next").replace(current)

    with TestClient(create_app(ModelSource(current))) as client:
        for run, name in ((sasrec_run, "sasrec"), (served_run, "hafvt")):
            swap(run)
            wait_until(lambda name=name: model_name(client) == name)
            assert client.post("/recommend", json=BODY).status_code == 200


@pytest.mark.parametrize("damage", ["zeros", "cut short", "swapped"])
def test_manager_damaged_weights_keep_the_current_model(client, writable_run, damage, caplog):
    path = writable_run / "model.safetensors"
    content, before = path.read_bytes(), client.post("/recommend", json=BODY).json()
    half = len(content) // 2
    damaged = {
        "zeros": content[:half] + bytes(len(content) - half),
        "cut short": content[:half],
        "swapped": content[:half] + content[half:][::-1],
    }
    path.write_bytes(damaged[damage])
    wait_until(lambda: 'outcome="failed"} 1.0' in client.get("/metrics").text)
    assert client.post("/recommend", json=BODY).json() == before
    (message,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert "the old one stays" in message
    assert "\n" not in message
    assert all(record.exc_info is None for record in caplog.records)


def test_users_of_a_dataset_cut_short_are_refused(served_run, served_data, tmp_path):
    data = shutil.copytree(served_data.folder, tmp_path / "data")
    with TestClient(create_app(ModelSource(served_run, data))) as client:
        before = client.get("/users/u39").json()
        content = (data / "items.npy").read_bytes()
        for damaged in (content[:200], content[:200] + b"\xff" * (len(content) - 200), b""):
            with (data / "items.npy").open("r+b") as file:
                file.truncate()
                file.write(damaged)
                file.truncate()
            answer = client.get("/users/u39")
            assert (answer.status_code, client.get("/users").status_code) == (503, 503)
            assert "damaged" in answer.json()["error"]
            assert client.post("/recommend", json=BODY).status_code == 200
        (data / "items.npy").write_bytes(content)
        assert client.get("/users/u39").json() == before


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system lists no memory maps")
def test_loaded_model_maps_no_file_that_may_be_cut_short(writable_run):
    model = LoadedModel.open(ModelSource(writable_run))
    gc.collect()
    assert str(writable_run) not in Path("/proc/self/maps").read_text()
    assert model.recommender.recommend([["i3"]], "d0")


def test_dataset_of_an_export_is_optional_but_must_be_right(tmp_path, served_data):
    assert ModelSource(tmp_path).open_dataset() is None
    assert ModelSource(tmp_path, served_data.folder).open_dataset().num_users == 40
    with pytest.raises(HafvtError, match="does not exist"):
        ModelSource(tmp_path, tmp_path / "nowhere").open_dataset()
