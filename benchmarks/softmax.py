"""How fast, and in how much memory, is the softmax over a catalogue?

Run: python benchmarks/softmax.py [--quick]

For each implementation, dtype, catalogue size and width: forward and backward of `log_partition`, with a
frozen table (gradients of the queries alone) and a learned one. The full run writes results/softmax.md and
.json beside this file; --quick only prints. With OMP_NUM_THREADS=1 the time is CPU time, which others' work
on the machine disturbs little.

Rates count useful operations, alike for all, whatever each computes anew: with N queries, V items and width d
2NVd for the log-partition, 2NVd for the gradient of the queries, 4NVd more for that of a learned table. (With
stored logits 2NVd are enough for the latter: "plain" is flattered in learned mode.)
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe, sentence
from torch.profiler import ProfilerActivity, profile

from hafvt.files import atomic_file, write_json
from hafvt.ops.catalogue_softmax import Implementation, log_partition
from hafvt.progress import progress

RESULTS = Path(__file__).parent / "results"
QUERIES = 1024
IMPLS: tuple[tuple[Implementation, str], ...] = (
    ("attention", "float32"),
    ("attention", "bfloat16"),
    ("chunked", "float32"),
    ("chunked", "bfloat16"),
    ("plain", "float32"),  # the reference computes in float32 whatever the table is stored in
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the softmax over a catalogue.")
    parser.add_argument("--quick", action="store_true", help="the smallest catalogue only; writes nothing")
    quick = parser.parse_args().quick
    sizes, widths = ((8_000,), (256,)) if quick else ((8_000, 24_000, 64_000), (256, 512))
    cases = list(itertools.product(widths, sizes, (False, True), IMPLS))
    machine = setting()
    rows = []
    with progress("softmax", len(cases), "cases") as advance:
        for d, v, learned, (impl, dtype) in cases:
            rows.append(measure(v, d, learned, impl, dtype))
            advance(1, f"{impl} {dtype}")
    machine["load_at_end"] = round(os.getloadavg()[0], 1)
    text = markdown(machine, rows)
    print(text)
    if not quick:
        write_json(RESULTS / "softmax.json", {"machine": machine, "queries": QUERIES, "rows": rows})
        with atomic_file(RESULTS / "softmax.md") as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def measure(v: int, d: int, learned: bool, impl: Implementation, dtype: str) -> dict[str, Any]:
    """Returns seconds, extra peak memory and rate of one case."""
    torch.manual_seed(0)
    h = torch.nn.functional.normalize(torch.randn(QUERIES, d), dim=1).requires_grad_()
    table = (
        torch.nn.functional.normalize(torch.randn(v, d), dim=1)
        .to(getattr(torch, dtype))
        .requires_grad_(learned)
    )

    def step() -> None:
        h.grad = table.grad = None
        torch.autograd.backward(log_partition(h, table, 20.0, impl).sum())

    peak = peak_bytes(step)  # warms up as well
    seconds = best_seconds(step)
    operations = (8 if learned else 4) * QUERIES * v * d
    return {
        "d": d,
        "v": v,
        "table": "learned" if learned else "frozen",
        "impl": impl,
        "dtype": dtype,
        "seconds": round(seconds, 4),
        "peak_mib": round(peak / 2**20, 1),
        "gflop_per_s": round(operations / seconds / 1e9, 1),
    }


def clock() -> float:
    """Returns seconds: of CPU time with one thread, else of wall-clock time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def best_seconds(step: Callable[[], object]) -> float:
    """Returns the shortest of the runs that fit into 1.5 seconds, one at least: the least disturbed."""
    times: list[float] = []
    while sum(times) < 1.5:
        start = clock()
        step()
        times.append(clock() - start)
    return min(times)


def peak_bytes(step: Callable[[], object]) -> int:
    """Returns the most bytes that tensors held at a time, over what they held before; scratch included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(int(e.nbytes()) for e in sorted(events, key=lambda e: e.start_ns())))


def matmul_rate(dtype: torch.dtype) -> float:
    """Returns the GFLOP/s of a plain product of the logits' layout, (n, n) by (n, n) transposed."""
    a = torch.randn(1024, 1024).to(dtype)
    best_seconds(lambda: a @ a.T)
    return round(2 * 1024**3 / best_seconds(lambda: a @ a.T) / 1e9, 1)


def setting() -> dict[str, Any]:
    """Returns what the figures depend on."""
    return {
        **describe(),
        "clock": "CPU time" if torch.get_num_threads() == 1 else "wall-clock time",
        "load_at_start": round(os.getloadavg()[0], 1),
        "matmul_gflop_per_s": {name: matmul_rate(getattr(torch, name)) for name in ("float32", "bfloat16")},
    }


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the description and the table."""
    rates = machine["matmul_gflop_per_s"]
    lines = [
        "# Softmax over a catalogue: forward and backward",
        "",
        f"{sentence(machine)} Times are {machine['clock']}; load before and after: "
        f"{machine['load_at_start']} and {machine['load_at_end']} (above the number of cores others computed "
        "too, which lengthens times, those of the wall clock above all).",
        "",
        f"{QUERIES:,} queries. A plain matrix product runs at {rates['float32']:.0f} GFLOP/s in float32 and "
        f"{rates['bfloat16']:.0f} in bfloat16; the last column is the rate beside that. Operations are the "
        "useful ones, alike for all; memory is the peak beyond queries and table, gradients included.",
        "",
        "| width | items | table | implementation | dtype | ms | extra MiB | GFLOP/s | of a product |",
        "|---:|---:|---|---|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['d']} | {row['v']:,} | {row['table']} | {row['impl']} | {row['dtype']} "
            f"| {1e3 * row['seconds']:,.0f} | {row['peak_mib']:,.1f} | {row['gflop_per_s']:.0f} "
            f"| {row['gflop_per_s'] / rates[row['dtype']]:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
