"""`hafvt catalog`: new items without training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from hafvt.data.dataset import Dataset
from hafvt.data.schema import Table, read_items
from hafvt.errors import HafvtError
from hafvt.features.new_items import encode_new_items
from hafvt.inference.added_items import COLUMNS, AddedItems, content_of, folder_of
from hafvt.training.run import Run, open_run


@dataclass(frozen=True)
class Added:
    """What was added to a run.

    Attributes:
        items: how many items by domain.
        known: how many of them have a vector, by modality.
        left_out: items that nothing is known of, and why; they are not recommendable and were not added.
        total: added items of the run, those of earlier calls included.
        folder: where they are.
    """

    items: dict[str, int]
    known: dict[str, int]
    left_out: dict[str, str]
    total: int
    folder: Path

    def __str__(self) -> str:
        """Counts, and what was left out."""
        domains = ", ".join(f"{count:,} {name}" for name, count in self.items.items())
        known = ", ".join(f"{count:,} with {name}" for name, count in self.known.items())
        lines = [f"added {sum(self.items.values()):,} items ({domains}): {known}; {self.total:,} in all"]
        lines += [f"not recommendable, left out: {one[:80]!r} ({why})" for one, why in self.left_out.items()]
        return "\n".join([*lines, f"wrote {self.folder}"])


def catalog(
    action: Literal["add"],
    items: str | Path | Any,
    run: str | Path,
    *,
    columns: dict[str, str] | None = None,
    precomputed: dict[str, str | Path] | None = None,
    overwrite: bool = False,
    data: str | Path | Dataset | None = None,
    device: str = "auto",
) -> Added:
    """Makes new items recommendable by a finished run, without training.

    Their pictures and titles are encoded as the dataset's were. The model knows them by these alone: the
    share of the id goes to the other modalities. Scores of the other items stay as they are. What was added
    is in the folder `additions` of the run; whoever removes it takes all of them out again.

    Example: hafvt catalog add new.csv --run runs/hafvt

    Args:
        action: add.
        items: a table of item_id, domain, title and image, as for prepare; a picture's path starts from it.
        run: the folder that train wrote.
        columns: our names and the input's names where they differ, such as item_id=asin.
        precomputed: files of vectors, by modality, where the dataset's came out of files.
        overwrite: describe items anew that were added before.
        data: the dataset, where it has moved since training.
        device: where checkpoints run: auto, cpu, cuda, ...

    Returns:
        What was added.

    Raises:
        InputError: the table is wrong, or has an item that exists; names file, row, column, value and remedy.
        HafvtError: the model knows items by ids alone, an encoder is not what it was, or nothing is known of
            any of the items.
    """
    if action != "add":
        raise HafvtError(f"no action {action!r}: say hafvt catalog add ITEMS --run RUN")
    opened = open_run(run, data)
    names, precomputed = content_of(opened), precomputed or {}
    if strange := [name for name in precomputed if name not in names]:
        raise HafvtError(f"--precomputed: {opened.folder} has no {strange[0]!r}: it has {', '.join(names)}")
    before = AddedItems.read(opened)
    table = read_items(items, columns or {})
    frame = _checked(table, opened, before, overwrite)
    root = table.origin.file.resolve().parent if table.origin.file else None
    found = {
        name: encode_new_items(
            opened.data, name, frame, root, precomputed=precomputed.get(name), device=device
        )
        for name in names
    }
    known = np.any([one.present for one in found.values()], axis=0)
    left_out = {
        frame["item_id"][row]: "; ".join(f"{name}: {one.problems[row]}" for name, one in found.items())
        for row in np.flatnonzero(~known).tolist()
    }
    if not known.any():
        item_id, why = next(iter(left_out.items()))
        raise HafvtError(
            f"nothing is known of any of the {len(frame):,} items, e.g. {item_id[:80]!r} ({why})"
        )
    stay = ~before.table["item_id"].is_in(frame["item_id"].implode()).to_numpy()
    where = pl.lit(None if root is None else str(root), dtype=pl.String).alias("image_root")
    new = frame.with_columns(where).select(COLUMNS).filter(known)
    vectors = {
        name: np.concatenate([rows[stay], found[name].rows[known]]) for name, rows in before.vectors.items()
    }
    AddedItems(pl.concat([before.table.filter(stay), new]), vectors).write(opened)
    return Added(
        items={d.name: int((new["domain"] == d.name).sum()) for d in opened.data.domains},
        known={name: int(one.present.sum()) for name, one in found.items()},
        left_out=left_out,
        total=int(stay.sum()) + len(new),
        folder=folder_of(opened),
    )


def _checked(table: Table, run: Run, before: AddedItems, overwrite: bool) -> pl.DataFrame:
    """Returns item_id, domain, title and image of a table whose items may all be added."""
    frame, domains = table.frame, [domain.name for domain in run.data.domains]
    again = ~frame["item_id"].is_first_distinct()
    if again.any():
        raise table.error(again, "item_id", "this item is listed before", "Keep one row per item")
    if "domain" in frame.columns:
        strange = ~frame["domain"].is_in(domains)
        if strange.any():
            raise table.error(strange, "domain", "the run has no such domain", f"Use {' or '.join(domains)}")
    elif len(domains) > 1:
        raise HafvtError(
            f"{table.origin.file or 'the data frame'}: no column 'domain': add it: {' or '.join(domains)}"
        )
    else:
        frame = frame.with_columns(pl.lit(domains[0]).alias("domain"))
    own = frame["item_id"].is_in(run.data.item_table["item_id"].implode())
    if own.any():
        raise table.error(own, "item_id", "the run was trained on this item", "Remove the row")
    had = frame["item_id"].is_in(before.table["item_id"].implode())
    if had.any() and not overwrite:
        remedy = "Remove the row, or say --overwrite true to describe the item anew"
        raise table.error(had, "item_id", "this item was added before", remedy)
    absent = [name for name in ("title", "image") if name not in frame.columns]
    return frame.with_columns(pl.lit(None, dtype=pl.String).alias(name) for name in absent)
