"""`hafvt catalog`: adds new items to a finished run, without training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from hafvt.data.attribute_values import cast_attribute
from hafvt.data.attributes import CONTENT_COLUMNS, ITEM_COLUMNS, attribute_names
from hafvt.data.dataset import Dataset
from hafvt.data.image_paths import locate_images
from hafvt.data.schema import Table, read_items
from hafvt.data.table_options import Encoding, Quoting, Separator, TableOptions
from hafvt.errors import HafvtError
from hafvt.features.new_items import encode_new_items
from hafvt.folders import check_output_folder, folder_lock, recover_folder
from hafvt.inference.added_items import (
    ADDED_ITEMS,
    AddedItems,
    added_items_folder,
    content_modalities,
)
from hafvt.settings import Device, Folder, check_arguments
from hafvt.training.run import Run, open_run


@dataclass(frozen=True)
class AddedItemsSummary:
    """What `catalog` added to a run.

    Attributes:
        items: number of added items by domain.
        encoded: number of added items with a vector, by modality.
        skipped: items without any vector, with the reasons; they cannot be recommended and were not added.
        total: number of added items of the run, including those of earlier calls.
        folder: the folder that they were written to.
    """

    items: dict[str, int]
    encoded: dict[str, int]
    skipped: dict[str, str]
    total: int
    folder: Path

    def __str__(self) -> str:
        """Return a line of counts, one for each skipped item, and the folder."""
        domains = ", ".join(f"{count:,} {name}" for name, count in self.items.items())
        encoded = ", ".join(f"{count:,} with {name}" for name, count in self.encoded.items())
        lines = [f"added {sum(self.items.values()):,} items ({domains}): {encoded}; {self.total:,} in total"]
        lines += [f"skipped {item_id[:80]!r}: {reason}" for item_id, reason in self.skipped.items()]
        return "\n".join([*lines, f"wrote {self.folder}"])


@check_arguments
def catalog(
    action: Literal["add"],
    run: Folder,
    items: str | Path | Any,
    *,
    columns: dict[str, str] | None = None,
    precomputed: dict[str, str | Path] | None = None,
    image_root: Folder | None = None,
    separator: Separator | None = None,
    encoding: Encoding | None = None,
    quoting: Quoting = "auto",
    strip: bool = False,
    overwrite: bool = False,
    data: str | Path | Dataset | None = None,
    device: Device = "auto",
) -> AddedItemsSummary:
    """Add new items to a finished run, which then recommends them, without training.

    Their pictures, titles and attributes are encoded by the encoders of the dataset. The model scores new
    items by these only; the weight of the id goes to the other modalities. The scores of other items do
    not change. The items are written to the folder `added_items` of the run; remove it to remove them.

    Example: hafvt catalog add runs/hafvt new.csv

    Args:
        action: add.
        run: the folder that train wrote.
        items: a table with item_id, domain, title and image, as for prepare, or a data frame; relative
            picture paths start from the table's folder.
        columns: our column names and the table's names where they differ, as for prepare.
        precomputed: files of vectors by modality, if the dataset's vectors came from files.
        image_root: the folder that picture paths start from, as for prepare.
        separator: sign between the fields of a CSV file, as for prepare.
        encoding: encoding of a CSV file, as for prepare.
        quoting: whether fields of a CSV file may be in quotes, as for prepare: auto, standard or none.
        strip: remove outer blanks and invisible characters from ids and domains.
        overwrite: replace items that were added before.
        data: the dataset, if it has moved since training.
        device: device of neural encoders: auto, cpu, cuda, ...

    Returns:
        Counts of the added items, and the skipped ones.

    Raises:
        InputError: the table is wrong or has an item that exists; names file, row, column, value and remedy.
        HafvtError: the model reads ids only, an encoder has changed, or no item has a picture or title.
    """
    trained_run = open_run(run, data)
    names, precomputed = content_modalities(trained_run), precomputed or {}
    if unknown := [name for name in precomputed if name not in names]:
        raise HafvtError(
            f"--precomputed: {trained_run.folder} has no {unknown[0]!r}: it has {', '.join(names)}"
        )
    recover_folder(added_items_folder(trained_run))
    with folder_lock(added_items_folder(trained_run)):
        check_output_folder(added_items_folder(trained_run), ADDED_ITEMS, overwrite=True)
        options = TableOptions(separator=separator, encoding=encoding, quoting=quoting, strip=strip)
        previous, table = AddedItems.read(trained_run), read_items(items, columns or {}, options)
        located, root = locate_images(table, None if image_root is None else Path(image_root))
        frame = _checked_items(replace(table, frame=located), trained_run, previous, overwrite)
        image_folder = root.resolve() if root else None
        encoded = {
            name: encode_new_items(
                trained_run.data, name, frame, image_folder, precomputed=precomputed.get(name), device=device
            )
            for name in names
        }
        has_vector = np.any([modality.present for modality in encoded.values()], axis=0)
        skipped = {
            frame["item_id"][row]: "; ".join(f"{name}: {m.problems[row]}" for name, m in encoded.items())
            for row in np.flatnonzero(~has_vector).tolist()
        }
        if not has_vector.any():
            item_id, reason = next(iter(skipped.items()))
            raise HafvtError(
                f"none of the {len(frame):,} items has a usable {' or '.join(names)}, "
                f"such as {item_id[:80]!r} ({reason}): add them to the table"
            )
        unchanged = ~previous.table["item_id"].is_in(frame["item_id"].implode()).to_numpy()
        root_column = pl.lit(None if image_folder is None else str(image_folder), dtype=pl.String)
        new = frame.with_columns(root_column.alias("image_root")).filter(has_vector)
        added = AddedItems(
            pl.concat([previous.table.filter(unchanged), new], how="diagonal"),
            {
                name: np.concatenate([rows[unchanged], encoded[name].rows[has_vector]])
                for name, rows in previous.vectors.items()
            },
        )
        added.write(trained_run)
    return AddedItemsSummary(
        items={d.name: int((new["domain"] == d.name).sum()) for d in trained_run.data.domains},
        encoded={name: int(modality.present.sum()) for name, modality in encoded.items()},
        skipped=skipped,
        total=len(added.table),
        folder=added_items_folder(trained_run),
    )


def _checked_items(table: Table, run: Run, previous: AddedItems, overwrite: bool) -> pl.DataFrame:
    """Return a table, with the attributes of the dataset, after checking that all its items may be added."""
    frame, domains = table.frame, [domain.name for domain in run.data.domains]
    if "domain" not in frame.columns:
        if len(domains) > 1:
            source = table.origin.file or "the data frame"
            raise HafvtError(f"{source}: no column 'domain': add it, with {' or '.join(domains)}")
        frame = frame.with_columns(pl.lit(domains[0]).alias("domain"))

    def raise_if(is_wrong: pl.Series, column: str, problem: str, remedy: str) -> None:
        if is_wrong.any():
            raise table.error(is_wrong, column, problem, remedy)

    ids, domain_names = frame["item_id"], " or ".join(domains)
    raise_if(~ids.is_first_distinct(), "item_id", "an earlier row has this item", "Keep one row per item")
    is_unknown = ~frame["domain"].is_in(domains)
    raise_if(is_unknown, "domain", "the run has no such domain", f"Use {domain_names}")
    is_trained = ids.is_in(run.data.item_table["item_id"].implode())
    raise_if(is_trained, "item_id", "the dataset of the run has this item", "Remove the row")
    if not overwrite:
        was_added = ids.is_in(previous.table["item_id"].implode())
        remedy = "Remove the row, or use --overwrite to replace the item"
        raise_if(was_added, "item_id", "this item was added before", remedy)
    missing = [name for name in CONTENT_COLUMNS if name not in frame.columns]
    attributes = [name for name in attribute_names(run.data.item_table) if name in frame.columns]
    for name in attributes:
        column = cast_attribute(frame[name], dtype := run.data.item_table.schema[name])
        is_wrong = column.is_null() & frame[name].is_not_null()
        raise_if(is_wrong, name, f"the dataset of the run has {dtype} here", "Correct the value")
        frame = frame.with_columns(column)
    frame = frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in missing)
    return frame.select(*ITEM_COLUMNS, *attributes)
