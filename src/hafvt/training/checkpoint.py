"""Checkpoints: one safetensors file each, with the state as JSON in its header; never a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from hafvt.errors import HafvtError
from hafvt.files import atomic_file


def save_checkpoint(path: str | Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write named tensors and a state of JSON values, atomically."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(on_cpu, temporary, metadata={"state": json.dumps(state)})


def load_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state that `save_checkpoint` wrote.

    Raises:
        HafvtError: the file is missing or damaged.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except FileNotFoundError:
        raise HafvtError(f"{path} does not exist: train the model first") from None
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise HafvtError(f"{path} is damaged ({error}): train the model again") from None


def pack(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return weights, optimizer state and averaged weights as one flat dictionary.

    Args:
        model: its names get the prefix "model.".
        optimizer: its state gets names such as "optimizer.0.exp_avg".
        ema_weights: their names get the prefix "average.".
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (ema_weights or {}).items()}
    if optimizer is not None:
        for index, slot in optimizer.state_dict()["state"].items():
            for key, value in slot.items():
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def unpack(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema_weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Load a dictionary of `pack` into a model, an optimizer and averaged weights.

    Raises:
        HafvtError: the tensors do not fit the model.
    """
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = str(error).splitlines()[-1].strip()
        raise HafvtError(
            f"the weights do not fit the model ({reason}), because the dataset was prepared again or the "
            "run is of an earlier version: train again"
        ) from None
    for name, tensor in (ema_weights or {}).items():
        tensor.copy_(tensors[f"average.{name}"])
    if optimizer is None:
        return
    slots: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            slots.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
