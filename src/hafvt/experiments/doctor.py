"""`hafvt doctor`: describe the machine and the installed packages."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, requires, version

import torch
from packaging.requirements import Requirement

from hafvt.ops.device import compute_dtype, has_matrix_units

EXTRAS = ("encode", "compare", "serve", "tune", "export", "index", "track")


def doctor() -> str:
    """Describe the machine, list the installed packages, and name the extras with missing packages.

    Example: hafvt doctor
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
        f"core      {', '.join(map(_with_version, core))}",
    ]
    for extra in EXTRAS:
        names = [r.name for r in requirements if r.marker is not None and r.marker.evaluate({"extra": extra})]
        line = f"{extra:<10}{', '.join(map(_with_version, names))}"
        lines.append(line + (f"  -> pip install 'hafvt[{extra}]'" if "missing" in line else ""))
    return "\n".join(lines)


def _with_version(package: str) -> str:
    """Return a package and its version, or "missing"."""
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"{package} missing"
