"""Downloads from a misbehaving server on this machine, without any other network access."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from contextlib import closing

import pytest

from hafvt.data import http_client
from hafvt.data.download import DownloadedFile, DownloadError, DownloadJob, download
from hafvt.data.http_client import HttpClient, is_public
from hafvt.data.sources.fetch import GZIP, PICTURE
from hafvt.errors import HafvtError
from tests.data.sources.hostile_server import BODY, HALF, OTHER_BODY, PICTURES, HostileServer


@pytest.fixture
def get(server, make_client, tmp_path):
    """Return a function that downloads a path of the server to `tmp_path`/file."""

    def get(path, *, file_type=GZIP, **limits):
        job = DownloadJob(server.url(path), tmp_path / "file", file_type)
        return download(job, make_client(**limits))

    return get


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Return the path of a new key and certificate for shop.test."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=shop.test"
    command += f" -addext subjectAltName=DNS:shop.test -keyout {path} -out {path}.cert"
    subprocess.run(command.split(), check=True, capture_output=True)
    path.write_text(path.read_text() + path.with_name("both.pem.cert").read_text())
    return path


def file_names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_correct_response_writes_the_complete_file(get, server, tmp_path, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    downloaded = get("good/a%2Bb.gz?x=1 2")
    assert downloaded == DownloadedFile(tmp_path / "file", len(BODY), len(BODY))
    assert (tmp_path / "file").read_bytes() == BODY
    assert file_names(tmp_path) == ["file"]
    (request,) = server.requests
    assert request.path == "/good/a%2Bb.gz?x=1%202"
    assert request.headers["Host"] == f"127.0.0.1:{server.server_port}"
    assert request.headers["Accept-Encoding"] == "identity"
    assert request.headers["Range"] is None


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://a.org/x", "file:///etc/passwd", "//a.org/x", "a.org", "", "http://", "http:///x"),
        *("http://me@a.org/", "http://me:pw@a.org/", "http://:@a.org/", "http://a.org\\@b.org/"),
        *("http://[::1/", "http://a b/", "http://.a/", "http://a..b/", "http://\ud800.org/"),
        *("http://a.org:99999/", "http://a.org:x/", "http://a.org/\r\nHost: b", "ht\ntp://a.org"),
        *("http://a.org/\ud800", "http://a.org/?\ud800", "http://a.org/" + "x" * 5000, "javascript:alert(1)"),
    ],
)
def test_download_malformed_url_is_refused(url, make_client, dns, tmp_path):
    with pytest.raises(DownloadError):
        download(DownloadJob(url, tmp_path / "file"), make_client())
    assert dns.lookups == []


def test_download_local_address_is_refused_by_default(server, get, tmp_path):
    for host in ("127.0.0.1", "2130706433", "127.1", "localhost"):
        with pytest.raises(DownloadError, match="not a public address"):
            download(DownloadJob(server.url("good", host), tmp_path / "file"), HttpClient())
    assert server.requests == []


def test_download_name_with_a_private_address_is_refused(server, dns, tmp_path, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("connected"))
    for addresses in (["10.0.0.1"], ["8.8.8.8", "192.168.0.1"], ["8.8.8.8", "127.0.0.1"]):
        dns.addresses["shop.test"] = addresses
        with pytest.raises(DownloadError, match="not a public address"):
            download(DownloadJob("http://shop.test/x", tmp_path / "file"), HttpClient())
    with pytest.raises(DownloadError, match="cannot be resolved"):
        download(DownloadJob("http://nowhere.test/x", tmp_path / "file"), HttpClient())


def test_download_host_name_connects_to_the_checked_address(server, dns, make_client, tmp_path):
    dns.addresses["shop.test"] = ["127.0.0.1"]
    download(DownloadJob(server.url("good", "shop.test"), tmp_path / "file"), make_client())
    assert dns.lookups == ["shop.test"]
    assert server.requests[0].headers["Host"] == f"shop.test:{server.server_port}"


def test_download_tls_checks_the_host_name_and_refuses_redirects_to_http(
    certificate, dns, make_client, server, tmp_path, monkeypatch
):
    dns.addresses.update(
        {"shop.test": ["127.0.0.1"], "other.test": ["127.0.0.1"], "127.0.0.1": ["127.0.0.1"]}
    )
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.cert")
    with closing(HostileServer(certificate)) as tls_server:
        downloaded = download(
            DownloadJob(tls_server.url("truncated", "shop.test"), tmp_path / "file"), make_client()
        )
        assert downloaded.path.read_bytes() == BODY
        assert tls_server.sni_names == ["shop.test"] * 2
        with pytest.raises(DownloadError, match=r"the certificate of .* is invalid"):
            download(DownloadJob(tls_server.url("good", "other.test"), tmp_path / "file"), make_client())
        http_url = server.url("good")
        with pytest.raises(DownloadError, match="from https to http"):
            download(
                DownloadJob(tls_server.url(f"redirect?to={http_url}", "shop.test"), tmp_path / "file"),
                make_client(),
            )
        redirect_url = server.url(f"redirect?to={tls_server.url('good', 'shop.test')}")
        assert download(DownloadJob(redirect_url, tmp_path / "up"), make_client()).size == len(BODY)
        monkeypatch.delenv("SSL_CERT_FILE")
        with pytest.raises(DownloadError, match=r"the certificate of .* is invalid"):
            download(DownloadJob(tls_server.url("good", "shop.test"), tmp_path / "file"), make_client())
    assert [request.path.split("?")[0] for request in server.requests] == ["/redirect"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_download_redirects_are_followed(get, status):
    assert get(f"redirect?status={status}&to=/redirect?to=/good").size == len(BODY)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("redirect?to=file:///etc/passwd", "only http and https URLs"),
        ("redirect?to=ftp://a.org/x", "only http and https URLs"),
        ("redirect?to=http://me:pw@127.0.0.1/", "a user name or a password"),
        ("redirect?to=http://[", "invalid URL"),
        ("redirect?to=http://10.0.0.1/x", "10.0.0.1, not a public address"),
        ("redirect?to=http://169.254.169.254/latest", "not a public address"),
        ("redirect?to=//[::ffff:10.0.0.1]/", "not a public address"),
        ("loop", "redirected more than 5 times"),
    ],
)
def test_download_redirects_are_checked(get, server, path, message, monkeypatch):
    monkeypatch.setattr(http_client, "is_public", lambda ip: ip == "127.0.0.1" or is_public(ip))
    with pytest.raises(DownloadError, match=message.replace("[", r"\[")):
        get(path, allow_private=False)
    assert len(server.requests) == (6 if path == "loop" else 1)


@pytest.mark.parametrize("path", ["truncated", "weak"])
def test_download_truncated_response_is_resumed(get, server, waits, path, tmp_path):
    downloaded = get(path)
    assert downloaded.path.read_bytes() == BODY
    assert downloaded.received_bytes == len(BODY)
    assert server.requests[1].headers["Range"] == f"bytes={HALF}-"
    assert len([wait for wait in waits if wait >= 1]) == 1
    assert file_names(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("path", "body", "requests"),
    [
        ("ignores-range", BODY, 2),
        ("changed-file", OTHER_BODY, 2),
        ("shorter-file", OTHER_BODY, 3),
        ("other-version-part", BODY, 3),
        ("wrong-part", BODY, 3),
        ("no-validator", BODY, 2),
        ("chunked", BODY, 1),
        ("chunked?cut", BODY, 2),
    ],
)
def test_download_parts_of_two_versions_are_never_joined(get, server, path, body, requests):
    assert get(path).path.read_bytes() == body
    assert len(server.requests) == requests


def test_download_partial_file_is_resumed_only_for_its_url(get, server, tmp_path):
    partial_path, state_path = tmp_path / "file.part", tmp_path / "file.part.json"
    with pytest.raises(DownloadError, match=r"ended at 150,000 of 300,003 bytes"):
        get("truncated", max_attempts=1)
    assert json.loads(state_path.read_text())["validator"] == '"one"'
    saved = partial_path.read_bytes(), state_path.read_text()
    assert saved[0] == BODY[:HALF]
    assert get("truncated", max_attempts=1).received_bytes == len(BODY) - HALF
    partial_path.write_bytes(BODY)  # complete, but the run ended before the rename
    state_path.write_text(saved[1])
    assert get("truncated", max_attempts=1).received_bytes == 0
    assert len(server.requests) == 2
    for damaged_state in (
        "{",
        "[]",
        saved[1].replace("one", "o\\r\\nX: y"),
        saved[1].replace("/truncated", "/other"),
        "",
    ):
        partial_path.write_bytes(saved[0])
        state_path.write_text(damaged_state) if damaged_state else state_path.unlink(missing_ok=True)
        assert get("truncated", max_attempts=1).received_bytes == len(BODY)
        assert server.requests[-1].headers["Range"] is None


@pytest.mark.parametrize(
    ("path", "message", "requests"),
    [
        ("missing-bytes", "ended at 300,003 of 301,003", 3),
        ("surplus-bytes", "sent more than the announced", 3),
        ("huge", "exceed the limit of 1,000,000", 1),
        ("endless", "exceeds the limit of 1,000,000", 1),
        ("endless?chunked=1", "exceeds the limit of 1,000,000", 1),
        ("html", "not a gzip file", 1),
        ("encoded", "Content-Encoding 'br'", 1),
        ("no-http", "connection lost", 3),
        ("status?status=404", "status 404", 1),
        ("status?status=403", "status 403", 1),
        ("status?status=204", "status 204", 1),
        ("status?status=206", "a part that does not fit", 3),
        ("status?status=500", "status 500", 3),
        ("status?status=429", "status 429", 3),
    ],
)
def test_download_invalid_response_is_refused(get, server, tmp_path, path, message, requests):
    with pytest.raises(DownloadError, match=message) as error_info:
        get(path, max_attempts=3, max_bytes=1_000_000)
    assert str(error_info.value).isprintable()
    assert len(server.requests) == requests
    assert file_names(tmp_path) in ([], ["file.part", "file.part.json"])
    assert path == "missing-bytes" or not (tmp_path / "file.part").exists()


@pytest.mark.parametrize("path", ["stalls", "stalls-before", "slow-bytes", "slow-bytes?headers"])
def test_download_stalled_server_times_out(get, path):
    start = time.monotonic()
    with pytest.raises(DownloadError, match="the server stopped sending data"):
        get(path, max_attempts=1, stall_timeout_s=0.3)
    assert time.monotonic() - start < 5


def test_download_repeated_failures_wait_exponentially_with_jitter(get, waits):
    get("status?status=500&times=4")
    waits = [wait for wait in waits if wait >= 1]
    assert len(waits) == 4
    assert all(2**n <= wait <= 1.5 * 2**n for n, wait in enumerate(waits))
    assert len({wait / 2**n for n, wait in enumerate(waits)}) == 4


@pytest.mark.parametrize(
    ("status", "after", "wait"),
    [
        (429, "7", 7),
        (503, "7", 7),
        (429, "99999", 120),
        (503, "date", 0),
        (429, "Mon, 01 Jan 99999999999999999999 00:00:00 GMT", 1),
    ],
)
def test_download_retry_after_is_respected(get, waits, status, after, wait):
    get(f"status?status={status}&times=1&after={after}")
    assert max(waits, default=0) == pytest.approx(wait, abs=0.5)


def test_download_with_progress_resets_the_failure_count(get, server, monkeypatch):
    with pytest.raises(DownloadError, match="download ended at"):
        get("thirds", max_attempts=2)
    monkeypatch.setattr("hafvt.data.download.RETRY_RESET_BYTES", 100_000)
    (get("thirds", max_attempts=2).path).unlink()
    assert get("thirds", max_attempts=2).path.read_bytes() == BODY
    assert len(server.requests) == 2 + 1 + 3


@pytest.mark.parametrize("kind", PICTURES)
def test_download_picture_suffix_follows_the_first_bytes(get, kind, tmp_path):
    downloaded = get(f"picture/x.exe?is={kind}", file_type=PICTURE)
    assert downloaded.path == tmp_path / f"file.{kind}"
    assert downloaded.path.read_bytes() == PICTURES[kind]


def test_download_content_that_is_not_a_picture_is_refused(get, tmp_path):
    for path in ("good/x.jpg", "html", "status?status=200"):
        with pytest.raises(DownloadError, match="not a picture"):
            get(path, file_type=PICTURE)
    assert file_names(tmp_path) == []


def test_download_to_a_path_that_cannot_be_written_is_not_retried(get, tmp_path, server):
    (tmp_path / "file.part").mkdir()
    with pytest.raises(HafvtError, match=r"file cannot be written \(Is a directory\): check") as error_info:
        get("good")
    assert not isinstance(error_info.value, DownloadError)
    assert len(server.requests) == 1


@pytest.mark.parametrize("path", ["good", "endless"])
def test_download_full_disk_names_the_file_and_is_not_retried(get, tmp_path, server, path):
    (tmp_path / "file.part").symlink_to("/dev/full")
    needed = r"0\.3 MiB more are needed, " if path == "good" else ""
    message = rf"/file: the disk is full: {needed}[\d,.]+ MiB are free, the 0\.0 MiB so far are kept"
    with pytest.raises(HafvtError, match=message) as error_info:
        get(path)
    assert not isinstance(error_info.value, DownloadError)
    assert len(server.requests) == 1


def test_download_larger_than_the_free_space_is_refused_before_it_is_received(get, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**17))
    with pytest.raises(HafvtError, match=r"0\.3 MiB more are needed, 0\.1 MiB are free"):
        get("good")
    assert file_names(tmp_path) == []
    monkeypatch.undo()
    assert get("good").size == len(BODY)
