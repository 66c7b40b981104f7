"""`hafvt doctor`: describe the machine, the installed packages, and what a training of a dataset needs."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from hafvt.data.dataset import Dataset
from hafvt.features.table import FeatureTable
from hafvt.models import configure
from hafvt.models.item_embeddings import CONTENT_WIDTH
from hafvt.ops.device import compute_dtype, has_matrix_units
from hafvt.processes import num_processes
from hafvt.progress import available_bytes
from hafvt.settings import check_arguments

EXTRAS = ("classic", "encode", "compare", "serve", "tune", "export", "index", "track")


BASE_BYTES = 2**29
"""Memory of a training process beside its tables: Python, torch, one step."""
TABLE_COPIES = 8
"""Most copies of a learned item table in a step: weights, gradient, moments, average, three temporary."""
LOADED_COPIES = 1.75
"""Most copies of the frozen vectors, as float32, while their principal components are computed."""
LARGE_CATALOG = 200_000
"""Items from which softmaxes over samples are recommended."""
THREADS_PER_PROCESS = 4


@check_arguments
def doctor(data: str | Path | Dataset | None = None) -> str:
    """Describe the machine and the installed packages, and name the extras with missing packages.

    With a dataset, also estimate the memory of a training, and print commands that fit this machine.

    Example: hafvt doctor data/movies

    Args:
        data: a dataset folder.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    units = ", with matrix units (AMX)" if device.type == "cpu" and has_matrix_units() else ""
    requirements = [Requirement(text) for text in requires("hafvt") or []]
    core = ["hafvt", *(requirement.name for requirement in requirements if requirement.marker is None)]
    lines = [
        f"machine   {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        f"compute   {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}{units}, "
        f"{torch.get_num_threads()} threads, {dtype} with --precision auto",
        f"devices   {', '.join(_devices())}",
        f"processes {num_processes()} by torchrun; backends for several: {', '.join(_backends()) or 'none'}",
        f"core      {', '.join(map(_with_version, core))}",
    ]
    for extra in EXTRAS:
        names = [r.name for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        line = f"{extra:<10}{', '.join(map(_with_version, names))}"
        lines.append(line + (f"  -> pip install 'hafvt[{extra}]'" if "missing" in line else ""))
    if data is not None:
        lines += _describe_training(data if isinstance(data, Dataset) else Dataset.open(data))
    return "\n".join(lines)


def _devices() -> list[str]:
    """Return the devices for `--device`, with their memory."""
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    names = [f"cuda:{n} ({gpu.name}, {gpu.total_memory / 2**30:.0f} GiB)" for n, gpu in enumerate(gpus)]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return [*names, f"cpu ({os.cpu_count()} processors, {available_bytes() / 2**30:.1f} GiB available)"]


def _backends() -> list[str]:
    """Return the backends of torch.distributed that connect processes here."""
    if not dist.is_available():
        return []
    has_nccl = torch.cuda.is_available() and dist.is_nccl_available()
    return ["gloo (cpu)"] * dist.is_gloo_available() + ["nccl (cuda)"] * has_nccl


def _describe_training(data: Dataset) -> list[str]:
    """Return lines about the memory of a HAF-VT training of a dataset, and commands that fit this machine."""
    num_items, width = data.domains[-1].stop, configure("hafvt").id_width
    modalities = {name: FeatureTable.open(data.folder / "features" / name) for name in data.feature_names}
    components = CONTENT_WIDTH * len(modalities)
    loaded = sum(LOADED_COPIES * table.rows.shape[1] for table in modalities.values())
    needed = BASE_BYTES + 4 * num_items * (components + max(TABLE_COPIES * width, loaded))
    gpus = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    memory = min(gpus, default=available_bytes())
    fits = len(gpus) or max(min((os.cpu_count() or 1) // THREADS_PER_PROCESS, int(memory // needed)), 1)
    features = ", ".join(f"{name} ({table.rows.shape[1]})" for name, table in modalities.items())
    options = f"{data.folder} --out runs/hafvt"
    options += " --params.num_negatives 4096" if num_items >= LARGE_CATALOG else ""
    options += " --device cuda" if gpus else ""
    is_enough = f"of {memory / 2**30:,.1f} GiB{'' if needed <= memory else ', which is NOT ENOUGH'}"
    rendezvous = "--rdzv-backend c10d --rdzv-endpoint HOST:29500"
    return [
        f"dataset   {num_items:,} items, {len(data.user_ids):,} users, vectors: {features or 'none'}",
        f"memory    hafvt needs about {needed / 2**30:,.1f} GiB per process {is_enough}",
        f"command   hafvt train hafvt {options}{f' --devices {fits}' if fits > 1 else ''}",
        f"machines  on each of M: torchrun --nnodes M --nproc-per-node {fits} {rendezvous} -m hafvt train "
        f"hafvt {options}",
    ]


def _with_version(package: str) -> str:
    """Return a package and its version, or "missing"."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"
