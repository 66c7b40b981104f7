"""How close to the machine's limit is the softmax over a catalog, and how does it grow?

Run: python benchmarks/softmax.py [--quick]

For each implementation, dtype, catalog size and width: the loss and its gradients, `catalog_nll`, with a
frozen table (gradient of the queries alone) and a learned one. The full run writes results/softmax.md and
.json beside this file; --quick only prints. With OMP_NUM_THREADS=1 the time is CPU time, which others' work
on the machine disturbs little.

Rates count what cannot be done without: with N queries, V items and width d 2NVd operations for the logits,
2NVd for the gradient of the queries, 2NVd more for that of a learned table. Memory is the most that tensors
held at a time beyond queries and table, without what has the table's size: its gradient, its rows in the
dtype of the products. The rate of a plain matrix product, 2048 x 2048 x 2048, is measured in turn with each
case: processors that others compute on as well run at half their rate for minutes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from machine import describe, record, sentence
from torch.profiler import ProfilerActivity, profile

from hafvt.ops.catalog_softmax import mean_nll
from hafvt.ops.device import compute_dtype
from hafvt.progress import progress

QUERIES = 2048
SIZES, WIDTHS = (4_000, 16_000, 64_000, 256_000), (64, 128, 256, 512)
LARGEST_PLAIN = 64_000  # beyond, stored logits take many gigabytes
IMPLS = (
    ("tiles", "bfloat16"),
    ("tiles", "float32"),
    ("plain", "float32"),  # PyTorch's cross-entropy, which stores all logits
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measures the softmax over a catalog.")
    parser.add_argument("--quick", action="store_true", help="the smallest catalog only; writes nothing")
    quick = parser.parse_args().quick
    sizes, widths = ((4_000, 16_000), (64,)) if quick else (SIZES, WIDTHS)
    fast = "bfloat16" if compute_dtype(torch.device("cpu")) == torch.bfloat16 else "float32"
    cases = [
        case
        for case in itertools.product(widths, (True, False), IMPLS, sizes)
        if case[2][1] in ("float32", fast)  # where the processor lacks bfloat16, nobody computes in it
        and (case[2][0] != "plain" or (case[3] <= LARGEST_PLAIN and case[0] in (64, 256)))
    ]
    load, rows = round(os.getloadavg()[0], 1), []
    with progress("softmax", len(cases), "cases") as advance:
        for d, learned, (impl, dtype), v in cases:
            rows.append(measure(v, d, learned, impl, dtype))
            advance(1, f"{impl} {dtype}")
    machine = {
        **describe(),
        "clock": "CPU time" if torch.get_num_threads() == 1 else "wall-clock time",
        "load": [load, round(os.getloadavg()[0], 1)],
    }
    text = markdown(machine, rows)
    print(text)
    if not quick:
        record("softmax", text + "\n", {"machine": machine, "queries": QUERIES, "rows": rows})


def measure(v: int, d: int, learned: bool, impl: str, dtype: str) -> dict[str, Any]:
    """Returns seconds, extra peak memory and rate of one case."""
    torch.manual_seed(0)
    h = torch.nn.functional.normalize(torch.randn(QUERIES, d), dim=1).requires_grad_()
    table = torch.nn.functional.normalize(torch.randn(v, d), dim=1).requires_grad_(learned)
    targets = torch.randint(v, (QUERIES,))

    def step() -> None:
        h.grad = table.grad = None
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == "bfloat16"):
            if impl == "plain":
                loss = torch.nn.functional.cross_entropy(20 * h @ table.T, targets)
            else:
                loss = mean_nll(h, table, targets, 20.0)
        loss.backward()

    tables = v * d * (4 * learned + 2 * (dtype == "bfloat16"))
    peak = peak_bytes(step) - tables  # warms up as well
    a, b = torch.randn(2, 2048, 2048).to(getattr(torch, dtype))
    seconds, of_product = best_seconds(step, lambda: a @ b)
    rate = (6 if learned else 4) * QUERIES * v * d / seconds / 1e9
    product = 2 * 2048**3 / of_product / 1e9
    return {
        "d": d,
        "v": v,
        "table": "learned" if learned else "frozen",
        "impl": impl,
        "dtype": dtype,
        "seconds": round(seconds, 4),
        "ns_per_target_and_item": round(1e9 * seconds / QUERIES / v, 3),
        "extra_mib": round(peak / 2**20, 1),
        "gflop_per_s": round(rate, 1),
        "product_gflop_per_s": round(product, 1),
        "of_a_product": round(rate / product, 3),
    }


def clock() -> float:
    """Returns seconds: of CPU time with one thread, else of wall-clock time."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def best_seconds(*steps: Callable[[], object]) -> list[float]:
    """Returns of each step the shortest time of as many as fit into 2 seconds, in turn, two at least."""
    times: list[list[float]] = [[] for _ in steps]
    while len(times[0]) < 2 or sum(map(sum, times)) < 2:
        for step, mine in zip(steps, times, strict=True):
            start = clock()
            step()
            mine.append(clock() - start)
    return [min(mine) for mine in times]


def peak_bytes(step: Callable[[], object]) -> int:
    """Returns the most bytes that tensors held at a time, over what they held before; scratch included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(int(e.nbytes()) for e in sorted(events, key=lambda e: e.start_ns())))


def markdown(machine: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """Returns the description and the table."""
    lines = [
        "# Softmax over a catalog: loss and gradients",
        "",
        f"`python benchmarks/softmax.py`. {sentence(machine)} Times are {machine['clock']}; load before and "
        f"after: {machine['load'][0]} and {machine['load'][1]} (above the number of threads others "
        "computed too, which lengthens times, those of the wall clock above all).",
        "",
        f"{QUERIES:,} queries. The last columns are the rate of a plain matrix product of 2048 x 2048 x 2048 "
        "in that dtype, measured in turn with the case, and the case's rate beside it. Operations are those "
        "that cannot be done without; extra memory is without what has the table's size. `plain` stores the "
        "logits; `tiles` in bfloat16 are PyTorch's attention where the processor has AMX.",
        "",
        "| width | table | implementation | dtype | items | ms | ns per target and item | extra MiB "
        "| GFLOP/s | a product's | of it |",
        "|---:|---|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        lines.append(
            f"| {row['d']} | {row['table']} | {row['impl']} | {row['dtype']} | {row['v']:,} "
            f"| {1e3 * row['seconds']:,.0f} | {row['ns_per_target_and_item']:.2f} | {row['extra_mib']:,.1f} "
            f"| {row['gflop_per_s']:.0f} | {row['product_gflop_per_s']:.0f} | {row['of_a_product']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
