"""Downloads against a hostile server on this machine; nothing here touches a real network."""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import time
from contextlib import closing
from functools import partial

import pytest

from hafvt.data import http_client as web_module
from hafvt.data.download import Downloaded, DownloadError, Job, download, download_all
from hafvt.data.http_client import Web, is_public, parse
from hafvt.data.sources.fetch import gzip_suffix, picture_suffix
from hafvt.errors import HafvtError
from tests.data.sources.hostile_server import BODY, HALF, OTHER, PICTURES, HostileServer


@pytest.fixture
def server():
    with closing(HostileServer()) as server:
        yield server


@pytest.fixture
def slept():
    """The waits in seconds that were requested; no test waits."""
    return []


@pytest.fixture
def web(slept):
    return partial(Web, per_second=1e6, allow_private=True, sleep=slept.append, stall_s=5.0)


@pytest.fixture
def get(server, web, tmp_path):
    """Fetches a path of the server to `tmp_path`/file."""

    def get(path, *, checksum=None, suffix_of=gzip_suffix, **limits):
        job = Job(server.url(path), tmp_path / "file", suffix_of, checksum)
        return download(job, web(**limits))

    return get


@pytest.fixture
def names(monkeypatch):
    """What names resolve to; each look-up is counted."""
    answers, lookups = {}, []

    def embedding_lookup(host, port, *arguments, **named):
        lookups.append(host)
        if host not in answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in answers[host]]

    monkeypatch.setattr(socket, "getaddrinfo", embedding_lookup)
    return answers, lookups


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A key and a certificate of shop.test, made now."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=shop.test"
    command += f" -addext subjectAltName=DNS:shop.test -keyout {path} -out {path}.cert"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_name("both.pem.cert").read_text())
    return path


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_good_server_writes_the_complete_file(get, server, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    downloaded = get("good/a%2Bb.gz?x=1 2")
    assert downloaded == Downloaded(tmp_path / "file", len(BODY), len(BODY))
    assert (tmp_path / "file").read_bytes() == BODY
    assert left(tmp_path) == ["file"]
    (request,) = server.requests
    assert request.path == "/good/a%2Bb.gz?x=1%202"
    assert request.headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["Range"] is None


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://a.org/x",
            "file:///etc/passwd",
            "//a.org/x",
            "a.org",
            "",
            "http://",
            "http:///x",
            "http://a b/",
        ),
        *(
            "http://me@a.org/",
            "http://me:pw@a.org/",
            "http://:@a.org/",
            "http://a.org\\@b.org/",
            "http://[::1/",
        ),
        *(
            "http://a.org:99999/",
            "http://a.org:x/",
            "http://a.org/\r\nHost: b",
            "ht\ntp://a.org",
            "http://.a/",
        ),
        *("http://a.org/" + "x" * 5000, "http://a..b/", "javascript:alert(1)", "http://\ud800.org/"),
    ],
)
def test_download_malformed_address_is_refused(url, web, names, tmp_path):
    with pytest.raises(DownloadError):
        download(Job(url, tmp_path / "file"), web())
    assert names[1] == []


def test_parse_address_is_percent_encoded():
    assert parse("HTTPS://Bücher.example/ä b?q=ü&p=%20#part").target == "/%C3%A4%20b?q=%C3%BC&p=%20"
    assert parse("https://Bücher.example/").name == "xn--bcher-kva.example"
    assert parse("http://[2606:4700::1]:81/").name == "[2606:4700::1]:81"


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        *(
            (ip, True)
            for ip in ("8.8.8.8", "2606:4700::1", "::ffff:8.8.8.8", "64:ff9b::808:808", "2002:808:808::")
        ),
        *((ip, False) for ip in ("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254")),
        *((ip, False) for ip in ("100.64.0.1", "0.0.0.0", "224.0.0.1", "240.0.0.1", "255.255.255.255")),
        *((ip, False) for ip in ("::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff0e::1")),
        *((ip, False) for ip in ("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1")),
        *((ip, False) for ip in ("2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:7f00:1::", "::127.0.0.1")),
    ],
)
def test_is_public_accepts_only_public_addresses(ip, public):
    assert is_public(ip) is public


def test_download_local_address_is_refused_by_default(server, get, tmp_path):
    for host in ("127.0.0.1", "2130706433", "127.1", "localhost"):
        with pytest.raises(DownloadError, match="not a public address"):
            download(Job(server.url("good", host), tmp_path / "file"), Web())
    assert server.requests == []


def test_download_name_with_a_private_address_is_refused(server, names, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    for answer in (["10.0.0.1"], ["8.8.8.8", "192.168.0.1"], ["8.8.8.8", "127.0.0.1"]):
        names[0]["shop.test"] = answer
        with pytest.raises(DownloadError, match="not a public address"):
            download(Job("http://shop.test/x", tmp_path / "file"), Web())
    with pytest.raises(DownloadError, match="is not known"):
        download(Job("http://nowhere.test/x", tmp_path / "file"), Web())


def test_download_connects_to_the_checked_address(server, names, web, tmp_path):
    names[0]["shop.test"] = ["127.0.0.1"]
    download(Job(server.url("good", "shop.test"), tmp_path / "file"), web())
    assert names[1] == ["shop.test"]
    assert server.requests[0].headers["Host"] == f"shop.test:{server.server_port}"


def test_download_tls_checks_the_name_and_refuses_redirects_to_http(
    certificate, names, web, server, tmp_path, monkeypatch
):
    names[0].update({"shop.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]})
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.cert")
    with closing(HostileServer(certificate)) as secure:
        downloaded = download(Job(secure.url("truncated", "shop.test"), tmp_path / "file"), web())
        assert downloaded.path.read_bytes() == BODY
        assert secure.names == ["shop.test"] * 2
        with pytest.raises(DownloadError, match="cannot prove who it is"):
            download(Job(secure.url("good", "other.test"), tmp_path / "file"), web())
        to = server.url("good")
        with pytest.raises(DownloadError, match="from https to http"):
            download(Job(secure.url(f"redirect?to={to}", "shop.test"), tmp_path / "file"), web())
        up = server.url(f"redirect?to={secure.url('good', 'shop.test')}")
        assert download(Job(up, tmp_path / "up"), web()).size == len(BODY)
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(DownloadError, match="cannot prove who it is"):
            download(Job(secure.url("good", "shop.test"), tmp_path / "file"), web())
    assert [request.path.split("?")[0] for request in server.requests] == ["/redirect"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_download_redirects_are_followed(get, status):
    assert get(f"redirect?status={status}&to=/redirect?to=/good").size == len(BODY)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("redirect?to=file:///etc/passwd", "only http and https"),
        ("redirect?to=ftp://a.org/x", "only http and https"),
        ("redirect?to=http://me:pw@127.0.0.1/", "a user or a password"),
        ("redirect?to=http://[", "no address"),
        ("redirect?to=http://10.0.0.1/x", "10.0.0.1, not a public address"),
        ("redirect?to=http://169.254.169.254/latest", "not a public address"),
        ("redirect?to=//[::ffff:10.0.0.1]/", "not a public address"),
        ("loop", "redirected more than 5 times"),
    ],
)
def test_download_redirects_are_checked(get, server, path, message, monkeypatch):
    monkeypatch.setattr(web_module, "is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))
    with pytest.raises(DownloadError, match=message.replace("[", r"\[")):
        get(path, allow_private=False)
    assert len(server.requests) == (6 if path == "loop" else 1)


@pytest.mark.parametrize("path", ["truncated", "weak"])
def test_download_truncated_response_is_resumed(get, server, slept, path, tmp_path):
    downloaded = get(path)
    assert downloaded.path.read_bytes() == BODY
    assert downloaded.moved == len(BODY)
    assert server.requests[1].headers["Range"] == f"bytes={HALF}-"
    assert len([wait for wait in slept if wait >= 1]) == 1
    assert left(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("path", "body", "requests"),
    [
        ("ignores-range", BODY, 2),
        ("changes", OTHER, 2),
        ("shrinks", OTHER, 3),
        ("mixes", BODY, 3),
        ("wrong-part", BODY, 3),
        ("no-validator", BODY, 2),
        ("chunked", BODY, 1),
        ("chunked?cut", BODY, 2),
    ],
)
def test_download_parts_of_two_versions_are_never_joined(get, server, path, body, requests):
    assert get(path).path.read_bytes() == body
    assert len(server.requests) == requests


def test_download_partial_file_is_resumed_only_for_its_address(get, server, tmp_path):
    part, note = tmp_path / "file.part", tmp_path / "file.part.json"
    with pytest.raises(DownloadError, match=r"cut short at 150,000 of 300,003 bytes"):
        get("truncated", tries=1)
    assert json.loads(note.read_text())["validator"] == '"one"'
    partial_file = part.read_bytes(), note.read_text()
    assert partial_file[0] == BODY[:HALF]
    assert get("truncated", tries=1).moved == len(BODY) - HALF
    part.write_bytes(BODY)  # whole, but the run was killed before it had its name
    note.write_text(partial_file[1])
    assert get("truncated", tries=1).moved == 0
    assert len(server.requests) == 2
    for damage in (
        "{",
        "[]",
        partial_file[1].replace("one", "o\\r\\nX: y"),
        partial_file[1].replace("/truncated", "/other"),
        "",
    ):
        part.write_bytes(partial_file[0])
        note.write_text(damage) if damage else note.unlink(missing_ok=True)
        assert get("truncated", tries=1).moved == len(BODY)
        assert server.requests[-1].headers["Range"] is None


@pytest.mark.parametrize(
    ("path", "message", "requests"),
    [
        ("longer", "cut short at 300,003 of 301,003", 3),
        ("shorter", "more comes than", 3),
        ("huge", "more than the 1,000,000 that are allowed", 1),
        ("endless", "larger than the 1,000,000", 1),
        ("endless?chunked=1", "larger than the 1,000,000", 1),
        ("html", "not a gzip file", 1),
        ("encoded", "encoded as 'br'", 1),
        ("no-http", "connection lost", 3),
        ("status?status=404", "answers 404", 1),
        ("status?status=403", "answers 403", 1),
        ("status?status=204", "answers 204", 1),
        ("status?status=206", "another part", 3),
        ("status?status=500", "answers 500", 3),
        ("status?status=429", "answers 429", 3),
    ],
)
def test_download_false_responses_are_refused(get, server, tmp_path, path, message, requests):
    with pytest.raises(DownloadError, match=message) as caught:
        get(path, tries=3, max_bytes=1_000_000)
    assert str(caught.value).isprintable()
    assert len(server.requests) == requests
    assert left(tmp_path) in ([], ["file.part", "file.part.json"])
    assert path == "longer" or not (tmp_path / "file.part").exists()


@pytest.mark.parametrize("path", ["stalls", "stalls-before", "drips", "drips?headers"])
def test_download_stalled_server_times_out(get, path):
    start = time.monotonic()
    with pytest.raises(DownloadError, match="nothing comes any more"):
        get(path, tries=1, stall_s=0.3)
    assert time.monotonic() - start < 5


def test_download_backoff_grows_with_jitter(get, slept):
    get("status?status=500&times=4")
    waits = [wait for wait in slept if wait >= 1]
    assert len(waits) == 4
    assert all(2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits))
    assert len({wait / 2**n for n, wait in enumerate(waits)}) == 4


@pytest.mark.parametrize(
    ("status", "after", "wait"), [(429, "7", 7), (503, "7", 7), (429, "99999", 120), (503, "date", 0)]
)
def test_download_retry_after_is_respected(get, slept, status, after, wait):
    get(f"status?status={status}&times=1&after={after}")
    assert max(slept, default=0) == pytest.approx(wait, abs=0.5)


def test_download_that_makes_progress_is_not_given_up(get, server, monkeypatch):
    with pytest.raises(DownloadError, match="cut short"):
        get("crumbles", tries=2)
    monkeypatch.setattr("hafvt.data.download.GAIN", 100_000)
    (get("crumbles", tries=2).path).unlink()
    assert get("crumbles", tries=2).path.read_bytes() == BODY
    assert len(server.requests) == 2 + 1 + 3


@pytest.mark.parametrize("algorithm", ["sha256", "md5"])
def test_download_checksum_is_verified(get, algorithm, tmp_path):
    right = hashlib.new(algorithm, BODY).hexdigest()
    assert get("truncated", checksum=f"{algorithm}:{right.upper()}").size == len(BODY)
    (tmp_path / "file").unlink()
    with pytest.raises(DownloadError, match=f"its {algorithm} is {right}, the publisher's is 00"):
        get("good", checksum=f"{algorithm}:00")
    assert left(tmp_path) == []


@pytest.mark.parametrize("kind", PICTURES)
def test_download_picture_suffix_follows_the_first_bytes(get, kind, tmp_path):
    downloaded = get(f"picture/x.exe?is={kind}", suffix_of=picture_suffix)
    assert downloaded.path == tmp_path / f"file.{kind}"
    assert downloaded.path.read_bytes() == PICTURES[kind]


def test_download_content_that_is_not_a_picture_is_refused(get, tmp_path):
    for path in ("good/x.jpg", "html", "status?status=200"):
        with pytest.raises(DownloadError, match="not a picture"):
            get(path, suffix_of=picture_suffix)
    assert left(tmp_path) == []


def test_download_full_disk_is_not_retried(get, tmp_path, server):
    (tmp_path / "file.part").mkdir()
    with pytest.raises(HafvtError, match="cannot be written") as caught:
        get("good")
    assert not isinstance(caught.value, DownloadError)


def test_web_limits_the_rate_of_each_host(server, slept, web, names, tmp_path):
    names[0].update({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
    slow = web(per_second=0.5, clock=lambda: 100.0)
    urls = [server.url(path, f"{host}.test") for host in "ab" for path in ("good", "redirect?to=/good")]
    jobs = [Job(url, tmp_path / f"{n}") for n, url in enumerate(urls)]
    assert all(isinstance(result, Downloaded) for _, result in download_all(jobs, slow, parallel=4))
    assert sorted(slept) == [2, 2, 4, 4]  # three requests each; the first of them at once


def test_download_all_respects_retry_after_of_a_host(server, slept, web, tmp_path):
    shared = web(tries=1, clock=lambda: 100.0)
    with pytest.raises(DownloadError):
        download(Job(server.url("status?status=429&after=50"), tmp_path / "a"), shared)
    download(Job(server.url("good"), tmp_path / "b"), shared)
    assert slept == [50]


def test_download_all_gives_up_silent_hosts_only(server, web, tmp_path, monkeypatch):
    monkeypatch.setattr(web_module, "PATIENCE", 3)
    paths = ["status?status=500", "status?status=500", "status?status=404", *["status?status=500"] * 6]
    jobs = [Job(server.url(path), tmp_path / f"{n}") for n, path in enumerate(paths)]
    results = dict(download_all(jobs, web(tries=1), parallel=1))
    assert len(server.requests) == 6
    assert ["unanswered" in results[job].problem for job in jobs] == [False] * 6 + [True] * 3


def test_download_all_is_parallel_and_survives_failures(server, web, tmp_path):
    jobs = [Job(server.url(f"meets/{n}"), tmp_path / f"{n}") for n in range(2)]
    jobs.append(Job(server.url("status?status=404"), tmp_path / "dead"))
    moved = []
    results = dict(download_all(jobs, web(), parallel=3, told=moved.append))
    assert [type(results[job]) for job in jobs] == [Downloaded, Downloaded, DownloadError]
    assert sum(moved) == 2 * len(BODY)


def test_download_all_closed_generator_stops_downloads(server, web, tmp_path):
    jobs = [Job(server.url(path), tmp_path / path) for path in ("good", *(f"stalls/{n}" for n in range(9)))]
    start = time.monotonic()
    with closing(download_all(jobs, web(stall_s=60), parallel=2)) as results:
        next(results)
    assert time.monotonic() - start < 5
    assert len(server.requests) <= 4
