"""Map a function over parts of the work, here or on a Ray cluster, so that an interrupted command continues.

A part has one input and one output, a file or folder that appears complete or not at all. Parts whose output
exists are not done again.
"""

from __future__ import annotations

import os
import shutil
import socket
import warnings
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from hafvt.errors import HafvtError, HafvtWarning, missing_package, warn
from hafvt.progress import progress
from hafvt.remote import exists, output_file

MAX_ATTEMPTS = 4  # of a part whose worker is lost, such as with its machine
CONNECT_S = 10.0  # to reach a cluster; Ray itself would try for minutes

Work = Callable[[Any, Path], Any]
"""`work(value, path)` writes the output of a part to `path`, a file or folder, and returns a small result."""


class Part(NamedTuple):
    """One part of the work.

    Attributes:
        name: of the input, for messages, such as the path of a file.
        value: the input, as `Work` gets it. On Ray it is copied to the worker, so name large inputs by path.
        out: the file or folder that the part becomes, or the address of a file, such as s3://bucket/file. All
            machines of a cluster share its folder.
        size: number of units, for the progress.
    """

    name: str
    value: Any
    out: str | Path
    size: int = 1


class PartResult(NamedTuple):
    """What a worker returns for a part: the result of `Work`, an error message or "", and warnings."""

    result: Any
    error: str
    warnings: list[str]


def map_parts(
    title: str,
    open_work: Callable[[], Work],
    parts: Sequence[Part],
    *,
    unit: str = "parts",
    ray: str | None = None,
    use_gpus: bool = False,
) -> dict[str, Any]:
    """Call a function for each part whose output does not exist yet.

    Without `ray`, the parts run here, one after the other. With it, each CPU or GPU of the cluster gets an
    actor, and an actor that is free gets the next part. A part whose worker is lost runs again on another,
    at most `MAX_ATTEMPTS` times in all. The outputs are the same in both cases if `Work` is a pure function.

    Example:
        map_parts("sort", lambda: sort_bucket, [Part(str(path), path, out / path.name) for path in buckets])

    Args:
        title: of the progress.
        open_work: returns the function; called once in each process that works, for example to open a model.
        parts: their outputs are distinct.
        unit: name of a unit of `Part.size`.
        ray: address of a Ray cluster, "auto" for the one of this machine, or "local" to start one here.
        use_gpus: start one actor for each GPU of the cluster if it has any.

    Returns:
        The results by name of the part, in the order of `parts`, only of those that this call has done.

    Raises:
        HafvtError: a part failed; or Ray is not installed, or cannot be reached.
    """
    missing = [part for part in parts if not exists(part.out)]
    done = sum(part.size for part in parts) - sum(part.size for part in missing)
    results = dict[str, Any]()
    outcomes = (
        _run_here(open_work, missing) if ray is None else _run_on_ray(ray, open_work, missing, use_gpus)
    )
    with (
        closing(outcomes),  # after an error, the actors end
        progress(title, sum(part.size for part in parts), unit, done=done) as advance,
    ):
        for part, outcome in outcomes:
            for message in outcome.warnings:
                warn(message)
            if outcome.error:
                raise HafvtError(outcome.error)
            results[part.name] = outcome.result
            advance(part.size)
    return {part.name: results[part.name] for part in missing}


def _run_here(open_work: Callable[[], Work], parts: Sequence[Part]) -> Generator[tuple[Part, PartResult]]:
    """Yield the outcome of each part, done in this process."""
    work = open_work() if parts else None
    for part in parts:
        assert work is not None
        yield part, PartResult(_write(work, part), "", [])


def _write(work: Work, part: Part) -> Any:
    """Write the output of a part atomically, and return the result; an unexpected error names the part."""
    try:
        with output_file(part.out) as temporary:
            try:
                return work(part.value, temporary)
            except BaseException:
                if temporary.is_dir():
                    shutil.rmtree(temporary)
                raise
    except (HafvtError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise HafvtError(
            f"{part.name} failed ({reason[:300]}): correct or remove it, and start again"
        ) from error


class Worker:
    """Does parts in a process of a Ray cluster; becomes an actor."""

    def __init__(self, open_work: Callable[[], Work]) -> None:
        self.open_work = open_work
        self.work: Work | None = None

    def ready(self) -> None:
        """Return once the process runs."""

    def run(self, part: Part) -> PartResult:
        """Return the outcome of a part; errors that the user can fix are messages, as Ray copies objects."""
        with warnings.catch_warnings(record=True, action="always", category=HafvtWarning) as caught:
            try:
                self.work = self.work or self.open_work()
                result, error = _write(self.work, part), ""
            except HafvtError as failure:
                result, error = None, str(failure)
            except MemoryError:
                result, error = None, f"{part.name}: the memory of its machine is not enough"
        messages = [str(one.message) for one in caught if issubclass(one.category, HafvtWarning)]
        return PartResult(result, error, list(dict.fromkeys(messages)))


def _run_on_ray(
    address: str, open_work: Callable[[], Work], parts: Sequence[Part], use_gpus: bool
) -> Generator[tuple[Part, PartResult]]:
    """Yield the outcome of each part, done by actors of a Ray cluster, in the order in which they end."""
    with ray_cluster(address) as ray:
        resources = ray.cluster_resources()
        num_gpus = int(resources.get("GPU", 0)) if use_gpus else 0
        num_actors = min(len(parts), num_gpus or int(resources.get("CPU", 1)))
        actor_class = ray.remote(Worker).options(num_cpus=1, num_gpus=1 if num_gpus else 0)
        queue, idle, attempts = deque(parts), list[Any](), Counter[str]()
        running: dict[Any, tuple[Any, Part | None]] = {}  # by call: the actor, and its part once it is ready

        def start_actor() -> None:
            actor = actor_class.remote(open_work)
            running[actor.ready.remote()] = actor, None

        for _ in range(num_actors):
            start_actor()
        num_left = len(parts)
        while num_left:
            call = ray.wait(list(running))[0][0]
            actor, part = running.pop(call)
            try:
                outcome = ray.get(call)
                idle.append(actor)
            except ray.exceptions.RayError as error:  # the actor, or its machine, is lost
                name = part.name if part else "a worker"
                attempts[name] += 1
                if attempts[name] >= MAX_ATTEMPTS:
                    raise HafvtError(_lost_message(name, error)) from None
                if part is not None:
                    queue.appendleft(part)
                start_actor()
                part = None
            if part is not None:
                if not outcome.error and not exists(part.out):
                    raise HafvtError(
                        f"{part.out} was written on another machine: name a folder that all machines share"
                    )
                num_left -= 1
                yield part, outcome
            while queue and idle:
                actor, part = idle.pop(), queue.popleft()
                running[actor.run.remote(part)] = actor, part


def _lost_message(name: str, error: Exception) -> str:
    """Return the message for a part, or an actor without one, that was lost too often."""
    reason = str(error).strip().splitlines()[-1].strip()[:300]
    return (
        f"{name}: its process was lost {MAX_ATTEMPTS} times ({reason}): check the memory of the machines, "
        "and that all have the same hafvt"
    )


def num_gpus() -> int:
    """Return the number of GPUs of the Ray cluster that this process is connected to, see `ray_cluster`."""
    import ray  # an extra

    return int(ray.cluster_resources().get("GPU", 0))


@contextmanager
def ray_cluster(address: str, num_cpus: int | None = None) -> Iterator[Any]:
    """Yield the module `ray`, connected to a cluster; a cluster that this process is connected to stays.

    Args:
        address: "local" starts a cluster of this machine, bound to loopback, for the block; "auto", HOST:PORT
            or ray://HOST:PORT connect to one that runs.
        num_cpus: of a cluster that "local" starts; default: all of this machine.

    Raises:
        HafvtError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # binds to loopback on Linux, too
    try:
        import ray
    except ImportError:
        raise missing_package("cluster", "ray") from None
    if ray.is_initialized():
        yield ray
        return
    try:
        _check_reachable(address)
        ray.init(
            address, num_cpus=num_cpus, include_dashboard=False, log_to_driver=False, logging_level="ERROR"
        )
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise HafvtError(
            f"--ray {address}: no Ray cluster answers ({reason}): start one with `ray start --head`, "
            "or give --ray local"
        ) from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise OSError if nothing listens at HOST:PORT or ray://HOST:PORT."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
