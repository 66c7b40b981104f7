"""Many downloads from several hosts in parallel."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from hafvt.data import http_client
from hafvt.data.download import DownloadedFile, DownloadError, DownloadJob, download, download_all
from tests.data.sources.hostile_server import BODY


def test_download_all_limits_the_rate_of_each_host(server, waits, make_client, dns, tmp_path):
    dns.addresses.update({"a.test": ["127.0.0.1"], "b.test": ["127.0.0.1"]})
    client = make_client(requests_per_second=0.5, clock=lambda: 100.0)
    urls = [server.url(path, f"{host}.test") for host in "ab" for path in ("good", "redirect?to=/good")]
    jobs = [DownloadJob(url, tmp_path / f"{n}") for n, url in enumerate(urls)]
    assert all(isinstance(result, DownloadedFile) for _, result in download_all(jobs, client, parallel=4))
    assert sorted(waits) == [2, 2, 4, 4]  # three requests per host; the first without a wait


def test_download_retry_after_delays_other_files_of_the_host(server, waits, make_client, tmp_path):
    client = make_client(max_attempts=1, clock=lambda: 100.0)
    with pytest.raises(DownloadError):
        download(DownloadJob(server.url("status?status=429&after=50"), tmp_path / "a"), client)
    download(DownloadJob(server.url("good"), tmp_path / "b"), client)
    assert waits == [50]


def test_download_all_skips_hosts_without_responses(server, make_client, tmp_path, monkeypatch):
    monkeypatch.setattr(http_client, "MAX_FAILED_FILES", 3)
    paths = ["status?status=500", "status?status=500", "status?status=404", *["status?status=500"] * 6]
    jobs = [DownloadJob(server.url(path), tmp_path / f"{n}") for n, path in enumerate(paths)]
    results = dict(download_all(jobs, make_client(max_attempts=1), parallel=1))
    assert len(server.requests) == 6
    assert ["is unavailable" in results[job].problem for job in jobs] == [False] * 6 + [True] * 3


def test_download_all_with_a_failure_continues_in_parallel(server, make_client, tmp_path):
    jobs = [DownloadJob(server.url(f"parallel/{n}"), tmp_path / f"{n}") for n in range(2)]
    jobs.append(DownloadJob(server.url("status?status=404"), tmp_path / "dead"))
    received = []
    results = dict(download_all(jobs, make_client(), parallel=3, on_bytes=received.append))
    assert [type(results[job]) for job in jobs] == [DownloadedFile, DownloadedFile, DownloadError]
    assert sum(received) == 2 * len(BODY)


def test_download_all_closed_generator_stops_downloads(server, make_client, tmp_path):
    jobs = [
        DownloadJob(server.url(path), tmp_path / path)
        for path in ("good", *(f"stalls/{n}" for n in range(9)))
    ]
    start = time.monotonic()
    with closing(download_all(jobs, make_client(stall_timeout_s=60), parallel=2)) as results:
        next(results)
    assert time.monotonic() - start < 5
    assert len(server.requests) <= 4
