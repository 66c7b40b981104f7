"""The server as a process: it starts, answers, loads a new model, and stops."""

from __future__ import annotations

import asyncio
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
from concurrent.futures import ThreadPoolExecutor

import pytest

from hafvt.errors import HafvtError
from hafvt.inference.recommender import Recommender
from hafvt.server.app import create_app
from hafvt.server.manager import ModelSource
from hafvt.server.serve import serve
from tests.served import replace_model, run_in_thread, wait_until

BODY = json.dumps({"history": ["i3", "i41"], "domain": "d0"})


@pytest.fixture
def process(writable_run):
    """A running `hafvt serve` at a free port."""
    command = [sys.executable, "-m", "hafvt", "serve", str(writable_run), "--port", "0"]
    environment = {key: value for key, value in os.environ.items() if key != "HAFVT_API_KEY"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as server:
        yield server
        server.kill()


def send(connection, method="POST", path="/recommend"):
    connection.request(method, path, BODY, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.slow
def test_serve_from_start_to_stop_fails_no_request(process, writable_run, sasrec_run):
    log = [process.stderr.readline(), process.stderr.readline()]
    assert "serving hafvt, 50 items" in log[0]
    port = int(re.match(r"http://127\.0\.0\.1:(\d+) ", log[1])[1])
    reading = threading.Thread(target=lambda: log.extend(process.stderr))
    reading.start()
    first = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    wait_until(lambda: send(first, "GET", "/ready")[0] == 200)

    statuses, stop = [], threading.Event()

    def client():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        while not stop.is_set():
            statuses.append(send(connection)[0])

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    wait_until(
        lambda: len(statuses) > 4
    )  # else a busy machine may load the new model before the first request
    replace_model(writable_run, sasrec_run)
    process.send_signal(signal.SIGHUP)
    wait_until(lambda: send(first, "GET", "/ready")[1].get("model") == "sasrec")
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


def test_server_stopping_answers_requests_under_way(served_run, monkeypatch):
    app, started, recommend = create_app(ModelSource(served_run)), threading.Event(), Recommender.recommend

    def recommend_slowly(self, *args, **kwargs):
        started.set()
        time.sleep(0.5)
        return recommend(self, *args, **kwargs)

    monkeypatch.setattr(Recommender, "recommend", recommend_slowly)
    answers = []
    with run_in_thread(app) as port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        sender = threading.Thread(target=lambda: answers.append(send(connection)))
        sender.start()
        assert started.wait(20)
    sender.join()
    assert answers[0][0] == 200


def test_serve_without_a_model_prints_no_address(tmp_path, writable_run, capfd):
    (writable_run / "model.safetensors").write_bytes(b"nothing")
    for run, message in ((tmp_path, "holds no finished run"), (writable_run, "model.safetensors")):
        with pytest.raises(HafvtError, match=message):
            serve(run, port=0)
    assert "http" not in "".join(capfd.readouterr())


def test_serve_invalid_options_are_refused(served_run, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(HafvtError, match="--port"):
        serve(served_run, port=other.getsockname()[1])
    with pytest.raises(HafvtError, match="--port is 99999: choose a whole number from 0 to 65535"):
        serve(served_run, port=99999)
    for options in ({"host": "no.such.host.invalid"}, {"host": ""}, {"host": "../.."}, {"host": "a" * 999}):
        with pytest.raises(HafvtError, match="--host"):
            serve(served_run, **{"port": 0, **options})
    with pytest.raises(HafvtError, match="--cors-origins"):
        serve(served_run, cors_origins=["shop.example/x"])
    with pytest.raises(HafvtError, match="--queue"):
        serve(served_run, queue=0)
    for timeout in (0, -1, float("nan"), float("inf"), 1e308):
        with pytest.raises(HafvtError, match="--timeout"):
            serve(served_run, timeout=timeout)
    monkeypatch.setenv("HAFVT_API_KEY", "")
    with pytest.raises(HafvtError, match="HAFVT_API_KEY"):
        serve(served_run)


def test_serve_in_a_notebook_or_thread_says_what_to_do(served_run):
    async def in_notebook():
        serve(served_run)

    with pytest.raises(HafvtError, match=f"a notebook cannot serve: run hafvt serve {served_run} in a term"):
        asyncio.run(in_notebook())
    with (
        ThreadPoolExecutor() as threads,
        pytest.raises(HafvtError, match=f"a thread cannot serve: run hafvt serve {served_run} in a term"),
    ):
        threads.submit(serve, served_run).result()
