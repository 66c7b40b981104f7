"""The server on Ray Serve: two replicas answer as the server does, and share events in Redis."""

from __future__ import annotations

import http.client
import json
import os
from pathlib import Path

import pytest

from hafvt.inference.recommender import Recommender
from hafvt.parts import ray_cluster
from tests.ports import free_port
from tests.server.redis_server import run_redis

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(300)]


def post(port, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    headers = {"Content-Type": "application/json", "X-API-Key": "key"}
    connection.request("POST", path, json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def test_application_on_ray_serve_answers_as_the_server(served_run, monkeypatch):
    pytest.importorskip("ray.serve")
    from ray import serve

    from hafvt.server.ray_serve import Settings, build

    monkeypatch.setenv("HAFVT_API_KEY", "key")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parents[2]), *os.sys.path]))
    port = free_port()
    with run_redis() as url, ray_cluster("local", num_cpus=2):
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        try:
            settings = Settings(run=str(served_run), history_store=url, replicas=2, cpus=0.5)
            serve.run(build(settings))
            history = ["i3", "i41"]
            assert post(port, "/events", {"user_id": "new", "items": history})[0] == 200
            (best,) = Recommender.open(served_run).recommend([history], "d0", 5)
            expected = [one.item.item_id for one in best.items]
            for _ in range(6):  # by both replicas
                status, answer = post(port, "/recommend", {"user_id": "new", "domain": "d0", "k": 5})
                assert status == 200
                assert [item["item_id"] for item in answer["items"]] == expected
            monkeypatch.setenv("HAFVT_API_KEY", "other")
            assert post(port, "/recommend", {"history": 3, "domain": "d0"})[0] == 422
        finally:
            serve.shutdown()
