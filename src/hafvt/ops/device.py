"""Devices by their names on the command line."""

from __future__ import annotations

import re

import torch

from hafvt.errors import HafvtError


def select_device(name: str) -> torch.device:
    """Return the device that a name stands for.

    Args:
        name: cpu, cuda, cuda:N, mps, or auto for cuda where torch finds a CUDA device and else cpu.

    Raises:
        HafvtError: an unknown name, or a device that torch does not find.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise HafvtError(f"--device {name}: choose auto, cpu, cuda, cuda:N or mps")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise HafvtError(
            f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices: use --device cpu"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise HafvtError("--device mps: torch finds no such device: use --device cpu")
    return device
