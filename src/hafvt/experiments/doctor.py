"""`hafvt doctor`: what machine and packages there are."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

from hafvt.ops.dtype import compute_dtype

EXTRAS = {
    "encode": ("pillow", "scikit-image", "scikit-learn", "transformers", "sentence-transformers"),
    "serve": ("fastapi", "uvicorn", "prometheus-client"),
    "track": ("tensorboard",),
    "tune": ("optuna",),
}
CORE = (
    "hafvt",
    "torch",
    "numpy",
    "polars",
    "narwhals",
    "safetensors",
    "lightning-fabric",
    "cyclopts",
    "rich",
)


def doctor() -> str:
    """Says what machine and packages there are, and what is missing for what.

    Example: hafvt doctor
    """

    def found(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "missing"

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(compute_dtype(device)).removeprefix("torch.")
    lines = [
        f"machine   {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        f"compute   {torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, "
        f"{torch.get_num_threads()} threads, {dtype} with --precision auto",
        f"core      {', '.join(f'{package} {found(package)}' for package in CORE)}",
    ]
    for extra, packages in EXTRAS.items():
        line = f"{extra:<10}{', '.join(f'{package} {found(package)}' for package in packages)}"
        lines.append(line + (f"  -> pip install 'hafvt[{extra}]'" if "missing" in line else ""))
    return "\n".join(lines)
