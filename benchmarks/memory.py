"""Peak memory of a HAF-VT training step against the size of the catalogue.

    python benchmarks/memory.py

Each size runs in a process of its own. "tables" are what must be held per item whatever the method: the item
vectors (learned and frozen) and, of the learned ones, gradient and both moments of Adam. "beside" is the peak
of the steps above what the process held before the model was built, tables taken off.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

SIZES = (8_000, 16_000, 32_000, 64_000)
USERS, LENGTH, WIDTH = 64, 50, 256
MIB = 2**20


def peak() -> float:
    """Returns the peak resident memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(items: int) -> dict[str, float]:
    """Takes three steps on random histories over so many items, half of them in each domain."""
    import torch

    from hafvt.data.batches import Batch
    from hafvt.data.dataset import Domain
    from hafvt.features.catalogue import Catalogue, Vectors
    from hafvt.models.hafvt import HafVt, HafVtConfig

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
    catalogue = Catalogue(domains, vectors, torch.ones(items))
    model = HafVt(catalogue, HafVtConfig(content_width=0))
    del vectors, catalogue
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    for _ in range(3):
        batch = Batch(torch.randint(0, items, (USERS, LENGTH + 1)), torch.full((USERS,), LENGTH + 1))
        optimizer.zero_grad()
        model.loss(batch).backward()
        optimizer.step()
    tables = items * WIDTH * 4 * (4 + 2) / MIB
    grown = peak() - before
    return {"items": items, "tables_mib": tables, "peak_mib": grown, "beside_mib": grown - tables}


def main() -> None:
    """Prints the table and writes benchmarks/results/memory.json."""
    rows = []
    for items in SIZES:
        command = [sys.executable, __file__, str(items)]
        found = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(found.stdout))
        print("  ".join(f"{key} {value:,.0f}" for key, value in rows[-1].items()), flush=True)
    path = Path(__file__).parent / "results" / "memory.json"
    path.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(int(sys.argv[1]))))
    else:
        main()
