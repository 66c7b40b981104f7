"""Matrix products of inference, by the library that computes them faster on the processor.

PyTorch multiplies float32 matrices by MKL. MKL has no AVX-512 kernels for processors of AMD: PyTorch's other
library, oneDNN, takes half the time there. It keeps a kernel in memory for each new shape, so it gets large
products only, with rows padded to a multiple.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hafvt.ops.device import mkl_lacks_avx512

MIN_ROWS = 32
"""Fewest rows for oneDNN; with fewer, reading the other matrix takes most of the time."""
ROW_MULTIPLES = (64, 512)
"""Rows are padded to a multiple of the first number, above `MANY_ROWS` of the second."""
MANY_ROWS = 1024


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x @ weight.T + bias, (..., d) and (V, d) -> (..., V), as `torch.nn.functional.linear` does."""
    num_rows = x.numel() // max(x.shape[-1], 1)
    # In this order: else torch would export twice, as the first trace holds for fewer than MIN_ROWS only.
    if not _prefers_onednn(x, weight) or num_rows < MIN_ROWS:
        return functional.linear(x, weight, bias)
    rows, padding = x.reshape(num_rows, -1), -num_rows % ROW_MULTIPLES[num_rows > MANY_ROWS]
    rows = functional.pad(rows, (0, 0, 0, padding)) if padding else rows
    product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
    return product[:num_rows].view(*x.shape[:-1], len(weight))


def _prefers_onednn(x: Tensor, weight: Tensor) -> bool:
    """Return whether oneDNN is faster for a product without gradients; its function is private to PyTorch."""
    return (
        x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_exporting())
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and mkl_lacks_avx512()
    )
