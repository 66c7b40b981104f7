"""Devices by their names on the command line, and the dtype of matrix products on each device."""

from __future__ import annotations

import platform
import re
from functools import cache
from pathlib import Path

import torch

from hafvt.errors import HafvtError
from hafvt.processes import local_process_index, num_local_processes, num_processes

CPUINFO = Path("/proc/cpuinfo")


def select_device(name: str) -> torch.device:
    """Return the device of a name: cpu, cuda, cuda:N, mps, or auto (cuda if torch finds one, else cpu).

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


def process_device(name: str) -> torch.device:
    """Return the device of this process: with several processes and cuda, a GPU of its own.

    Raises:
        HafvtError: see `select_device`; or there are fewer GPUs than processes on this machine.
    """
    device = select_device(name)
    if num_processes() == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise HafvtError(f"--device {name} has one process: leave it out, or choose cuda or cpu for several")
    if num_local_processes() > torch.cuda.device_count():
        raise HafvtError(
            f"{num_local_processes()} processes for {torch.cuda.device_count()} CUDA devices: start one "
            "process per device"
        )
    torch.cuda.set_device(local_process_index())
    return torch.device("cuda", local_process_index())


def compute_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 or float32, whichever the device's hardware multiplies faster.

    The choice depends on the hardware's features, never on a timing, so one machine always computes the same
    bits. Processors with bfloat16 vectors but without matrix units differ by maker: AMD's multiply bfloat16
    twice as fast as float32, Intel's half as fast (see benchmarks/reports).
    """
    if device.type == "cuda":
        fast_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        amd_vectors = _supports("_is_avx512_bf16_supported") and "AuthenticAMD" in _cpu_vendor()
        fast_bfloat16 = has_matrix_units() or amd_vectors
    else:
        fast_bfloat16 = False
    return torch.bfloat16 if fast_bfloat16 else torch.float32


def has_matrix_units() -> bool:
    """Return whether the processor multiplies matrices of bfloat16 in hardware (AMX)."""
    return _supports("_is_amx_tile_supported")


@cache
def mkl_lacks_avx512() -> bool:
    """Return whether MKL uses only half the width of the processor's vectors: AVX-512 of AMD."""
    return _supports("_is_avx512_supported") and "AuthenticAMD" in _cpu_vendor()


def _supports(check: str) -> bool:
    """Return the result of a private function of `torch.cpu`; False if this version lacks it."""
    return bool(getattr(torch.cpu, check, bool)())


def _cpu_vendor() -> str:
    """Return the operating system's description of the processor, which contains its maker's name."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            return next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:  # not Linux
        return platform.processor()
