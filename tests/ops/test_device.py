"""Names of devices; the dtype of products is a question of the hardware alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from hafvt.errors import HafvtError
from hafvt.ops import device as devices
from hafvt.ops.device import compute_dtype, select_device


def test_select_device_auto_is_a_device_that_torch_finds() -> None:
    assert select_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert select_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:one", "CPU", "", "cuda:0 "])
def test_select_device_with_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(HafvtError, match="choose auto, cpu, cuda, cuda:N or mps"):
        select_device(name)


def test_select_device_beyond_the_last_cuda_device_is_refused() -> None:
    number = torch.cuda.device_count()
    with pytest.raises(HafvtError, match=f"--device cuda:{number}: torch finds {number} CUDA devices"):
        select_device(f"cuda:{number}")


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
    monkeypatch.setattr(devices, "CPUINFO", cpuinfo)
    have(monkeypatch, amx=False, avx=False)
    assert compute_dtype(CPU) == torch.float32
    have(monkeypatch, amx=True, avx=True)
    assert compute_dtype(CPU) == torch.bfloat16
    have(monkeypatch, amx=False, avx=True)  # Intel's vectors of bfloat16 are the slower way
    expected = torch.bfloat16 if maker == "AuthenticAMD" else torch.float32
    assert compute_dtype(CPU) == expected
    cpuinfo.unlink()  # where the system has no such file, its own word counts
    monkeypatch.setattr(devices.platform, "processor", lambda: f"Family 25 Model 97, {maker}")
    assert compute_dtype(CPU) == expected
    monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported")
    assert compute_dtype(CPU) == torch.float32


def test_compute_dtype_of_a_gpu_is_bfloat16_from_ampere_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert compute_dtype(CUDA) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    assert compute_dtype(CUDA) == torch.float32
    assert compute_dtype(torch.device("meta")) == torch.float32
