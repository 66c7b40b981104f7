"""`hafvt encode`: turn the pictures, titles and attributes of a dataset's items into frozen vectors."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import ArgumentError, HafvtError
from hafvt.features.encode_like import encode_like, open_earlier
from hafvt.features.encoded_parts import (
    PartEncoder,
    open_part_encoder,
    read_parts,
    remove_encoding,
    split_items,
    start_encoding,
)
from hafvt.features.encoders.attribute_vectors import (
    ATTRIBUTES,
    ColumnChoice,
    choose_columns,
    dump_columns,
    encode_attributes,
    fit_columns,
)
from hafvt.features.encoders.base import Encoder
from hafvt.features.encoders.precomputed import look_up_vectors
from hafvt.features.modalities import MODALITIES, make_encoder
from hafvt.features.table import (
    FEATURE_TABLE,
    EncodedItems,
    FeatureTable,
    normalize_rows,
    write_fitted_arrays,
    write_table,
)
from hafvt.files import sha256
from hafvt.folders import atomic_folder, folder_lock
from hafvt.parts import map_parts, num_gpus, ray_cluster
from hafvt.settings import Device, Folder, PositiveCount, RayAddress, Seed, check_arguments


@check_arguments
def encode(
    data: str | Path | Dataset,
    *,
    image: str | None = None,
    title: str | None = None,
    attributes: list[str] | None = None,
    encoders: dict[str, str] | None = None,
    precomputed: dict[str, str | Path] | None = None,
    like: Folder | None = None,
    batch_size: PositiveCount = 64,
    device: Device = "auto",
    seed: Seed = 0,
    ray: RayAddress | None = None,
) -> dict[str, FeatureTable]:
    """Write the vectors of pictures, titles and attributes to the folder `features` of a dataset.

    Repeat an interrupted call with the same options: it continues where it stopped and gives the same
    result. Items with a missing or broken picture or title get no vector; a JPEG whose end is missing is used
    as far as it goes. `features/<name>/problems.csv` lists all of these. Pictures are files, or addresses
    with https://, http://, s3:// or gs://.

    Example: hafvt encode data/movies --image classic --title classic

    Args:
        data: the dataset or its folder.
        image: encoder of the pictures: "classic" or "clip:CHECKPOINT".
        title: encoder of the titles: "classic", "clip:CHECKPOINT" or "sentence:CHECKPOINT".
        attributes: columns of the items table that become one vector per item, such as genres, brand and
            price. Numbers and dates are numbers, others categories; NAME:category and NAME:number choose.
        encoders: encoders of other modalities, by name of the modality.
        precomputed: files of vectors from elsewhere, by modality (small letters, digits, underscores).
        like: an earlier dataset or a run, instead of encoders: items with the same title or picture's path
            keep their vectors, others, and all attributes, get vectors by the same encoders. So
            `train --init-from` can go on.
        batch_size: pictures or titles that an encoder gets at a time.
        device: where checkpoints run: "auto", "cpu", "cuda", ...
        seed: random seed of encoders that are fitted on the dataset.
        ray: encode on a Ray cluster, on its GPUs if it has any: HOST:PORT, "auto" for the cluster that this
            machine is part of, or "local" to start one here. All machines share the dataset's folder.

    Returns:
        The tables of vectors by modality.

    Raises:
        HafvtError: there is nothing to encode; a name, checkpoint or file is wrong; or no item could be
            encoded.
    """
    precomputed = precomputed or {}
    named = {"image": image, "title": title} | (encoders or {})
    specs = {name: spec for name, spec in named.items() if spec is not None}
    if not specs and not precomputed and not attributes and like is None:
        raise ArgumentError(
            "nothing to encode: name an encoder for image or title, a precomputed file, or columns of "
            "attributes"
        )
    if (specs or attributes) and like is not None:
        raise ArgumentError("--like takes the encoders of an earlier dataset: leave out other encoders")
    for name in precomputed:
        if not re.fullmatch(r"[a-z0-9_]+", name):
            raise ArgumentError(f"modality {name!r}: use small letters, digits and underscores")
        if name in specs or (name == ATTRIBUTES and attributes):
            raise ArgumentError(f"modality {name!r} has both an encoder and a precomputed file: keep one")
    data = data if isinstance(data, Dataset) else Dataset.open(data)
    # Construct all encoders first, so that a wrong name is reported before hours of work.
    instances = {name: make_encoder(name, spec, device, seed) for name, spec in specs.items()}
    choices = choose_columns(data.item_table, attributes or [])
    earlier = None if like is None else open_earlier(Path(like))
    same_encoders = [] if earlier is None else [n for n in earlier.feature_names if n not in precomputed]
    tables = {}
    with ExitStack() as stack:
        for name in sorted([*specs, *precomputed, *same_encoders, *([ATTRIBUTES] if choices else [])]):
            stack.enter_context(folder_lock(data.folder / "features" / name))
        for name, path in precomputed.items():
            tables[name] = _import_vectors(data, name, Path(path))
        if earlier is not None:
            tables |= {name: _encode_like(data, earlier, name, device) for name in same_encoders}
        if choices:
            tables[ATTRIBUTES] = _encode_attributes(data, choices)
        if ray is not None and specs:
            stack.enter_context(ray_cluster(ray))
            device = "cuda" if device == "auto" and num_gpus() else device
        for name, encoder in instances.items():
            if ray is not None and "device" in encoder.settings:
                encoder.settings["device"] = device if device != "auto" else "cpu"
            options = specs[name], device, seed
            tables[name] = _encode_modality(data, name, options, encoder, batch_size, ray)
    return tables


def _encode_modality(
    data: Dataset,
    name: str,
    options: tuple[str, str, int],
    encoder: Encoder,
    batch_size: int,
    ray: str | None,
) -> FeatureTable:
    """Encode the items of a dataset in one modality; `options` are encoder with argument, device and seed."""
    column, spec = MODALITIES[name].column, options[0]
    if column not in data.item_table.columns:
        raise HafvtError(
            f"{data.folder} has no item column {column!r} for {name}: prepare it with this column"
        )
    items_sha256 = sha256(data.folder / "items.parquet")
    metadata = {
        "encoder": spec,
        "settings": encoder.settings,
        "batch_size": batch_size,
        "source": {
            "file": "items.parquet",
            "sha256": items_sha256,
            "image_root": str(data.image_root) if data.image_root else None,
        },
        "versions": {
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in encoder.packages},
        },
    }
    target = data.folder / "features" / name
    folder = target.with_name(f".{name}.partial").absolute()
    start_encoding(folder, metadata)
    ids, values = (data.item_table[column].to_list() for column in ("item_id", column))
    parts = split_items(folder, ids, values, batch_size, as_one=encoder.needs_all_items)
    if ray is None:
        work = PartEncoder(name, encoder, data.image_root, batch_size)
        map_parts(f"{name} {spec}", lambda: work, parts, unit="items")
    else:
        root = data.image_root.absolute() if data.image_root else None
        kind, colon, argument = spec.partition(":")
        if colon and Path(argument).is_dir():  # workers have other working folders
            options = f"{kind}:{Path(argument).absolute()}", *options[1:]
        open_work = partial(open_part_encoder, name, MODALITIES[name], options, root, batch_size)
        uses_device = "device" in encoder.settings and options[1].startswith("cuda")
        map_parts(f"{name} {spec}", open_work, parts, unit="items", ray=ray, use_gpus=uses_device)
    rows, present, problems, encoder.fitted_arrays = read_parts(folder, parts)
    vectors = encoder.finish(rows, present) if present.any() else rows
    encoded = normalize_rows(vectors, present, problems)
    if not encoded.present.any():
        remove_encoding(folder)  # so that corrected input is read
    if sha256(data.folder / "items.parquet") != items_sha256:
        raise HafvtError(f"{data.folder} was prepared again meanwhile: start the command again")
    items = data.item_table.select("item_id", pl.col(column).replace("", None).alias("value"))
    table = _save_table(target, items, encoded, metadata, encoder.fitted_arrays)
    remove_encoding(folder)
    return table


def _encode_attributes(data: Dataset, choices: list[ColumnChoice]) -> FeatureTable:
    """Encode the attributes of the items of a dataset."""
    columns = fit_columns(data.item_table, choices, data.train_counts() > 0)
    settings, fitted_arrays = dump_columns(columns)
    metadata = {
        "encoder": ATTRIBUTES,
        "settings": {"choices": choices, "columns": settings},
        "source": {"file": "items.parquet", "sha256": sha256(data.folder / "items.parquet")},
        "versions": {"numpy": np.__version__, "polars": pl.__version__},
    }
    items = data.item_table.select("item_id", pl.lit(None, pl.String).alias("value"))
    encoded = encode_attributes(data.item_table, columns)
    return _save_table(data.folder / "features" / ATTRIBUTES, items, encoded, metadata, fitted_arrays)


def _encode_like(data: Dataset, earlier: Dataset, name: str, device: str) -> FeatureTable:
    """Write the vectors of a modality that `encode_like` returns."""
    encoded, metadata, fitted_arrays = encode_like(data, earlier, name, device)
    column = pl.col(MODALITIES[name].column).replace("", None) if name in MODALITIES else pl.lit(None)
    items = data.item_table.select("item_id", column.alias("value"))
    metadata["source"] = {"file": "items.parquet", "sha256": sha256(data.folder / "items.parquet")}
    return _save_table(data.folder / "features" / name, items, encoded, metadata, fitted_arrays)


def _import_vectors(data: Dataset, name: str, path: Path) -> FeatureTable:
    """Write the vectors that a file has for the items of a dataset."""
    items = data.item_table.select("item_id")
    encoded, ids = look_up_vectors(path, items["item_id"])
    is_listed = items["item_id"].is_in(ids.implode())
    if not is_listed.any():
        raise HafvtError(
            f"{path}: none of its {len(ids)} ids (e.g. {ids[0] if len(ids) else ''!r}) is an item of "
            f"{data.folder} (e.g. {items['item_id'][0]!r}): write the vectors under the item ids of the "
            "input tables"
        )
    metadata = {
        "encoder": "precomputed",
        "settings": {},
        "source": {"file": path.name, "sha256": sha256(path)},
        "versions": {"numpy": np.__version__, "polars": pl.__version__},
        "unknown_ids": len(ids) - int(is_listed.sum()),
    }
    items = items.with_columns(value=pl.when(is_listed).then(pl.lit(path.name)))
    return _save_table(data.folder / "features" / name, items, encoded, metadata, {})


def _save_table(
    folder: Path,
    items: pl.DataFrame,
    encoded: EncodedItems,
    metadata: dict[str, Any],
    fitted_arrays: dict[str, npt.NDArray[Any]],
) -> FeatureTable:
    """Write a table in place of an older one and open it.

    Args:
        folder: of the table.
        items: item_id and value, the content of the items; null if there is none.
        encoded: the vectors of the items.
        metadata: what about.json holds beside counts.
        fitted_arrays: what the encoder learned; empty if nothing.

    Raises:
        HafvtError: no item has a vector.
    """
    rows, present, problems = encoded
    report = items[list(problems)].with_columns(pl.Series("problem", list(problems.values())))
    if not present.any():
        item_id, value, problem = report.row(0)
        raise HafvtError(
            f"{folder.name}: none of the {len(items)} items could be encoded, e.g. item {item_id!r}, "
            f"value {(value or '')[:80]!r}: {problem}. Correct the input or leave it out"
        )
    num_encoded, num_missing = int(present.sum()), report["value"].null_count()
    num_without = len(items) - num_encoded
    counts = {"items": len(items), "encoded": num_encoded, "missing": num_missing}
    counts |= {"broken": num_without - num_missing, "incomplete": len(report) - num_without}
    metadata = {**metadata, "width": rows.shape[1], "counts": counts}
    with atomic_folder(folder, FEATURE_TABLE, overwrite=True, num_bytes=rows.nbytes) as temporary:
        write_fitted_arrays(temporary, fitted_arrays)
        write_table(temporary, rows, present, metadata)
        report.write_csv(temporary / "problems.csv")  # after the hashes, which it does not need
    return FeatureTable.open(folder)
