"""Encode items that are added to a dataset later, with the encoders that made its vectors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encoded_batches import iter_encoded_batches
from hafvt.features.encoders.attribute_vectors import ATTRIBUTES, encode_attributes, load_columns
from hafvt.features.encoders.base import Encoder
from hafvt.features.encoders.precomputed import look_up_vectors
from hafvt.features.modalities import MODALITIES, make_encoder
from hafvt.features.table import EncodedItems, FeatureTable, normalize_rows
from hafvt.files import explained_read_errors
from hafvt.progress import progress


def encode_new_items(
    data: Dataset,
    name: str,
    items: pl.DataFrame,
    image_root: Path | None,
    *,
    precomputed: str | Path | None = None,
    device: str = "auto",
) -> EncodedItems:
    """Return the vectors of new items, made by the encoder of a dataset's `features/<name>/`.

    Args:
        data: the dataset.
        name: the modality.
        items: item_id and, unless the vectors are precomputed, the modality's column; of attributes, those
            columns that are known.
        image_root: the folder that relative picture paths start from.
        precomputed: file with the vectors of the new items, if those of the dataset came from a file as well.
        device: where checkpoints run.

    Raises:
        HafvtError: the encoder has changed, or a file is missing, damaged or wrong.
    """
    table = FeatureTable.open(data.folder / "features" / name)
    with explained_read_errors(table.folder / "about.json", f"run hafvt encode for {name} again"):
        spec, saved = table.metadata["encoder"], table.metadata["settings"]
    width = table.rows.shape[1]
    if spec == "precomputed":
        if precomputed is None:
            raise HafvtError(
                f"the features {name!r} of {data.folder} came from a file: give those of the new items by "
                f"--precomputed {name}=FILE"
            )
        encoded, _ = look_up_vectors(Path(precomputed), items["item_id"])
        if encoded.rows.shape[1] != width:
            raise HafvtError(
                f"{precomputed}: its vectors have {encoded.rows.shape[1]} dimensions, the dataset's {width}: "
                "give vectors of the same encoder"
            )
        return encoded
    if precomputed is not None:
        raise HafvtError(
            f"{data.folder}'s features {name!r} were made by {spec}, as are those of new items: leave out "
            "the precomputed file"
        )
    if spec == ATTRIBUTES:
        return encode_attributes(items, load_columns(saved["columns"], table.fitted_arrays()))
    encoder = _restore_encoder(table, spec, saved, device)
    ids, values = items["item_id"].to_list(), items[MODALITIES[name].column].to_list()
    rows, present = np.zeros((len(values), width), np.float32), np.zeros(len(values), np.bool_)
    problems: dict[int, str] = {}
    with progress(name, len(values), "items") as advance:
        for batch in iter_encoded_batches(name, encoder, ids, values, image_root):
            if len(batch.items):
                rows[batch.items] = encoder.finish(batch.rows, np.ones(len(batch.rows), np.bool_))
            present[batch.items] = True
            problems |= batch.problems
            advance(batch.size)
    return normalize_rows(rows, present, problems)


def _restore_encoder(table: FeatureTable, spec: str, saved: dict[str, Any], device: str) -> Encoder:
    """Return the encoder of a table with the settings `saved` and the fitted arrays that it had."""
    encoder = make_encoder(table.name, spec, device, saved.get("seed", 0))
    settings = json.loads(json.dumps(encoder.settings))
    if changed := [key for key in settings if key != "device" and settings[key] != saved.get(key)]:
        raise HafvtError(
            f"{spec} is not what made {table.folder} (other: {', '.join(changed)}): restore it, or encode "
            "the dataset and train anew"
        )
    encoder.fitted_arrays = table.fitted_arrays()
    return encoder
