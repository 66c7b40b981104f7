"""The real process: starts, answers, takes a new model, stops."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from hafvt.server.serve import serve
from tests.served import put, running, wait_until

BODY = json.dumps({"history": ["i3", "i41"], "domain": "d0"})


@pytest.fixture
def process(own_run):
    """A server that takes any free port."""
    command = [sys.executable, "-m", "hafvt", "serve", str(own_run), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "HAFVT_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        yield server
        server.kill()


def ask(connection, method="POST", path="/recommend"):
    connection.request(method, path, BODY, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_a_server_from_start_to_stop(process, own_run, other_run):
    said = process.stderr.readline()
    port = int(re.match(r"http://127\.0\.0\.1:(\d+) ", said)[1])
    log = []
    reading = threading.Thread(target=lambda: log.extend(process.stderr))
    reading.start()
    first = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    wait_until(lambda: ask(first, "GET", "/ready")[0] == 200)

    statuses, stop = [], threading.Event()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            statuses.append(ask(connection)[0])

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    wait_until(lambda: len(statuses) > 4)  # on a busy machine the new model may be there before they are
    put(other_run, own_run)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: ask(first, "GET", "/ready")[1].get("model") == "sasrec")
    stop.set()
    for thread in clients:
        thread.join()
    assert len(statuses) > 4
    assert set(statuses) == {200}

    first.close()
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    reading.join()
    assert any("serving sasrec, 50 items" in line for line in log)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


def test_what_is_under_way_is_finished_before_it_stops(served_run, monkeypatch):
    app, begun, recommend = create_app(ModelSource(served_run)), threading.Event(), Recommender.recommend

    def slowly(self, *given, **named):
        begun.set()
        time.sleep(0.5)
        return recommend(self, *given, **named)

    monkeypatch.setattr(Recommender, "recommend", slowly)
    got = []
    with running(app) as port:
        wait_until(lambda: app.state.models.live)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        asking = threading.Thread(target=lambda: got.append(ask(connection)))
        asking.start()
        assert begun.wait(20)
    asking.join()
    assert got[0][0] == 200


def test_what_can_be_mended_is_said(own_run, tmp_path, monkeypatch):
    with pytest.raises(HafvtError, match="holds no finished run"):
        serve(tmp_path, port=0)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(HafvtError, match="--port"):
        serve(own_run, port=taken.getsockname()[1])
    for wrong in ({"port": 99999}, {"host": "no.such.host.invalid"}, {"host": ""}):
        with pytest.raises(HafvtError, match="--host"):
            serve(own_run, **{"port": 0, **wrong})
    with pytest.raises(HafvtError, match="--cors-origins"):
        serve(own_run, cors_origins=["shop.example/x"])
    with pytest.raises(HafvtError, match="--queue"):
        serve(own_run, queue=0)
    monkeypatch.setenv("HAFVT_API_KEY", "")
    with pytest.raises(HafvtError, match="HAFVT_API_KEY"):
        serve(own_run)
