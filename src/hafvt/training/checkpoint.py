"""Checkpoints: one safetensors file each, with the state as JSON in its header; never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hafvt.errors import HafvtError
from hafvt.files import atomic_file, explained_read_errors

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""Data types by their names in safetensors files."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write named tensors, a state of JSON values, and a hash of both, atomically."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    with atomic_file(path, sum(tensor.nbytes for tensor in on_cpu.values())) as temporary:
        save_file(on_cpu, temporary, metadata={"state": text, "sha256": _hash(on_cpu, text)})
        temporary.chmod(0o644)  # safetensors lets nobody else read the file, such as the user of a server


def load_checkpoint(path: Path, remedy: str = "train the model again") -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the state that `save_checkpoint` wrote.

    Args:
        path: the file.
        remedy: what to do if the file is missing or damaged.

    Raises:
        HafvtError: the file is missing, or not what was written.
    """
    with explained_read_errors(path, remedy):
        with path.open("rb") as file:
            header = json.loads(_read_bytes(file, int.from_bytes(_read_bytes(file, 8), "little")))
            metadata, start = header.pop("__metadata__", {}), file.tell()
            tensors = {name: _read_tensor(file, start, entry) for name, entry in header.items()}
        state = json.loads(metadata["state"])
        if "sha256" in metadata and metadata["sha256"] != _hash(tensors, metadata["state"]):
            raise ValueError("its content is not what was written")
        return tensors, state


def _read_bytes(file: BinaryIO, num_bytes: int) -> bytearray:
    """Return the next bytes of a file.

    safetensors maps files into memory, and a process with a memory map dies if the file is cut short.
    """
    if not 0 <= num_bytes <= os.fstat(file.fileno()).st_size:
        raise ValueError("it is cut short")
    content = bytearray(num_bytes)
    if file.readinto(content) < num_bytes:  # type: ignore[attr-defined]
        raise ValueError("it is cut short")
    return content


def _read_tensor(file: BinaryIO, start: int, entry: dict[str, Any]) -> Tensor:
    """Return the tensor with an entry in the header of a safetensors file, whose data start at `start`."""
    first, stop = entry["data_offsets"]
    file.seek(start + first)
    content, dtype = _read_bytes(file, stop - first), DTYPES[entry["dtype"]]
    tensor = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
    return tensor.reshape(entry["shape"])


def _hash(tensors: Mapping[str, Tensor], state: str) -> str:
    """Return the SHA-256 of tensors on the CPU with their names, types and shapes, and of a state."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def pack(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    ema_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return weights ("model.NAME"), averaged weights ("average.NAME") and Adam ("optimizer.0.exp_avg")."""
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in (ema_weights or {}).items()}
    for index, slot in (optimizer.state_dict()["state"] if optimizer else {}).items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in slot.items()}
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
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
    if optimizer is not None:
        slots: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, key = name.split(".", 2)
                slots.setdefault(int(index), {})[key] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": slots})
