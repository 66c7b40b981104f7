"""Names of devices."""

from __future__ import annotations

import pytest
import torch

from hafvt.errors import HafvtError
from hafvt.ops.device import select_device


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
