"""Peak memory of a HAF-VT training step against the size of the catalog.

    python benchmarks/memory.py

Each size runs in a process of its own. "tables" are what must be held per item whatever the method: vectors,
learned and frozen, links to clusters, and of what is learned gradient and both moments of Adam.
"peak" is how far the resident memory of the process rose above what it was before the model was built,
"beside" the peak without the tables (it falls where the rest is at its highest before the gradient of the
table is there). "step" is exact: the most that torch's tensors took during a fourth step over what they held
before it.
"""

from __future__ import annotations

import itertools
import json
import resource
import subprocess
import sys
from pathlib import Path

SIZES = (8_000, 16_000, 32_000, 64_000)
USERS, LENGTH, WIDTH = 64, 50, 256
MIB = 2**20
HEADER = ["items", "tables (MiB)", "peak (MiB)", "beside (MiB)", "step (MiB)"]


def peak() -> float:
    """Returns the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(items: int) -> dict[str, float]:
    """Takes three steps on random histories over so many items, half of them in each domain."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from hafvt.data.batches import Batch
    from hafvt.data.dataset import Domain
    from hafvt.features.item_features import ItemFeatures, Vectors
    from hafvt.models.configs import HafVtConfig
    from hafvt.models.hafvt import HafVt

    torch.manual_seed(0)
    torch.set_num_threads(2)
    domains = (Domain("x", 0, items // 2), Domain("y", items // 2, items))
    here = torch.ones(items, dtype=torch.bool)
    (torch.randn(512, 512) @ torch.randn(512, 512)).sum()  # the libraries' own buffers
    before = peak()
    vectors = {
        name: Vectors(torch.nn.functional.normalize(torch.randn(items, WIDTH)), here)
        for name in ("image", "title")
    }
    catalog = ItemFeatures(domains, vectors, torch.ones(items))
    model = HafVt(catalog, HafVtConfig(cluster_sizes=()))
    del vectors, catalog
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)

    def step() -> None:
        batch = Batch(torch.randint(0, items, (USERS, LENGTH + 1)), torch.full((USERS,), LENGTH + 1))
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()

    for _ in range(3):
        step()
    with_added_items = peak() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = (int(e.nbytes()) for e in sorted(events, key=lambda e: e.start_ns()))
    previous = sum(each.nbytes for each in model.buffers()) + 4 * sum(
        each.nbytes for each in model.parameters()
    )
    tables = previous / MIB
    measured = {
        "items": items,
        "tables_mib": tables,
        "peak_mib": with_added_items,
        "beside_mib": with_added_items - tables,
    }
    return {**measured, "step_mib": max(itertools.accumulate(sizes)) / MIB}


def main() -> None:
    """Prints the table; writes results/memory.md and .json."""
    from machine import describe, sentence

    from hafvt.files import atomic_file, write_json
    from hafvt.tables import markdown_table

    rows = []
    for items in SIZES:
        command = [sys.executable, __file__, str(items)]
        measured = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(measured.stdout))
        print("  ".join(f"{key} {value:,.0f}" for key, value in rows[-1].items()), flush=True)
    results, machine = Path(__file__).parent / "results", describe()
    cells = [[f"{value:,.0f}" for value in row.values()] for row in rows]
    lines = [
        "# Peak memory of a HAF-VT training step",
        "",
        "`python benchmarks/memory.py`",
        "",
        sentence(machine),
    ]
    lines += [
        f"Steps of {USERS} histories of {LENGTH} items, ids of width 128 with pictures and titles of width "
        f"{WIDTH}; each size in a process of its own. Tables: vectors, links to clusters, "
        "and of what is learned gradient and both moments of Adam. Peak: rise of the resident memory over "
        "three steps; beside: the same without the tables (it falls where the rest is at its highest before "
        "the gradient of the table is there). Step: the most that torch's tensors took during a step over "
        "what they held before it.",
        "",
        markdown_table(HEADER, cells, text_columns=0),
    ]
    write_json(results / "memory.json", {"machine": machine, "rows": rows})
    with atomic_file(results / "memory.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
