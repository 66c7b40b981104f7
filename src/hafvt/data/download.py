"""Downloads of untrusted files: limited in size, resumable, and in parallel."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPResponse
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

from hafvt.data.http_client import POLL_INTERVAL_S, HttpClient, RequestError, iter_body, open_url, parse_url
from hafvt.errors import HafvtError
from hafvt.files import write_json

MIB = 2**20
SIGNATURE_BYTES = 16  # first bytes of a file that identify its type
HEADER_VALUE = re.compile(r"[\x20-\x7e]{1,200}")  # is safe to send in a request
RETRY_RESET_BYTES = 2**20  # an attempt with this much progress resets the count of failures


class DownloadError(HafvtError):
    """A file cannot be downloaded, because of `problem` (a few words); other files may still succeed."""

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"{url[:200]!r}: {problem}")
        self.problem = problem


@dataclass(frozen=True, eq=False)
class FileType:
    """A type of file: its name in messages, and patterns of its first 16 bytes by the suffix of its name."""

    name: str
    signatures: dict[str, bytes]


ANY_FILE = FileType("file", {"": b""})


class PartialState(NamedTuple):
    """The version of an incomplete file: URL, validator (ETag or Last-Modified), total size if announced."""

    url: str
    validator: str
    total: int | None


@dataclass(frozen=True)
class DownloadJob:
    """A file to download.

    Attributes:
        url: http or https.
        path: destination without the suffix that `file_type` appends.
        file_type: the wanted type; a file with other first bytes is refused.
    """

    url: str
    path: Path
    file_type: FileType = ANY_FILE

    @property
    def partial_path(self) -> Path:
        """The incomplete file: `path`.part."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def state_path(self) -> Path:
        """The `PartialState` of the incomplete file, as JSON: `path`.part.json."""
        return self.path.with_name(f"{self.path.name}.part.json")

    def finished_path(self) -> Path | None:
        """Return the path of the complete file; None if it does not exist."""
        paths = (self.path.with_name(self.path.name + suffix) for suffix in self.file_type.signatures)
        return next((path for path in paths if path.exists()), None)

    def partial_size(self) -> int:
        """Return the size of the incomplete file in bytes, 0 without one."""
        return self.partial_path.stat().st_size if self.partial_path.exists() else 0

    def read_state(self) -> PartialState | None:
        """Return the saved state of the incomplete file; None if the download cannot be resumed."""
        try:
            fields = json.loads(self.state_path.read_text(encoding="utf-8"))
            state = PartialState(fields["url"], fields["validator"], fields["total"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        is_valid = isinstance(state.validator, str) and HEADER_VALUE.fullmatch(state.validator)
        return state if is_valid and isinstance(state.total, int | None) and state.url == self.url else None

    def delete_partial(self) -> None:
        """Delete the incomplete file and its state."""
        self.partial_path.unlink(missing_ok=True)
        self.state_path.unlink(missing_ok=True)

    def reject(self, problem: str, *, is_retryable: bool = False) -> RequestError:
        """Delete the incomplete file, and return the error that says why; see `RequestError`."""
        self.delete_partial()
        return RequestError(problem, is_retryable=is_retryable)

    def checked_suffix(self, signature: bytes) -> str:
        """Return the suffix for a file's first bytes; raise RequestError if its type is unwanted."""
        for suffix, pattern in self.file_type.signatures.items():
            if re.match(pattern, signature, re.DOTALL):
                return suffix
        raise self.reject(f"not a {self.file_type.name}: perhaps an error page")

    def complete(self, signature: bytes) -> Path:
        """Move the complete download to its destination and return that path."""
        path = self.path.with_name(self.path.name + self.checked_suffix(signature))
        self.partial_path.replace(path)
        self.state_path.unlink(missing_ok=True)
        return path


class DownloadedFile(NamedTuple):
    """A complete file: its path, its size in bytes, and the bytes received in this run."""

    path: Path
    size: int
    received_bytes: int


def download(
    job: DownloadJob, client: HttpClient, on_bytes: Callable[[int], None] = lambda num_bytes: None
) -> DownloadedFile:
    """Download a file, or resume its download; the file appears at its path once it is complete.

    The size must equal the announced length. Without one, the file ends with the connection. `on_bytes` is
    called with the size of each received chunk, in bytes.

    Raises:
        DownloadError: the file cannot be downloaded; a later call resumes it.
        HafvtError: the file cannot be written.
        DownloadCancelled: `client.stop_event` was set.
    """
    num_failures, best_size, received_bytes = 0, 0, 0

    def add_bytes(num_bytes: int) -> None:
        nonlocal received_bytes
        received_bytes += num_bytes
        on_bytes(num_bytes)

    try:
        host = parse_url(job.url).host
        job.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            client.check_host(host)
            try:
                path = _attempt_download(job, client, add_bytes)
                client.record_file(host, has_response=True)
                return DownloadedFile(path, path.stat().st_size, received_bytes)
            except RequestError as failure:
                size = job.partial_size()
                if size >= best_size + RETRY_RESET_BYTES:
                    num_failures, best_size = 0, size
                num_failures += 1
                if not failure.is_retryable or num_failures >= client.max_attempts:
                    client.record_file(host, has_response=not failure.is_retryable)
                    raise
                if not failure.has_retry_after:
                    client.back_off(num_failures)
    except RequestError as failure:
        raise DownloadError(job.url, str(failure)) from None
    except OSError as error:  # network errors are RequestError, so this one is of the file system
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            state = job.read_state()
            total = state.total if state else None
            raise _disk_full(job, None if total is None else total - job.partial_size()) from None
        reason = f"{job.path} cannot be written ({error.strerror})"
        raise HafvtError(f"{reason}: check the path and its permissions, or choose another folder") from None


def download_all(
    jobs: Iterable[DownloadJob],
    client: HttpClient,
    parallel: int,
    on_bytes: Callable[[int], None] = lambda num_bytes: None,
) -> Generator[tuple[DownloadJob, DownloadedFile | DownloadError], None, None]:
    """Download files in parallel and yield each job with its result as soon as it ends.

    `parallel` files are downloaded at the same time, so `on_bytes` (see `download`) is called from several
    threads. Closing the generator stops the other downloads: use it with `contextlib.closing`.
    """
    finished: SimpleQueue[Future[DownloadedFile]] = SimpleQueue()
    with ThreadPoolExecutor(parallel) as pool:
        try:
            pending = {pool.submit(download, job, client, on_bytes): job for job in jobs}
            for future in pending:
                future.add_done_callback(finished.put)
            while pending:
                try:
                    # Polars installs a signal handler after which Ctrl-C ends only waits with a timeout.
                    future = finished.get(timeout=POLL_INTERVAL_S)
                except Empty:
                    continue
                error = future.exception()
                yield pending.pop(future), error if isinstance(error, DownloadError) else future.result()
        except BaseException:
            client.stop_event.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt_download(job: DownloadJob, client: HttpClient, on_bytes: Callable[[int], None]) -> Path:
    """Download the missing part of a file in one request and return the path of the complete file."""
    state = job.read_state()
    start = job.partial_size() if state else 0
    if state and start and start == state.total:
        with job.partial_path.open("rb") as partial_file:
            return job.complete(partial_file.read(SIGNATURE_BYTES))
    request_headers = {"Range": f"bytes={start}-", "If-Range": state.validator} if state and start else {}
    with open_url(job.url, request_headers, client) as (response, reader):
        start, total = _body_range(job, response, state, start)
        if (total or 0) > client.max_bytes:
            raise RequestError(f"{total:,} bytes exceed the limit of {client.max_bytes:,}")
        missing_bytes = None if total is None else total - job.partial_size()
        if (missing_bytes or 0) > shutil.disk_usage(job.path.parent).free:
            raise _disk_full(job, missing_bytes)
        with job.partial_path.open("r+b" if start else "w+b") as partial_file:
            if not start:
                state = PartialState(job.url, _validator(response.headers), total)
                write_json(job.state_path, state._asdict())
            signature = partial_file.read(SIGNATURE_BYTES)
            size = partial_file.seek(start)
            for chunk in iter_body(response, reader, None if total is None else total - start):
                partial_file.write(chunk)
                size += len(chunk)
                on_bytes(len(chunk))
                if size > client.max_bytes:
                    raise job.reject(f"the file exceeds the limit of {client.max_bytes:,} bytes")
                if len(signature) < SIGNATURE_BYTES:
                    signature += chunk[: SIGNATURE_BYTES - len(signature)]
                    if len(signature) == SIGNATURE_BYTES:
                        job.checked_suffix(signature)
            if total is not None and size > total:
                problem = f"the server sent more than the announced {total:,} bytes"
                raise job.reject(problem, is_retryable=True)
            if total is not None and size < total:
                raise RequestError(f"the download ended at {size:,} of {total:,} bytes", is_retryable=True)
            partial_file.flush()
            os.fsync(partial_file.fileno())
    return job.complete(signature)


def _disk_full(job: DownloadJob, missing_bytes: int | None) -> HafvtError:
    """Return the error for a full disk; `missing_bytes` is the size of the missing part, None if unknown."""
    needed = "" if missing_bytes is None else f"{missing_bytes / MIB:,.1f} MiB more are needed, "
    free = shutil.disk_usage(job.path.parent).free
    return HafvtError(
        f"{job.path}: the disk is full: {needed}{free / MIB:,.1f} MiB are free, the "
        f"{job.partial_size() / MIB:,.1f} MiB so far are kept. Make room, and run the command again to resume"
    )


def _body_range(
    job: DownloadJob, response: HTTPResponse, state: PartialState | None, start: int
) -> tuple[int, int | None]:
    """Check the headers of the response to a request for the bytes from `start`.

    Returns:
        The position in the file of the body's first byte (0 for the complete file), and the file's total size
        in bytes (None if unknown).

    Raises:
        RequestError: the response contains no part of the file, or a part of another version.
    """
    headers = response.headers
    if response.status == 416 and start:
        raise job.reject("the file on the server has become shorter", is_retryable=True)
    if response.status not in (200, 206):
        raise RequestError(f"the server responded with status {response.status}")
    if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
        raise RequestError(f"unsupported Content-Encoding {headers['Content-Encoding'][:40]!r}")
    if response.status == 200:
        length = re.fullmatch(r"\d{1,18}", headers.get("Content-Length", "").strip())
        return 0, int(length[0]) if length and not response.chunked else None
    content_range = headers.get("Content-Range", "").strip()
    match = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", content_range)
    if state and start and match and int(match[1]) == start:
        total = int(match[2])
        if state.total in (None, total) and _validator(headers) in ("", state.validator):
            return start, total
    raise job.reject("the server sent a part that does not fit", is_retryable=True)


def _validator(headers: Message) -> str:
    """Return the strong ETag or else the date that identifies a file's version; empty if there is none."""
    tag = headers.get("ETag", "").strip()
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "").strip()
    return validator if HEADER_VALUE.fullmatch(validator) else ""
