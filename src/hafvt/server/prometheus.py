"""What a server counts, as Prometheus reads it. Touched by the event loop alone, so without locks."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from hafvt.progress import memory_gib

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SIZES = (1, 2, 4, 8, 16, 32, 64)


class Histogram:
    """Counts observations by upper bounds.

    Args:
        bounds: ascending; what is above the last one counts as well.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.sum = bounds, [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, label: str = "") -> Iterator[str]:
        """Yields the samples; `label` is like 'route="/items"'."""
        comma, total = "," if label else "", 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            yield f'{name}_bucket{{{label}{comma}le="{bound}"}} {total}'
        braces = f"{{{label}}}" if label else ""
        yield f"{name}_sum{braces} {self.sum:.6f}"
        yield f"{name}_count{braces} {total}"


class Metrics:
    """The counters of one server.

    Attributes:
        requests: by route and status.
        seconds: from a request's first byte of headers to the end of its answer, by route.
        batches: how many questions were answered together.
        reloads: by outcome, "ok" or "failed".
    """

    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.batches = Histogram(SIZES)
        self.reloads: Counter[str] = Counter({"ok": 0, "failed": 0})

    def answered(self, route: str, status: int, seconds: float) -> None:
        """Counts a request. `route` is a pattern such as /items/{item_id}: there are few of them."""
        self.requests[route, status] += 1
        self.seconds.setdefault(route, Histogram(SECONDS)).observe(seconds)

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """Returns everything in Prometheus' text format.

        Args:
            gauges: what is so at this moment: name -> (help, value).
        """
        lines = _head("hafvt_requests_total", "counter", "Requests by route and status.")
        lines += [
            f'hafvt_requests_total{{route="{route}",status="{status}"}} {count}'
            for (route, status), count in sorted(self.requests.items())
        ]
        lines += _head("hafvt_request_seconds", "histogram", "Seconds from request to answer, by route.")
        for route, histogram in sorted(self.seconds.items()):
            lines += histogram.lines("hafvt_request_seconds", f'route="{route}"')
        lines += _head("hafvt_batch_size", "histogram", "Questions answered together.")
        lines += self.batches.lines("hafvt_batch_size")
        lines += _head("hafvt_reloads_total", "counter", "Models loaded, the first one included.")
        lines += [f'hafvt_reloads_total{{outcome="{o}"}} {n}' for o, n in sorted(self.reloads.items())]
        resident = ("Resident memory of the process.", memory_gib() * 2**30)
        for name, (said, value) in {**gauges, "hafvt_resident_memory_bytes": resident}.items():
            lines += [*_head(name, "gauge", said), f"{name} {value:.0f}"]
        return "\n".join(lines) + "\n"


def _head(name: str, kind: str, said: str) -> list[str]:
    return [f"# HELP {name} {said}", f"# TYPE {name} {kind}"]
