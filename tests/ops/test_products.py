"""Products of inference: equal to PyTorch's own, and by oneDNN only where it is faster."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from hafvt.ops import device, products
from hafvt.ops.products import linear


@pytest.fixture(params=[True, False], ids=["onednn", "mkl"])
def onednn_calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[int] | None:
    """Return the rows of each product by oneDNN; None where it is not preferred."""
    monkeypatch.setattr(products, "mkl_lacks_avx512", lambda: request.param)
    if not request.param or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return None
    calls, product = [], torch.ops.mkldnn._linear_pointwise

    def count(rows: torch.Tensor, *arguments: object) -> torch.Tensor:
        calls.append(len(rows))
        result: torch.Tensor = product(rows, *arguments)
        return result

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", count)
    return calls


@pytest.mark.parametrize("shape", [(1,), (31,), (32,), (64,), (3, 50), (1025,), (40, 30), (0,), (2, 0)])
@pytest.mark.parametrize("with_bias", [True, False])
@torch.inference_mode()
def test_linear_equals_the_plain_product(
    onednn_calls: list[int] | None, shape: tuple[int, ...], with_bias: bool
) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*shape, 16), torch.randn(48, 16)
    bias = torch.randn(48) if with_bias else None
    actual, expected = linear(x, weight, bias), functional.linear(x.double(), weight.double())
    expected = expected if bias is None else expected + bias
    assert actual.shape == expected.shape
    torch.testing.assert_close(actual, expected.float())
    if onednn_calls is not None:
        num_rows = x.numel() // 16
        multiple = 64 if num_rows <= products.MANY_ROWS else 512
        assert onednn_calls == ([-(-num_rows // multiple) * multiple] if num_rows >= 32 else [])


def test_linear_with_gradients_other_dtypes_and_autocast_is_pytorchs(onednn_calls: list[int] | None) -> None:
    x, weight = torch.randn(64, 16), torch.randn(48, 16, requires_grad=True)
    linear(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert weight.grad is not None
    with torch.inference_mode():
        assert linear(x.double(), weight.double()).dtype == torch.float64
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert linear(x, weight).dtype == torch.bfloat16
    assert not onednn_calls


def test_mkl_lacks_avx512_on_amd_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    answers = []
    for maker in ("AuthenticAMD", "GenuineIntel"):
        (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {maker}\n", encoding="utf-8")
        for avx512 in (True, False):
            monkeypatch.setattr(
                torch.cpu, "_is_avx512_supported", lambda avx512=avx512: avx512, raising=False
            )
            device.mkl_lacks_avx512.cache_clear()
            answers.append(device.mkl_lacks_avx512())
    device.mkl_lacks_avx512.cache_clear()
    assert answers == [True, False, False, False]
