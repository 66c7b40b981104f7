"""The dtype of products is a question of the hardware alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hafvt.ops import dtype as precision
from hafvt.ops.dtype import compute_dtype

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


def have(monkeypatch: pytest.MonkeyPatch, amx: bool, avx: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx, raising=False)


@pytest.mark.parametrize("maker", ["GenuineIntel", "AuthenticAMD"])
def test_compute_dtype_of_a_cpu_is_the_faster(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, maker: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nvendor_id\t: {maker}\nflags\t\t: fpu avx512_bf16\n", encoding="utf-8"
    )
    monkeypatch.setattr(precision, "CPUINFO", cpuinfo)
    have(monkeypatch, amx=False, avx=False)
    assert compute_dtype(CPU) == torch.float32
    have(monkeypatch, amx=True, avx=True)
    assert compute_dtype(CPU) == torch.bfloat16
    have(monkeypatch, amx=False, avx=True)  # Intel's vectors of bfloat16 are the slower way
    expected = torch.bfloat16 if maker == "AuthenticAMD" else torch.float32
    assert compute_dtype(CPU) == expected
    cpuinfo.unlink()  # where the system has no such file, its own word counts
    monkeypatch.setattr(precision.platform, "processor", lambda: f"Family 25 Model 97, {maker}")
    assert compute_dtype(CPU) == expected
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert compute_dtype(CPU) == torch.float32


def test_compute_dtype_of_a_gpu_is_bfloat16_from_ampere_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert compute_dtype(CUDA) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert compute_dtype(CUDA) == torch.float32
    assert compute_dtype(torch.device("meta")) == torch.float32
