"""Counters as Prometheus reads them."""

from __future__ import annotations

from hafvt.server.prometheus import Histogram, Metrics


def test_a_histogram_counts_up_to_each_bound():
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 9):
        histogram.observe(value)
    assert list(histogram.lines("h", 'a="b"')) == [
        'h_bucket{a="b",le="1"} 2',
        'h_bucket{a="b",le="2"} 3',
        'h_bucket{a="b",le="+Inf"} 4',
        'h_sum{a="b"} 12.000000',
        'h_count{a="b"} 4',
    ]


def test_the_text_has_every_counter_once_and_its_kind():
    metrics = Metrics()
    metrics.answered("/items", 200, 0.02)
    metrics.answered("/items", 404, 0.01)
    text = metrics.text({"hafvt_items": ("Items.", 50)})
    assert 'hafvt_requests_total{route="/items",status="200"} 1' in text
    assert 'hafvt_request_seconds_count{route="/items"} 2' in text
    assert "hafvt_items 50\n" in text
    samples = [line.split(" ")[0] for line in text.splitlines() if not line.startswith("#")]
    assert len(samples) == len(set(samples))
    kinds = [line.split(" ")[2] for line in text.splitlines() if line.startswith("# TYPE")]
    assert len(kinds) == len(set(kinds))
    assert all(any(sample.startswith(kind) for kind in kinds) for sample in samples)
