"""`hafvt train --init-from RUN`: start a training from the weights of a run on an earlier dataset.

Rows of item tables are matched by the ids of the items, modules and rows of domains by the names of the
domains. What is new in the dataset keeps its random initial weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import torch
from torch import Tensor, nn

from hafvt.data.dataset import Dataset
from hafvt.errors import ArgumentError, HafvtError
from hafvt.features.item_features import ItemFeatures
from hafvt.models import MODELS
from hafvt.models.base import Model
from hafvt.models.blocks import DomainSoftmax, PositionEmbedding
from hafvt.models.hyperparameters import ModelConfig, validate_config
from hafvt.models.request_date import RequestDateOffset
from hafvt.training.run import Run, model_item_features, open_run, read_model_file

MIN_COSINE = 0.99
"""Least mean cosine of the vectors of shared items, which vectors of the same encoder have."""


class InitialRun(NamedTuple):
    """A run that a training starts from, and where its items are in the dataset of the training.

    Attributes:
        run: the run.
        rows: (items,) index in the run of each item of the dataset, -1 for new items.
    """

    run: Run
    rows: Tensor


def initial_config(model: str, folder: Path, preset: str, params: Mapping[str, Any]) -> ModelConfig:
    """Return the hyperparameters of a run, with the changes of a preset and of `params`.

    Raises:
        HafvtError: the run is of another model, or of one without weights.
    """
    manifest = read_model_file(folder)
    entry = MODELS[model]
    if manifest["model"] != model:
        raise ArgumentError(
            f"--init-from {folder} is a run of {manifest['model']}: train {manifest['model']}, or name a run "
            f"of {model}"
        )
    if not entry.has_weights:
        raise ArgumentError(
            f"--init-from: {model} has no weights to start from: train it anew, which takes one pass"
        )
    if preset not in entry.presets:
        raise ArgumentError(f"{model} has no preset {preset!r}: choose one of {', '.join(entry.presets)}")
    values = {**manifest["config"], **entry.presets[preset], **params}
    return validate_config(model, entry.config_class, values)


def open_initial_run(folder: Path, data: Dataset) -> InitialRun:
    """Open the run that a training on a dataset starts from.

    Raises:
        HafvtError: the run cannot be opened, or has no item of the dataset.
    """
    run = open_run(folder)
    ids = run.data.item_table.select("item_id").with_row_index("row")
    joined = data.item_table.select("item_id").join(ids, on="item_id", how="left", maintain_order="left")
    rows = torch.from_numpy(joined["row"].cast(pl.Int64).fill_null(-1).to_numpy().copy())
    if not (rows >= 0).any():
        raise HafvtError(
            f"--init-from {folder}: it has no item of {data.folder}: name a run with the same item ids"
        )
    return InitialRun(run, rows)


def inherit_features(item_features: ItemFeatures, initial: InitialRun) -> ItemFeatures:
    """Return item features with what the weights of the run depend on, see `Model.inherit_features`.

    Raises:
        HafvtError: the vectors of shared items differ from those of the run.
    """
    run, rows = initial
    if not item_features.vectors:
        return item_features
    own = model_item_features(run.data, run.name, run.config, for_training=False)
    new = (rows >= 0).nonzero()[:, 0]
    old = rows[new]
    for name, (vectors, present) in item_features.vectors.items():
        own_vectors, own_present = own.vectors[name]
        both = present[new] & own_present[old]
        is_same = vectors.shape[1] == own_vectors.shape[1]
        if is_same and both.any():
            cosines = (vectors[new[both]].float() * own_vectors[old[both]].float()).sum(1)
            is_same = float(cosines.mean()) >= MIN_COSINE
        if not is_same:
            raise HafvtError(
                f"--init-from {run.folder}: the {name} vectors of items differ from those of its training: "
                f"encode the dataset with hafvt encode --like {run.folder}"
            )
    return run.model.inherit_features(item_features, own, new, old)


@torch.no_grad()
def copy_weights(model: Model, initial: InitialRun) -> None:
    """Replace the weights of a new model by those of the run, in place; what is new keeps its weights.

    Raises:
        HafvtError: a weight has another shape in the run.
    """
    source = initial.run.model
    old_modules = dict(source.named_modules())
    entries = _list_entries(model, source)
    for name, module in model.named_modules():
        old_module = old_modules.get(_name_in(source, name, model, entries))
        if old_module is None:  # of a new domain
            continue
        if isinstance(module, RequestDateOffset) and isinstance(old_module, RequestDateOffset):
            module.continue_from(old_module)
            continue
        tensors, old_tensors = _own_tensors(module), _own_tensors(old_module)
        for key, tensor in tensors.items():
            path = f"{name}.{key}".removeprefix(".")
            old_tensor, rows = old_tensors[key], _rows(model, name, module, initial)
            if path in model.by_domain:
                rows = torch.tensor([-1 if entry is None else entry for entry in entries])
            if rows is None and tensor.shape == old_tensor.shape:
                tensor.copy_(old_tensor)
            elif rows is not None and tensor.shape[1:] == old_tensor.shape[1:]:
                tensor[rows >= 0] = old_tensor[rows[rows >= 0]]
            else:
                shape, old_shape = tuple(tensor.shape), tuple(old_tensor.shape)
                raise HafvtError(
                    f"--init-from {initial.run.folder}: its {path} has the shape {old_shape}, not {shape}: "
                    "leave out --params that change sizes"
                )


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of a module without its submodules, and its counters, such as `TriCdr.steps`.

    Other buffers are computed from the dataset.
    """
    buffers = ((name, buffer) for name, buffer in module.named_buffers(recurse=False) if buffer.ndim == 0)
    return {**dict(module.named_parameters(recurse=False)), **dict(buffers)}


def _names(model: Model) -> tuple[str, ...]:
    """Return the names of the entries of `by_domain`."""
    return model.sequence_names or tuple(domain.name for domain in model.domains)


def _list_entries(model: Model, source: Model) -> list[int | None]:
    """Return the position in `source` of each entry of `by_domain`; None for those of new domains."""
    names = _names(source)
    return [names.index(name) if name in names else None for name in _names(model)]


def _name_in(source: Model, name: str, model: Model, entries: list[int | None]) -> str | None:
    """Return the name in `source` of a module of `model`; None for a module of a new domain."""
    parts = name.split(".")
    if parts[0] not in model.by_domain or len(parts) == 1:
        return name
    entry = entries[int(parts[1])]
    return None if entry is None else ".".join([parts[0], str(entry), *parts[2:]])


def _rows(model: Model, name: str, module: nn.Module, initial: InitialRun) -> Tensor | None:
    """Return the row in the run of each row of a module with a row for each item; None for other modules."""
    rows = initial.rows
    if isinstance(module, DomainSoftmax):
        return _domain_rows(model, initial, module.domain.name)
    if not isinstance(module, nn.Embedding) or isinstance(module, PositionEmbedding):
        return None
    if module.num_embeddings == len(rows):
        return rows
    return _domain_rows(model, initial, model.domains[int(name.split(".")[1])].name)  # as in Tri-CDR


def _domain_rows(model: Model, initial: InitialRun, name: str) -> Tensor:
    """Return the row among the run's items of a domain of each item of that domain; -1 for new ones."""
    new, old = (
        next(d for d in domains if d.name == name) for domains in (model.domains, initial.run.data.domains)
    )
    rows = initial.rows[new.start : new.stop]
    return torch.where((rows >= old.start) & (rows < old.stop), rows - old.start, -1)
