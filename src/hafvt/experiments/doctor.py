"""`hafvt doctor`: describe the machine, the installed packages, and what a training of a dataset needs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
import torch.distributed as dist
from packaging.requirements import Requirement

from hafvt.data.dataset import Dataset
from hafvt.features.table import FeatureTable
from hafvt.models.configs import HafVtConfig
from hafvt.models.item_embeddings import CONTENT_WIDTH
from hafvt.ops.device import compute_dtype, has_matrix_units
from hafvt.processes import num_processes
from hafvt.progress import available_bytes
from hafvt.settings import check_arguments

EXTRAS = (
    *("classic", "encode", "compare", "serve", "redis", "tune", "export", "index"),
    *("track", "mlflow", "wandb", "hub"),
)


BASE_BYTES = 2**29
"""Memory of a training process beside its tables: Python, torch, one step."""
TABLE_COPIES = 8
"""Most copies of a learned item table in a step: weights, gradient, moments, average, three temporary."""
SAVED_COPIES = 4
"""Copies of a learned item table between steps: weights, moments, average."""
OPEN_COPIES = 4
"""Copies of a learned item table where a finished run is opened: weights, as read, input and unit vectors."""
LOADED_COPIES = 1.75
"""Most copies of the frozen vectors, as float32, while their principal components are computed."""
LARGE_CATALOG = 200_000
"""Items from which softmaxes over samples are recommended."""
THREADS_PER_PROCESS = 4
MAX_NODES = 1024
"""Most machines that are suggested."""


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
        f"processes {num_processes()}; start several by --devices N (train, evaluate) or torchrun; backends: "
        f"{', '.join(_backends()) or 'none'}",
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
    """Return lines about the memory of a HAF-VT training of a dataset, and commands that fit."""
    num_items = data.domains[-1].stop
    vectors = {name: FeatureTable.open(data.folder / "features" / name) for name in data.feature_names}
    widths = [table.rows.shape[1] for table in vectors.values()]
    gpus = [torch.cuda.get_device_properties(n).total_memory for n in range(torch.cuda.device_count())]
    available = min(gpus, default=available_bytes())
    most = len(gpus) or max((os.cpu_count() or 1) // THREADS_PER_PROCESS, 1)

    def needed(processes: int, sharded: bool) -> float:
        return training_bytes(num_items, widths, processes if sharded else 1, is_gpu=bool(gpus))

    def fits(nodes: int, processes: int, sharded: bool) -> bool:
        share = available if gpus else available / processes  # processes of a machine share its memory
        return needed(nodes * processes, sharded) <= share

    choices = [(count, sharded) for count in range(most, 0, -1) for sharded in (False, True)]
    choices = [(count, sharded) for count, sharded in choices if count > 1 or not sharded]
    chosen = next((choice for choice in choices if fits(1, *choice)), None)
    count, sharded = chosen or (most, True)
    nodes = next((n for n in range(2, MAX_NODES) if fits(n, count, True)), None) if chosen is None else None
    features = ", ".join(f"{name} ({width})" for name, width in zip(vectors, widths, strict=True))
    options = f"{data.folder} --out runs/hafvt"
    options += " --params.num_negatives 4096" if num_items >= LARGE_CATALOG else ""
    options += " --device cuda" if gpus else ""
    shares = ", ".join(f"{needed(n, True) / 2**30:,.1f} in each of {n}" for n in (2, 4, 8))
    machines = (
        f"torchrun --nnodes {nodes or 'M'} --nproc-per-node {count} --rdzv-id hafvt --rdzv-backend c10d "
        f"--rdzv-endpoint HOST:29500 -m hafvt train hafvt {options}{' --shard-catalog' * sharded}"
    )
    command = (
        f"hafvt train hafvt {options}{f' --devices {count}' * (count > 1)}{' --shard-catalog' * sharded}"
    )
    return [
        f"dataset   {num_items:,} items, {len(data.user_ids):,} users, vectors: {features or 'none'}",
        f"memory    hafvt needs about {needed(1, False) / 2**30:,.1f} GiB per process, of "
        f"{available / 2**30:,.1f} GiB{'' if chosen else ', which is NOT ENOUGH'}",
        f"          with --shard-catalog: about {shares} processes",
        f"command   {command if chosen else 'none fits this machine: several machines are needed'}",
        f"machines  on each of {nodes or 'M'}: {machines}",
    ]


def training_bytes(num_items: int, vector_widths: Sequence[int], num_shards: int, *, is_gpu: bool) -> float:
    """Return an estimate of the memory that each process of a HAF-VT training needs.

    Args:
        num_items: of all domains.
        vector_widths: lengths of the frozen vectors, by modality.
        num_shards: number of processes that share the tables; 1 for whole tables.
        is_gpu: whether tables are on GPUs, where whole tables are needed for validation.
    """
    width = HafVtConfig().id_width
    components = CONTENT_WIDTH * len(vector_widths)
    training = (components + TABLE_COPIES * width) / num_shards
    loading = LOADED_COPIES * sum(vector_widths) if num_items < LARGE_CATALOG else 0.0
    if num_shards == 1:
        return BASE_BYTES + 4 * num_items * (components + max(TABLE_COPIES * width, loading))
    if is_gpu:
        scoring = (components + SAVED_COPIES * width) / num_shards + components + 2 * width
        return BASE_BYTES + 4 * num_items * max(training, scoring)
    # Process 0 prepares the vectors, and in the end opens the finished run with whole tables.
    return BASE_BYTES + 4 * num_items * max(training, loading, components + OPEN_COPIES * width)


def _with_version(package: str) -> str:
    """Return a package and its version, or "missing"."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"
