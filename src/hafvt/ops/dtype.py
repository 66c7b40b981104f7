"""Which dtype a device multiplies fastest."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

CPUINFO = Path("/proc/cpuinfo")


def compute_dtype(device: torch.device) -> torch.dtype:
    """Returns the faster of bfloat16 and float32 on a device, by what its hardware multiplies natively.

    A question of capability, never a timing, so that the same machine always computes the same bits. Of
    processors with bfloat16 vectors but no tiles (AMX) AMD's multiply them twice as fast as float32, Intel's
    half as fast (see benchmarks/reports), so there the maker decides.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        native = has_matrix_units() or (_supports("_is_avx512_bf16_supported") and "AuthenticAMD" in _maker())
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def has_matrix_units() -> bool:
    """Returns whether the processor multiplies whole tiles of bfloat16 (AMX)."""
    return _supports("_is_amx_tile_supported")


def _supports(check: str) -> bool:
    return bool(getattr(torch.cpu, check, bool)())  # private: they may go away


def _maker() -> str:
    """Returns what the system tells of the processor; its maker's name is in there."""
    try:
        with CPUINFO.open(encoding="utf-8", errors="replace") as lines:
            return next((line for line in lines if line.startswith("vendor_id")), "")
    except OSError:  # not Linux
        return platform.processor()
