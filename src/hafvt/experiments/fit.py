"""`hafvt fit`: from tables to a trained, evaluated model in one call."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

from hafvt.data.dataset import Dataset
from hafvt.data.prepare import prepare
from hafvt.data.table_options import DEFAULT_OPTIONS, TableOptions
from hafvt.errors import HafvtError
from hafvt.features.encode import encode
from hafvt.features.encoders.attribute_vectors import ATTRIBUTES, choose_columns
from hafvt.features.modalities import MODALITIES
from hafvt.features.table import FeatureTable
from hafvt.files import sha256
from hafvt.folders import check_output_folder, remove_folder
from hafvt.inference.recommender import Recommender
from hafvt.models import configure
from hafvt.progress import report
from hafvt.reports.report import write_run_report
from hafvt.settings import Folder, OutFolder, PositiveCount, Seed, check_arguments
from hafvt.training.run import RUN_FOLDER, fingerprint
from hafvt.training.train import train


@check_arguments
def fit(
    interactions: str | Path | Any,
    items: str | Path | Any | None = None,
    out: OutFolder = "hafvt",
    *,
    columns: dict[str, str] | None = None,
    domains: list[str] | None = None,
    unknown_items: Literal["error", "drop"] = "error",
    image_root: Folder | None = None,
    table_options: TableOptions = DEFAULT_OPTIONS,
    model: str = "hafvt",
    image: str | None = "classic",
    title: str | None = "classic",
    attributes: list[str] | None = None,
    epochs: PositiveCount = 100,
    seed: Seed = 0,
    overwrite: bool = False,
) -> Recommender:
    """Prepare tables, encode the items' content, train a model, evaluate it, and return its recommender.

    The steps are those of prepare, encode, train and evaluate with default settings. The dataset is written
    to `out`/data, the run with its report to `out`/run, which all commands that take a run accept. No user
    and no item is left out. If the call is interrupted, repeat it: it continues where it stopped.

    Example: hafvt fit interactions.csv items.csv --out shop

    Args:
        interactions: table with the columns user_id, item_id, timestamp and, optionally, domain: a path to
            CSV, JSONL (both also as .gz or .zst) or Parquet, or a data frame.
        items: table with the columns item_id and, optionally, domain, title and image: a path or data frame;
            default: the items of the interactions.
        out: the folder to write.
        columns: your names of the columns above, for both tables, such as user_id=customer.
        domains: the domains to keep; default: all.
        unknown_items: what happens to interactions with items that the items table lacks: "error", or "drop".
        image_root: the folder that paths of pictures start from, as for prepare; default: a guess.
        table_options: how the tables are read.
        model: name of the model, see train.
        image: encoder of the pictures, see encode; none leaves them out.
        title: encoder of the titles, see encode; none leaves them out.
        attributes: columns of the items table that become vectors, see encode; default: none.
        epochs: maximum number of passes over the training histories; training stops early when the
            validation no longer improves.
        seed: seed of all random choices.
        overwrite: replace the dataset and the run of an earlier call.

    Returns:
        The recommender; as text, its test results.

    Raises:
        InputError: a table is wrong; the message names the file, row, column and value, and how to fix it.
        HafvtError: a setting is wrong, a package is missing, or `out` holds a call with other arguments.
    """
    configure(model, "default", None)  # reports a wrong name before any work
    folder, run_folder = Path(out), Path(out) / "run"
    if overwrite:
        check_output_folder(run_folder, RUN_FOLDER, overwrite=True)
    data = prepare_once(
        interactions,
        items,
        folder,
        overwrite,
        columns=columns,
        domains=domains,
        unknown_items=unknown_items,
        image_root=image_root,
        table_options=table_options,
        seed=seed,
    )
    if overwrite:
        remove_folder(run_folder)
    if image not in (None, "none"):
        _check_images(data, folder)
    for name, spec in (("image", image), ("title", title)):
        has_content = data.item_table[MODALITIES[name].column].count() > 0
        if has_content and spec not in (None, "none") and not _is_encoded(data, name, spec):
            report(encode(data, encoders={name: spec}, seed=seed)[name].summary)
    if attributes and not _has_attributes(data, attributes):
        report(encode(data, attributes=attributes)[ATTRIBUTES].summary)
    run = train(model, data, run_folder, epochs=epochs, seed=seed, resume=True)
    if (run_folder / "results.json").exists():
        write_run_report(run)
    return Recommender.open(run, data)


def prepare_once(
    interactions: Any,
    items: Any,
    folder: Path,
    overwrite: bool = False,
    remedy: str = "choose another folder, or replace it with --overwrite",
    **options: Any,
) -> Dataset:
    """Return the dataset `folder`/data, which an earlier call may have prepared from the same tables.

    Raises:
        HafvtError: the folder has a dataset of other tables or options, and `overwrite` is false; `remedy`
            ends the message.
    """
    target = folder / "data"
    if overwrite or not (target / "manifest.json").exists():
        is_new = not folder.exists()
        try:
            return prepare(interactions, items, target, min_per_domain=0, overwrite=True, **options)
        except HafvtError:
            if is_new:
                with suppress(OSError):
                    folder.rmdir()
            raise
    earlier = Dataset.open(target)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".", suffix=".tmp") as temporary:
        data = prepare(interactions, items, Path(temporary) / "data", min_per_domain=0, **options)
        is_same = _has_same_content(data, earlier)
    if not is_same:
        raise HafvtError(f"{folder} holds the data of other tables or options: {remedy}")
    return earlier


def _has_same_content(data: Dataset, earlier: Dataset) -> bool:
    """Return whether two datasets agree, apart from pictures that `fetch` has downloaded."""
    if "image_url" not in earlier.item_table.columns:
        return fingerprint(data) == fingerprint(earlier) and data.image_root == earlier.image_root
    arrays = ("items.npy", "train_lengths.npy")
    hashes, earlier_hashes = data.manifest["sha256"], earlier.manifest["sha256"]
    columns = ["item_id", "domain", "title"]
    is_same = data.item_table.select(columns).equals(earlier.item_table.select(columns))
    return is_same and all(hashes[name] == earlier_hashes[name] for name in arrays)


def _check_images(data: Dataset, out: Path) -> None:
    """Raise HafvtError if all pictures are still to be downloaded."""
    images = data.item_table["image"].drop_nulls()
    if len(images) and images.str.contains("^(?i)https?://").all():
        raise HafvtError(
            f"pictures are web addresses: run hafvt fetch pictures {data.folder} --out {out}/pictures and "
            "repeat the command, or leave them out by --image none"
        )


def _is_encoded(data: Dataset, name: str, spec: str) -> bool:
    """Return whether a dataset has vectors of a modality by an encoder."""
    metadata = _encoded_metadata(data, name)
    return metadata is not None and metadata["encoder"] == spec


def _has_attributes(data: Dataset, specs: list[str]) -> bool:
    """Return whether a dataset has vectors of these attributes."""
    metadata, choices = _encoded_metadata(data, ATTRIBUTES), choose_columns(data.item_table, specs)
    return metadata is not None and metadata["settings"].get("choices") == [list(one) for one in choices]


def _encoded_metadata(data: Dataset, name: str) -> dict[str, Any] | None:
    """Return about.json of the vectors of a modality; None if there are none of the present items table."""
    folder = data.folder / "features" / name
    metadata = FeatureTable.open(folder).metadata if folder.exists() else None
    is_current = metadata and metadata["source"].get("sha256") == sha256(data.folder / "items.parquet")
    return metadata if is_current else None
