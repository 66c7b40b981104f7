"""HAF-VT's scores under torch beside its graph under onnxruntime: one history at a time, and many at once.

    python benchmarks/export.py

Id, picture and title, the default configuration, random weights and vectors, as fast as good ones;
two catalogs; one thread. What a call costs is the time of the processor, the median of many calls, so that
a machine that others use too does not change it much. Writes results/export.md and .json.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
import onnxruntime
import torch
import torch.nn.functional as F
from machine import describe, record, sentence

from hafvt.data.batches import Batch
from hafvt.data.dataset import Domain, Int64
from hafvt.features.item_features import ItemFeatures, Vectors
from hafvt.inference.onnx_export import ScoreGraph, item_tables_to_inputs, trace
from hafvt.models import build_model, configure
from hafvt.tables import markdown_table

SIZES = {"movielens": (965, 1_356), "64,000 items": (32_000, 32_000)}
LENGTH, WIDTH, MANY = 20, 128, 64

Call = Callable[[Int64, Int64], Any]


def main() -> None:
    torch.set_num_threads(1)
    results = []
    for name, sizes in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            for way, call in calls(sizes, Path(folder)).items():
                row = {"items": name, "way": way}
                row |= {"one_ms": 1e3 * cost(call, 1, sizes), "many_ms": 1e3 * cost(call, MANY, sizes)}
                results.append(row)
                print(row, flush=True)
    write(results)


def calls(sizes: tuple[int, int], folder: Path) -> dict[str, Call]:
    """Returns what scores all items of the first domain, by name."""
    torch.manual_seed(0)
    first, items = sizes[0], sum(sizes)
    domains, here = (Domain("first", 0, first), Domain("second", first, items)), torch.ones(items) > 0
    vectors = {
        name: Vectors(F.normalize(torch.randn(items, WIDTH), dim=1), here) for name in ("image", "title")
    }
    model = build_model("hafvt", ItemFeatures(domains, vectors, torch.ones(items)), configure("hafvt")).eval()
    program = trace(ScoreGraph(model, 0))
    onnx_ir.save(program, folder / "baked.onnx", external_data="baked.data")
    tables = item_tables_to_inputs(program.graph, items)
    onnx_ir.save(program, folder / "inputs.onnx", external_data="inputs.data")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    baked, with_inputs = (
        onnxruntime.InferenceSession(folder / f"{name}.onnx", options) for name in ("baked", "inputs")
    )

    def of_torch(items: Int64, lengths: Int64) -> Any:
        with torch.inference_mode():
            return model.scores(Batch(torch.from_numpy(items), torch.from_numpy(lengths)), 0)

    return {
        "torch": of_torch,
        "onnxruntime, baked": lambda items, lengths: baked.run(None, {"items": items, "lengths": lengths}),
        "onnxruntime, inputs": lambda items, lengths: with_inputs.run(
            None, {"items": items, "lengths": lengths, **tables}
        ),
    }


def cost(call: Call, count: int, sizes: tuple[int, int]) -> float:
    """Returns the seconds of processor that the scores of so many histories take, the median of calls."""
    random, duration = np.random.default_rng(1), list[float]()
    while len(duration) < 6 or (sum(duration) < 3 and len(duration) < 100):
        items = random.integers(sum(sizes), size=(count, LENGTH))
        lengths = random.integers(1, LENGTH + 1, size=count)
        items[np.arange(LENGTH) >= lengths[:, None]] = 0
        start = time.process_time()
        call(items, lengths)
        duration.append(time.process_time() - start)
    return statistics.median(duration[1:])


def write(results: list[dict[str, Any]]) -> None:
    """Writes the table."""
    machine = describe() | {"onnxruntime": onnxruntime.__version__}
    rows = [
        [row["items"], row["way"], f"{row['one_ms']:,.1f}", f"{1e3 * MANY / row['many_ms']:,.0f}"]
        for row in results
    ]
    sizes = "; ".join(f"{first:,} and {second:,}" for first, second in SIZES.values())
    text = [
        "# Under torch and under onnxruntime",
        "",
        f"`python benchmarks/export.py`: HAF-VT with three modalities of width {WIDTH}, histories of up to "
        f"{LENGTH} items, scores of all items of the first of two domains ({sizes} items); time of one "
        f"processor, the median of calls; many: {MANY} histories in a call.",
        "",
        f"{sentence(machine)} onnxruntime {machine['onnxruntime']}.",
        "",
        markdown_table(["items", "by", "one history, ms", "many, histories/s"], rows),
    ]
    record("export", "\n".join(text), {"machine": machine, "found": results})


if __name__ == "__main__":
    main()
