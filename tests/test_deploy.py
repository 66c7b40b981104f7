"""The files for several machines agree with the program, and the proxy loses no request."""

from __future__ import annotations

import http.client
import json
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from hafvt.cli import make_app
from hafvt.server.app import create_app
from hafvt.server.history_store import HISTORY_STORE_VARIABLE
from hafvt.server.manager import ModelSource
from hafvt.server.middleware import API_KEY_VARIABLE, MAX_BODY
from tests.ports import free_port
from tests.served import run_in_thread, wait_until
from tests.server.redis_server import run_redis
from tests.test_project import PROJECT, ROOT, read

NGINX = Path("/usr/sbin/nginx")
VERSION = PROJECT["project"]["version"]
DOCKERFILE = read("Dockerfile")
COMPOSE = yaml.safe_load(read("deploy/compose.yaml"))
KUBERNETES = list(yaml.safe_load_all(read("deploy/kubernetes.yaml")))


def test_requirements_of_the_image_are_those_of_the_extras_without_torch():
    (extras,) = re.findall(r"requirements\.py (.+) > ", DOCKERFILE)
    command = [sys.executable, str(ROOT / "scripts" / "requirements.py"), *extras.split()]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    optional = PROJECT["project"]["optional-dependencies"]
    expected = {*PROJECT["project"]["dependencies"], *(r for e in extras.split() for r in optional[e])}
    assert expected - set(lines) == {r for r in expected if r.startswith("torch")}
    assert {"serve", "redis", "onnx"} == set(extras.split())
    wrong = subprocess.run([*command, "nothing"], check=False, capture_output=True, text=True)
    assert wrong.stderr == "pyproject.toml has no extra nothing\n"


def test_dockerfile_copies_files_that_the_ignore_file_lets_through():
    allowed = {line[1:] for line in read(".dockerignore").splitlines() if line.startswith("!")}
    copied = [line.split()[1:-1] for line in DOCKERFILE.splitlines() if re.match(r"COPY (?!--from)", line)]
    names = {name for names in copied for name in names}
    assert names == allowed
    assert all((ROOT / name).exists() for name in names)


def test_dockerfile_runs_the_server_as_another_user_than_root():
    command = json.loads(re.findall(r"^CMD (\[.+\])$", DOCKERFILE, flags=re.M)[0])
    assert command[:3] == ["hafvt", "serve", "/model"]
    options = make_app("serve")["serve"].parse_args(command[2:], exit_on_error=False)[1].arguments
    assert (options["host"], options["port"]) == ("0.0.0.0", 8000)
    assert re.search(r"^USER [1-9]\d+:[1-9]\d+$", DOCKERFILE, flags=re.M)
    assert "EXPOSE 8000\n" in DOCKERFILE
    image = re.findall(r"FROM python:([0-9.]+)-slim", DOCKERFILE)[-1]
    assert f"Programming Language :: Python :: {image}" in PROJECT["project"]["classifiers"]


def test_healthcheck_of_the_image_succeeds_while_the_server_answers(served_run):
    text = DOCKERFILE.replace("\\\n", "")
    command = json.loads(re.findall(r"^HEALTHCHECK .*?CMD (\[.+\])$", text, flags=re.M)[0])
    with run_in_thread(create_app(ModelSource(served_run), api_key="key")) as port:
        code = command[2].replace(":8000", f":{port}")
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode != 0


def test_images_have_the_version_of_the_package():
    texts = map(read, ("Dockerfile", "deploy/compose.yaml", "deploy/kubernetes.yaml"))
    tags = [tag for text in texts for tag in re.findall(r"hafvt:(\d[\w.]*)", text)]
    assert set(tags) == {VERSION}


def test_compose_has_two_replicas_behind_a_proxy_that_share_a_store():
    services = COMPOSE["services"]
    replicas = [services[name] for name in ("hafvt-1", "hafvt-2")]
    for service in replicas:
        assert set(service["environment"]) == {API_KEY_VARIABLE, HISTORY_STORE_VARIABLE}
        assert service["environment"][HISTORY_STORE_VARIABLE] == "redis://valkey:6379/0"
        assert service["volumes"][0].endswith(":/model:ro")
    for service in services.values():
        assert service["cap_drop"] == ["ALL"]
        assert set(service.get("depends_on", {})) <= set(services)
    servers = re.findall(r"server (hafvt-\d):8000 ", read("deploy/nginx.conf"))
    assert [services[name] for name in servers] == replicas
    for volume in services["proxy"]["volumes"]:
        assert (ROOT / "deploy" / volume.split(":")[0]).exists()


def test_kubernetes_objects_name_each_other():
    kinds = [(one["kind"], one["metadata"]["name"]) for one in KUBERNETES]
    assert ("Deployment", "hafvt") in kinds
    assert ("Service", "hafvt-valkey") in kinds
    for one in KUBERNETES:
        if one["kind"] not in ("Deployment", "StatefulSet"):
            continue
        spec = one["spec"]["template"]["spec"]
        assert one["spec"]["selector"]["matchLabels"] == one["spec"]["template"]["metadata"]["labels"]
        assert spec["securityContext"]["runAsNonRoot"]
        (container,) = spec["containers"]
        assert {"requests", "limits"} <= set(container["resources"])
        assert {"readinessProbe", "livenessProbe"} <= set(container)
        if one["kind"] == "Deployment":
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                assert container[probe]["httpGet"] == {"path": "/health", "port": "http"}  # without a key
        assert container["securityContext"]["readOnlyRootFilesystem"]
        if one["metadata"]["name"] == "hafvt":
            environment = {entry["name"]: entry for entry in container["env"]}
            assert {API_KEY_VARIABLE, HISTORY_STORE_VARIABLE} <= set(environment)
            host = environment[HISTORY_STORE_VARIABLE]["value"].split("//")[1].split(":")[0]
            assert ("Service", host) in kinds
            user = re.findall(r"^USER (\d+):", DOCKERFILE, flags=re.M)[0]
            assert spec["securityContext"]["runAsUser"] == int(user)


def test_proxy_takes_bodies_that_the_server_takes():
    assert int(re.findall(r"client_max_body_size (\d+)m;", read("deploy/nginx.conf"))[0]) * 2**20 > MAX_BODY


@pytest.fixture
def proxied(served_run, tmp_path):
    """Two replicas as processes behind nginx with the committed configuration; yields them and its port."""
    if not NGINX.exists():
        pytest.skip(f"there is no {NGINX}: apt-get install nginx-light")
    port, processes, text = free_port(), [], read("deploy/nginx.conf")
    with run_redis() as store:
        for number in (1, 2):
            own = free_port()
            command = [sys.executable, "-m", "hafvt", "serve", str(served_run), "--port", str(own)]
            command += ["--history-store", store]
            processes.append(subprocess.Popen(command, stderr=subprocess.DEVNULL))
            wait_until(lambda own=own: is_ready(own))
            text = text.replace(f"hafvt-{number}:8000", f"127.0.0.1:{own}")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{port}").replace("/tmp/", f"{tmp_path}/")
        (tmp_path / "nginx.conf").write_text(text)
        nginx = [str(NGINX), "-c", str(tmp_path / "nginx.conf"), "-g", "daemon off;"]
        processes.append(subprocess.Popen(nginx))
        wait_until(lambda: is_ready(port))
        yield processes[:2], port
        for process in processes:
            process.terminate()
            process.wait(30)


def is_ready(port):
    try:
        return send(port, "GET", "/ready", None)[0] == 200
    except OSError:
        return False


def send(port, method, path, body):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path, body and json.dumps(body), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.slow
def test_replica_killed_behind_the_proxy_loses_no_recommendation(proxied):
    replicas, port = proxied
    statuses, stop = [], threading.Event()

    def client():
        while not stop.is_set():
            statuses.append(send(port, "POST", "/recommend", {"history": ["i3"], "domain": "d0"})[0])

    clients = [threading.Thread(target=client) for _ in range(4)]
    for thread in clients:
        thread.start()
    wait_until(lambda: len(statuses) > 40)
    assert send(port, "POST", "/events", {"user_id": "new", "items": ["i3"]})[0] == 200
    replicas[0].kill()
    replicas[0].wait()
    count = len(statuses)
    wait_until(lambda: len(statuses) > count + 40)
    stop.set()
    for thread in clients:
        thread.join()
    assert set(statuses) == {200}
    assert send(port, "POST", "/events", {"user_id": "new", "items": ["i4"]})[1]["num_events"] == 2
    assert send(port, "POST", "/recommend", {"history": 3, "domain": "d0"})[0] == 422
    replicas[1].kill()
    replicas[1].wait()
    status, answer = send(port, "POST", "/recommend", {"history": ["i3"], "domain": "d0"})
    assert (status, answer) == (503, {"error": "no replica answered: try again soon"})
