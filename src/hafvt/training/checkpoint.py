"""Checkpoints: one safetensors file each, with the state as JSON in its header; never a pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from math import prod
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
CHUNK_BYTES = 2**26
"""Bytes of a tensor that are read at a time."""
UNKNOWN_HASH = "0" * 64
"""Hash in the header of a file whose tensors are not written yet."""


def save_checkpoint(path: Path, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    """Write named tensors, a state of JSON values, and a hash of both, atomically."""
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    first_names = {tensor.data_ptr(): name for name, tensor in reversed(on_cpu.items())}
    for name, tensor in on_cpu.items():
        if first_names[tensor.data_ptr()] != name:  # safetensors does not write tied weights twice
            on_cpu[name] = tensor.clone()
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
    tensors: dict[str, Tensor] = {}
    for name, shape, first, rows in iter_checkpoint(path, remedy):
        tensor = tensors.setdefault(name, torch.empty(shape, dtype=rows.dtype))
        tensor.view(shape or (1,))[first : first + len(rows)] = rows
    return tensors, read_state(path, remedy)


def read_state(path: Path, remedy: str) -> Any:
    """Return the state of a checkpoint.

    Raises:
        HafvtError: the file is missing or damaged; `remedy` is what to do then.
    """
    with explained_read_errors(path, remedy), path.open("rb") as file:
        return json.loads(_read_header(file)["__metadata__"]["state"])


def read_hash(path: Path, remedy: str) -> str:
    """Return the hash in the header of a checkpoint, see `read_state`."""
    with explained_read_errors(path, remedy), path.open("rb") as file:
        return str(_read_header(file)["__metadata__"]["sha256"])


def iter_checkpoint(
    path: Path, remedy: str, digest: Any = None
) -> Iterator[tuple[str, tuple[int, ...], int, Tensor]]:
    """Yield the tensors of a checkpoint in parts, so that large ones need little memory.

    A part is the name and shape of a tensor, the number of the part's first row, and its rows, (1,) of a
    scalar. `digest` is updated to the hash of the tensors and the state.

    Raises:
        HafvtError: the file is missing or, after the last part, not what was written; see `read_state`.
    """
    digest = hashlib.sha256() if digest is None else digest
    with explained_read_errors(path, remedy), path.open("rb") as file:
        header = _read_header(file)
        metadata, position = header.pop("__metadata__", {}), file.tell()
        digest.update(metadata["state"].encode())
        for name, entry in sorted(header.items()):
            dtype, shape, start = DTYPES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"][0]
            digest.update(_describe(name, dtype, shape))
            num_rows, row_shape = shape[0] if shape else 1, shape[1:]
            row_bytes = torch.empty(row_shape, dtype=dtype).nbytes
            chunk_rows = max(CHUNK_BYTES // max(row_bytes, 1), 1)
            for first in range(0, max(num_rows, 1), chunk_rows):
                count = min(chunk_rows, num_rows - first)
                file.seek(position + start + first * row_bytes)
                content = _read_bytes(file, count * row_bytes)
                digest.update(content)
                values = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
                yield name, shape, first, values.reshape(count, *row_shape)
        if metadata.get("sha256", UNKNOWN_HASH) not in (UNKNOWN_HASH, digest.hexdigest()):
            raise ValueError("its content is not what was written")


def verify_checkpoint(path: Path, remedy: str = "train the model again") -> None:
    """Raise HafvtError if a checkpoint is missing, or not what was written."""
    for _ in iter_checkpoint(path, remedy):
        pass


def _read_header(file: BinaryIO) -> Any:
    """Return the JSON header of a safetensors file, whose data come next; it fits the length of the file."""
    header = json.loads(_read_bytes(file, int.from_bytes(_read_bytes(file, 8), "little")))
    entries = [entry for name, entry in header.items() if name != "__metadata__"]
    end = 0
    for entry in sorted(entries, key=lambda entry: entry["data_offsets"]):
        (first, stop), shape = entry["data_offsets"], entry["shape"]
        if first != end or min(shape, default=0) < 0:
            raise ValueError("its tensors overlap, or have gaps or negative sizes")
        if stop - first != prod(shape) * DTYPES[entry["dtype"]].itemsize:
            raise ValueError("a tensor has another size than its shape")
        end = stop
    if end != os.fstat(file.fileno()).st_size - file.tell():
        raise ValueError("it is not as long as its tensors")
    return header


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


def _describe(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> bytes:
    """Return what the hash of a tensor begins with."""
    return f"{name} {dtype} {shape}".encode()


def _hash(tensors: Mapping[str, Tensor], state: str) -> str:
    """Return the SHA-256 of tensors on the CPU with their names, types and shapes, and of a state."""
    digest = hashlib.sha256(state.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(_describe(name, tensor.dtype, tuple(tensor.shape)))
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
