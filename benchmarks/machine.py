"""What the figures of a benchmark depend on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from hafvt.files import atomic_file, read_json, write_json
from hafvt.ops.device import compute_dtype

RESULTS = Path(__file__).parent / "results"

FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")


def describe() -> dict[str, Any]:
    """Returns processor, cores, threads and versions."""
    cpuinfo = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in cpuinfo.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    return {
        "cpu": fields.get("model name", platform.processor()),
        "flags": [flag for flag in FLAGS if flag in fields.get("flags", "").split()],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "compute_dtype": str(compute_dtype(torch.device("cpu"))).removeprefix("torch."),
    }


def sentence(machine: dict[str, Any]) -> str:
    """Returns the description as one line of Markdown."""
    return (
        f"{machine['cpu']} ({', '.join(machine['flags'])}), {machine['cores']} cores, "
        f"{machine['threads']} thread(s), torch {machine['torch']}, Python {machine['python']}; "
        f"`compute_dtype`: {machine['compute_dtype']}."
    )


def recorded(name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Returns the runs of earlier calls that results/NAME.json holds, by data set and run."""
    path = RESULTS / f"{name}.json"
    runs = read_json(path)["runs"] if path.exists() else []
    return {(run["data"], run["run"]): run for run in runs}


def record(name: str, text: str, facts: dict[str, Any]) -> None:
    """Writes what a benchmark found: results/NAME.md and .json."""
    write_json(RESULTS / f"{name}.json", facts)
    with atomic_file(RESULTS / f"{name}.md") as path:
        path.write_text(text, encoding="utf-8")
