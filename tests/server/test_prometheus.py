"""Metrics as Prometheus reads them."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from hafvt.server.prometheus import ServerMetrics


def test_server_metrics_text_has_every_metric_once():
    metrics = ServerMetrics()
    metrics.count_request("/items", 200, 0.02)
    metrics.count_request("/items", 404, 0.01)
    metrics.batch_size.observe(3)
    metrics.num_items.set(50)
    families = {family.name: family for family in text_string_to_metric_families(metrics.text().decode())}
    assert {name: family.type for name, family in families.items()} == {
        "hafvt_requests": "counter",
        "hafvt_request_seconds": "histogram",
        "hafvt_batch_size": "histogram",
        "hafvt_reloads": "counter",
        "hafvt_queue_depth": "gauge",
        "hafvt_items": "gauge",
        "hafvt_ready": "gauge",
        "hafvt_resident_memory_bytes": "gauge",
    }
    samples = [sample for family in families.values() for sample in family.samples]
    values = {
        (sample.name, *(label for _, label in sorted(sample.labels.items()))): sample.value
        for sample in samples
    }
    assert len(values) == len(samples)
    assert values["hafvt_requests_total", "/items", "200"] == 1
    assert values["hafvt_request_seconds_count", "/items"] == 2
    assert values["hafvt_request_seconds_bucket", "0.01", "/items"] == 1
    assert values["hafvt_batch_size_bucket", "2.0"] == 0
    assert values["hafvt_batch_size_bucket", "4.0"] == 1
    assert values["hafvt_reloads_total", "failed"] == 0
    assert values["hafvt_items",] == 50
    assert values["hafvt_resident_memory_bytes",] > 2**20
