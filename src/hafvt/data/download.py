"""Files from the web: bounded, resumed, checked, in parallel. Hostile until proven harmless."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from hafvt.data.http_client import PATIENCE, SLICE_S, TryError, Web, open_url, parse, pieces
from hafvt.errors import HafvtError
from hafvt.files import write_json

HEAD = 16  # first bytes that tell what a file is
GAIN = 2**20  # a try that got this much further does not count as a failure


class DownloadError(HafvtError):
    """Why one file cannot be had; others still can.

    Args:
        url: its address.
        problem: what is wrong, in a few words.
    """

    def __init__(self, url: str, problem: str) -> None:
        super().__init__(f"{url[:200]!r}: {problem}")
        self.problem = problem


@dataclass(frozen=True)
class Job:
    """A file to fetch.

    Attributes:
        url: its address, http or https.
        path: where it goes; `path`.part and `path`.part.json stand beside it while it is under way.
        suffix_of: what to append to the name, by the first 16 bytes; raises ValueError where they are not of
            the kind that is wanted.
        checksum: "sha256:HEX" or "md5:HEX", where the publisher gives one.
    """

    url: str
    path: Path
    suffix_of: Callable[[bytes], str] = lambda head: ""
    checksum: str | None = None

    @property
    def part(self) -> Path:
        """What there is of the file so far."""
        return self.path.with_name(f"{self.path.name}.part")

    @property
    def note(self) -> Path:
        """Which version of the file the part is of: address, validator, size."""
        return self.path.with_name(f"{self.path.name}.part.json")


@dataclass(frozen=True)
class Downloaded:
    """A file that is there now: where, its size and how much of it came in this run, in bytes."""

    path: Path
    size: int
    moved: int


def download(job: Job, web: Web, told: Callable[[int], None] | None = None) -> Downloaded:
    """Fetches one file, or goes on with it; it appears under its name when it is whole.

    The length that a server announces is held against what comes; where it announces none, a body that ends
    with the connection counts as whole.

    Args:
        job: which file, and where to.
        web: bounds and manners.
        told: called with each number of bytes that came.

    Raises:
        DownloadError: the file cannot be had; what there is of it stays where another run can go on.
        HafvtError: it cannot be written.
        StopError: `web.stop` was set.
    """
    failures, best, moved = 0, 0, 0

    def tell(count: int) -> None:
        nonlocal moved
        moved += count
        if told is not None:
            told(count)

    try:
        host = parse(job.url).host
        job.path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            if web.given_up(host):
                raise TryError(f"{host} has left {PATIENCE} files in a row unanswered: try again later")
            try:
                path = _attempt(job, web, tell)
                web.answered(host, True)
                return Downloaded(path, path.stat().st_size, moved)
            except TryError as failure:
                size = job.part.stat().st_size if job.part.exists() else 0
                if size >= best + GAIN:
                    failures, best = 0, size
                failures += 1
                if not failure.again or failures >= web.tries:
                    web.answered(host, not failure.again)
                    raise
                if not failure.held:
                    web.back_off(failures)
    except TryError as failure:
        raise DownloadError(job.url, str(failure)) from None
    except OSError as error:  # those of the network are failures by now
        raise HafvtError(
            f"{job.path} cannot be written ({error.strerror}): make room or choose another folder; "
            "what has been fetched is kept"
        ) from None


def download_all(
    jobs: Iterable[Job], web: Web, *, parallel: int = 4, told: Callable[[int], None] | None = None
) -> Generator[tuple[Job, Downloaded | DownloadError], None, None]:
    """Fetches files in parallel and yields each as it is done, with what became of it.

    Closing the iterator stops the rest, so put it into `contextlib.closing`.

    Args:
        jobs: the files; no two of one path.
        web: bounds and manners, shared.
        parallel: how many at a time.
        told: see `download`; called from any thread.
    """
    done: SimpleQueue[tuple[Job, Downloaded | Exception]] = SimpleQueue()

    def one(job: Job) -> None:
        try:
            done.put((job, download(job, web, told)))
        except Exception as error:
            done.put((job, error))

    with ThreadPoolExecutor(parallel) as pool:
        try:
            left = len([pool.submit(one, job) for job in jobs])
            while left:
                try:
                    # With a limit: once polars has set its handler, Ctrl-C does not end an endless wait.
                    job, result = done.get(timeout=SLICE_S)
                except Empty:
                    continue
                left -= 1
                if not isinstance(result, Downloaded | DownloadError):
                    raise result
                yield job, result
        except BaseException:
            web.stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _attempt(job: Job, web: Web, tell: Callable[[int], None]) -> Path:
    """Fetches what is missing of a file and returns where the whole file lies."""
    known = _known(job)
    start = job.part.stat().st_size if known and job.part.exists() else 0
    if start and start == known["total"]:
        with job.part.open("rb") as part:
            return _finish(job, _suffix(job, part.read(HEAD)))
    asked = {"Range": f"bytes={start}-", "If-Range": known["validator"]} if start else {}
    with open_url(job.url, asked, web) as (response, wire):
        headers = response.headers
        if response.status == 416 and start:
            _forget(job)
            raise TryError("the file has become shorter on its server", again=True)
        if response.status not in (200, 206):
            raise TryError(f"the server answers {response.status}")
        if headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity"):
            raise TryError(f"encoded as {headers['Content-Encoding'][:40]!r}, which nobody asked for")
        validator = _validator(headers)
        if response.status == 206:
            total = _rest(headers, start)
            if known.get("total") not in (None, total) or validator not in ("", known.get("validator")):
                total = None
            if not start or total is None:
                _forget(job)
                raise TryError("the server sends another part than the one that is missing", again=True)
        else:
            start, total = 0, None if response.chunked else _length(headers)
        if (total or 0) > web.max_bytes:
            raise TryError(f"{total:,} bytes are more than the {web.max_bytes:,} that are allowed")
        with job.part.open("r+b" if start else "w+b") as part:
            head = part.read(HEAD)
            size = part.seek(start)
            if not start:
                known = {"url": job.url, "validator": validator, "total": total}
                write_json(job.note, known)
            for piece in pieces(response, wire, None if total is None else total - start):
                part.write(piece)
                size += len(piece)
                tell(len(piece))
                if size > web.max_bytes:
                    _forget(job)
                    raise TryError(f"larger than the {web.max_bytes:,} bytes that are allowed")
                if len(head) < HEAD:
                    head += piece[: HEAD - len(head)]
                    if len(head) == HEAD:
                        _suffix(job, head)
            if total is not None and size > total:
                _forget(job)
                raise TryError(f"more comes than the {total:,} bytes that were announced", again=True)
            if total is not None and size < total:
                raise TryError(f"cut short at {size:,} of {total:,} bytes", again=True)
            part.flush()
            os.fsync(part.fileno())
    return _finish(job, _suffix(job, head))


def _suffix(job: Job, head: bytes) -> str:
    """Returns what to append to a file's name; forgets the file where its first bytes are of another kind."""
    try:
        return job.suffix_of(head)
    except ValueError as error:
        _forget(job)
        raise TryError(str(error)) from None


def _finish(job: Job, suffix: str) -> Path:
    """Holds a whole file against its checksum and gives it its name."""
    if job.checksum:
        algorithm, _, expected = job.checksum.partition(":")
        with job.part.open("rb") as part:
            found = hashlib.file_digest(part, algorithm).hexdigest()
        if found != expected.lower():
            _forget(job)
            raise TryError(f"its {algorithm} is {found}, the publisher's is {expected}")
    path = job.path.with_name(job.path.name + suffix)
    job.part.replace(path)
    job.note.unlink(missing_ok=True)
    return path


def _known(job: Job) -> dict[str, Any]:
    """Returns what the note says of the part; nothing where the part is of no use."""
    try:
        note = json.loads(job.note.read_text(encoding="utf-8"))
        url, validator, total = note["url"], note["validator"], note["total"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    whole = isinstance(validator, str) and _line(validator) and isinstance(total, int | None)
    return note if whole and url == job.url else {}


def _forget(job: Job) -> None:
    """Removes the part."""
    job.part.unlink(missing_ok=True)
    job.note.unlink(missing_ok=True)


def _validator(headers: Message) -> str:
    """Returns what tells one version of a file from another; empty where the server does not say."""
    tag = headers.get("ETag", "").strip()
    validator = tag if tag and not tag.startswith("W/") else headers.get("Last-Modified", "").strip()
    return validator if _line(validator) else ""


def _line(text: str) -> bool:
    """Whether `text` may stand in a header that we send."""
    return re.fullmatch(r"[\x20-\x7e]{1,200}", text) is not None


def _rest(headers: Message, start: int) -> int | None:
    """Returns the size of the whole file, of which the bytes from `start` come; None where others come."""
    span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18})", headers.get("Content-Range", "").strip())
    return int(span[2]) if span and int(span[1]) == start else None


def _length(headers: Message) -> int | None:
    """Returns the announced length of a body in bytes; None where there is none."""
    said = headers.get("Content-Length", "").strip()
    return int(said) if re.fullmatch(r"\d{1,18}", said) else None
