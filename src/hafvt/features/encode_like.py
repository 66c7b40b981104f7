"""`hafvt encode --like`: the vectors of a grown dataset, by the encoders of an earlier one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import RUN_CATALOG, Dataset
from hafvt.features.encoders.attribute_vectors import ATTRIBUTES
from hafvt.features.modalities import MODALITIES
from hafvt.features.new_items import encode_new_items
from hafvt.features.table import EncodedItems, FeatureTable


def open_earlier(folder: Path) -> Dataset:
    """Return an earlier dataset with vectors, or the catalog of a run.

    Raises:
        HafvtError: there is none.
    """
    if (folder / "model.json").exists():
        return Dataset.open(folder / RUN_CATALOG, catalog=True)
    return Dataset.open(folder)


def encode_like(
    data: Dataset, earlier: Dataset, name: str, device: str
) -> tuple[EncodedItems, dict[str, Any], dict[str, npt.NDArray[Any]]]:
    """Return the vectors of a modality, what about.json holds of the encoder, and what it has learned.

    An item whose content, such as its title or the path of its picture, is the same in the earlier dataset
    keeps its vector. Others, and attributes of all items, are encoded by the encoder as it was fitted on the
    earlier dataset.

    Raises:
        HafvtError: see `encode_new_items`.
    """
    table = FeatureTable.open(earlier.folder / "features" / name)
    metadata = {key: table.metadata[key] for key in ("encoder", "settings", "versions")}
    if metadata["encoder"] == ATTRIBUTES:  # quick, and equal for equal content
        return encode_new_items(earlier, name, data.item_table, None), metadata, table.fitted_arrays()
    column = MODALITIES[name].column if name in MODALITIES else None
    keys = ["item_id", *([column] if column else [])]
    old = earlier.item_table.select(keys).with_row_index("row").filter(pl.Series(np.array(table.present)))
    joined = data.item_table.select(keys).join(old, on=keys, how="left", maintain_order="left")
    is_kept = joined["row"].is_not_null().to_numpy()
    kept_rows = joined["row"].drop_nulls().to_numpy()
    new = data.item_table.filter(~is_kept)
    rows = np.zeros((data.num_items, table.rows.shape[1]), dtype=np.float16)
    present, problems = is_kept.copy(), dict[int, str]()
    rows[is_kept] = table.rows[kept_rows]
    if len(new):
        encoded = encode_new_items(earlier, name, new, data.image_root, device=device)
        places = np.flatnonzero(~is_kept)
        rows[places], present[places] = encoded.rows, encoded.present
        problems = {int(places[row]): problem for row, problem in encoded.problems.items()}
    return EncodedItems(rows, present, problems), metadata, table.fitted_arrays()
