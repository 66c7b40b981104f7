"""Items that come after a dataset was encoded, described as its own were."""

from __future__ import annotations

import json
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.errors import HafvtError
from hafvt.features.encode import load_ahead, loader
from hafvt.features.encoders import Encoder, make_encoder
from hafvt.features.encoders.precomputed import read_precomputed
from hafvt.features.table import FeatureTable
from hafvt.progress import progress

BATCH = 64


class EncodedItems(NamedTuple):
    """The vectors of some items in one modality.

    Attributes:
        rows: (items, e) fp16, of unit length where present, zero elsewhere.
        present: (items,) bool.
        problems: what is wrong with each of the others, by its row.
    """

    rows: npt.NDArray[np.float16]
    present: npt.NDArray[np.bool_]
    problems: dict[int, str]


def encode_new_items(
    data: Dataset,
    name: str,
    items: pl.DataFrame,
    root: Path | None,
    *,
    precomputed: str | Path | None = None,
    device: str = "auto",
) -> EncodedItems:
    """Encodes further items with the very encoder that made a dataset's `features/<name>/`.

    Args:
        data: the dataset.
        name: the modality.
        items: item_id and, where the encoder needs it, title or image.
        root: the folder that relative picture paths start from.
        precomputed: their vectors, where the dataset's came out of a file, too.
        device: where checkpoints run.

    Raises:
        HafvtError: the encoder is not what it was, or its fit was not kept; or a file is missing or wrong.
    """
    table = FeatureTable.open(data.folder / "features" / name)
    if table.about["encoder"] == "precomputed":
        if precomputed is None:
            raise HafvtError(
                f"the features {name!r} of {data.folder} came out of a file: give those of the new items by "
                f"--precomputed {name}=FILE"
            )
        return _taken(items, Path(precomputed), table.rows.shape[1])
    if precomputed is not None:
        raise HafvtError(
            f"{data.folder}'s features {name!r} were made by {table.about['encoder']}, as are those of new "
            "items: leave out the precomputed file"
        )
    encoder = _encoder_of(data, table, device)
    values = items[name].to_list()
    rows = np.zeros((len(values), table.rows.shape[1]), dtype=np.float32)
    problems: dict[int, str] = {}
    with ThreadPoolExecutor(2) as pool, progress(name, len(values), "items") as advance:
        for start, loaded in load_ahead(pool, loader(name, root), values, 0, BATCH):
            good = [row for row, one in enumerate(loaded) if not one.problem]
            problems |= {start + row: one.problem for row, one in enumerate(loaded) if one.problem}
            if good:
                raw = encoder.encode([loaded[row].content for row in good])
                found = encoder.finish(raw, np.ones(len(raw), dtype=np.bool_))
                rows[[start + row for row in good]] = found
            advance(len(loaded))
    return _unit(rows, problems)


def _encoder_of(data: Dataset, table: FeatureTable, device: str) -> Encoder:
    """Makes the encoder of a table again, as it was when it had made it."""
    about, again = table.about, f"hafvt encode {data.folder} --{table.name} {table.about['encoder']}"
    encoder = make_encoder(table.name, about["encoder"], device, about["settings"].get("seed", 0))
    settings = json.loads(json.dumps(encoder.settings))
    if changed := [
        key for key in settings if key != "device" and settings[key] != about["settings"].get(key)
    ]:
        raise HafvtError(
            f"{about['encoder']} is not what made the features {table.name!r} of {data.folder} (other: "
            f"{', '.join(changed)}): restore it, or encode the dataset and train anew"
        )
    if about["settings"]["encoder"] == "classic":
        path = data.folder / "features" / table.name / "fit.npz"
        try:
            with np.load(path, allow_pickle=False) as arrays:
                encoder.fit = {name: arrays[name] for name in arrays.files}
        except (OSError, ValueError, zipfile.BadZipFile) as error:
            raise HafvtError(f"{path} is missing or damaged ({error}): make it by {again}") from None
    return encoder


def _taken(items: pl.DataFrame, path: Path, width: int) -> EncodedItems:
    """Takes the vectors of items out of a file."""
    ids, vectors = read_precomputed(path)
    if vectors.shape[1] != width:
        raise HafvtError(
            f"{path}: its vectors have {vectors.shape[1]} dimensions, the dataset's {width}: "
            "give vectors of the same encoder"
        )
    row_of = {item_id: row for row, item_id in enumerate(ids)}
    found = [row_of.get(item_id, -1) for item_id in items["item_id"].to_list()]
    rows = np.where(np.array(found)[:, None] >= 0, vectors[found], 0)
    return _unit(rows, {row: f"no vector in {path.name}" for row, place in enumerate(found) if place < 0})


def _unit(rows: npt.NDArray[Any], problems: dict[int, str]) -> EncodedItems:
    """Returns rows of unit length; those that have none become absent."""
    accumulation_dtype = rows.astype(np.float64)
    norms = np.linalg.norm(accumulation_dtype, axis=1)
    present = np.isfinite(norms) & (norms > 0)
    zero = dict.fromkeys(np.flatnonzero(~present).tolist(), "its vector is zero or not finite")
    unit = np.where(present[:, None], accumulation_dtype, 0) / np.where(present, norms, 1)[:, None]
    return EncodedItems(unit.astype(np.float16), present, zero | problems)
