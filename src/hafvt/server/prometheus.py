"""The metrics of a server, as Prometheus reads them."""

from __future__ import annotations

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from hafvt.progress import memory_gib

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)

prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # no hafvt_*_created samples


class ServerMetrics:
    """The metrics of one server, in a registry of its own.

    A route is counted by its pattern, such as /items/{item_id}; the outcome of a reload is "ok" or "failed".
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("hafvt_requests", "Requests.", ("route", "status"), registry=registry)
        self.seconds = Histogram(
            "hafvt_request_seconds", "Seconds to answer.", ("route",), buckets=SECONDS, registry=registry
        )
        self.batch_size = Histogram(
            "hafvt_batch_size", "Requests answered together.", buckets=BATCH_SIZES, registry=registry
        )
        self.reloads = Counter(
            "hafvt_reloads", "Models loaded after the first.", ("outcome",), registry=registry
        )
        for outcome in ("ok", "failed"):
            self.reloads.labels(outcome)  # so that 0 is reported
        self.queue_depth = Gauge("hafvt_queue_depth", "Requests that wait for the model.", registry=registry)
        self.num_items = Gauge("hafvt_items", "Items of the catalog.", registry=registry)
        self.ready = Gauge("hafvt_ready", "Whether a model is loaded.", registry=registry)
        memory = Gauge("hafvt_resident_memory_bytes", "Resident memory.", registry=registry)
        memory.set_function(lambda: memory_gib() * 2**30)

    def count_request(self, route: str, status: int, seconds: float) -> None:
        """Counts a request under its route pattern and status."""
        self.requests.labels(route, status).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return prometheus_client.generate_latest(self.registry)
