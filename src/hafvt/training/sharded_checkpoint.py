"""Checkpoints of item tables in slices, which any number of processes can read.

Each process writes its slices into a file of its own, such as `last-120-1-of-3.safetensors` after step 120.
Process 0 writes its slices and all other tensors last, into `last.safetensors`. The JSON in the header of
that file lists the files, their hashes and the tables, so that all files of a checkpoint are replaced in one
step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hafvt.files import atomic_file, explained_read_errors
from hafvt.ops.collectives import barrier
from hafvt.ops.shards import Shard, copy_rows, iter_table
from hafvt.processes import num_processes, process_index
from hafvt.training.checkpoint import (
    DTYPES,
    UNKNOWN_HASH,
    iter_checkpoint,
    read_hash,
    read_state,
    save_checkpoint,
)


def sharded_tensor_names(
    model: nn.Module, tables: Collection[str], optimizer: torch.optim.Optimizer | None
) -> set[str]:
    """Return the names that `pack` gives to tables of a model's state dict, their averages and moments."""
    parameters = [name for name, weight in model.named_parameters() if weight.requires_grad]
    names = {f"model.{name}" for name in tables}
    names |= {f"average.{name}{suffix}" for name in tables for suffix in ("", ".row_steps")}
    indices = [index for index, name in enumerate(parameters) if name in tables and optimizer is not None]
    return names | {f"optimizer.{index}.{key}" for index in indices for key in ("exp_avg", "exp_avg_sq")}


def save_slices(
    path: Path, tensors: Mapping[str, Tensor], tables: Collection[str], state: dict[str, Any]
) -> None:
    """Write a checkpoint of all processes, or of process 0 alone if there are no slices.

    `tables` has the names of the slices among `tensors`, and others.
    """
    tables, count = sorted(set(tables) & set(tensors)), num_processes()
    names = [f"{path.stem}-{state['step']}-{number}-of-{count}{path.suffix}" for number in range(1, count)]
    files = names if tables else []
    if process_index() > 0:
        slices = {name: tensors[name] for name in tables}
        save_checkpoint(path.with_name(files[process_index() - 1]), slices, {})
    if files:
        barrier()
    if process_index() == 0:
        hashes = [read_hash(path.with_name(name), "start the command again") for name in files]
        index = {"files": [path.name, *files], "hashes": hashes, "tables": tables} if files else {}
        save_checkpoint(path, tensors, state | index)
        for file in path.parent.glob(f"{path.stem}-*-of-*{path.suffix}"):  # of earlier checkpoints
            if file.name not in files:
                file.unlink(missing_ok=True)


def load_slices(
    path: Path, tables: Collection[str], ranges: Sequence[tuple[int, int]], shard: Shard | None, remedy: str
) -> tuple[dict[str, Tensor], Any]:
    """Return the tensors and the state of a checkpoint, of tables only the rows of this process.

    Args:
        path: the file of process 0, or of a checkpoint or weights with whole tables.
        tables: names of the tables in a file with whole ones.
        ranges: the first row and the last row plus 1 of each domain.
        shard: of this process; None for whole tables.
        remedy: what to do if a file is missing or damaged.

    Raises:
        HafvtError: a file is missing, or not what was written.
    """
    state = read_state(path, remedy)
    files, hashes = state.pop("files", [path.name]), state.pop("hashes", [])
    tables = state.pop("tables", tables)
    target, tensors = shard or Shard.of_ranges(ranges, 0, 1), dict[str, Tensor]()
    for number, file in enumerate(files):
        source = Shard.of_ranges(ranges, number, len(files))
        if number > 0 and not source.overlaps(target):
            continue
        with explained_read_errors(path.with_name(file), remedy):
            if number > 0 and [read_hash(path.with_name(file), remedy)] != hashes[number - 1 : number]:
                raise ValueError("it is of another checkpoint")
        for name, shape, first, rows in iter_checkpoint(path.with_name(file), remedy):
            if name not in tables:
                tensor = tensors.setdefault(name, torch.empty(shape, dtype=rows.dtype))
                tensor.view(shape or (1,))[first : first + len(rows)] = rows
                continue
            table = tensors.setdefault(name, torch.empty(target.num_rows, *shape[1:], dtype=rows.dtype))
            for start, part in source.global_rows(first, rows):
                copy_rows(table, target, start, part)
    return tensors, state


def save_unsharded(
    path: Path, tensors: Mapping[str, Tensor], tables: Collection[str], shard: Shard, state: dict[str, Any]
) -> None:
    """Write what `save_checkpoint` writes of whole tables, from slices, some rows at a time."""
    if process_index() > 0:
        for name in _file_order(tensors):
            for _ in iter_table(tensors[name], shard) if name in tables else ():
                pass
        return
    text, names = json.dumps(state), {dtype: name for name, dtype in DTYPES.items()}
    header: dict[str, Any] = {"__metadata__": {"state": text, "sha256": UNKNOWN_HASH}}
    stop = 0
    for name in _file_order(tensors):
        tensor = tensors[name]
        shape = [shard.starts[-1], *tensor.shape[1:]] if name in tables else list(tensor.shape)
        start, stop = stop, stop + tensor.element_size() * torch.Size(shape).numel()
        header[name] = {"dtype": names[tensor.dtype], "shape": shape, "data_offsets": [start, stop]}
    content = json.dumps(header, separators=(",", ":")).encode()
    content += b" " * (-len(content) % 8)
    with atomic_file(path, stop) as temporary:
        with temporary.open("w+b") as file:
            file.write(len(content).to_bytes(8, "little") + content)
            for name in _file_order(tensors):
                for rows in iter_table(tensors[name], shard) if name in tables else [tensors[name]]:
                    file.write(rows.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
            file.flush()
            digest = hashlib.sha256()
            for _ in iter_checkpoint(temporary, "", digest):
                pass
            file.seek(8 + content.index(UNKNOWN_HASH.encode()))
            file.write(digest.hexdigest().encode())
        temporary.chmod(0o644)


def _file_order(tensors: Mapping[str, Tensor]) -> list[str]:
    """Return names in the order of a safetensors file, in which wider values come first, for alignment."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
