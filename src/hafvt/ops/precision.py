"""Which dtype a device multiplies fastest."""

from __future__ import annotations

import torch


def compute_dtype(device: torch.device) -> torch.dtype:
    """Returns the faster of bfloat16 and float32 on a device, by what its hardware multiplies natively.

    A question of capability, never a timing, so that the same machine always computes the same bits.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= (8, 0)
    elif device.type == "cpu":
        checks = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # private: they may go away
        native = any(getattr(torch.cpu, check, bool)() for check in checks)
    else:
        native = False
    return torch.bfloat16 if native else torch.float32
