"""What a data source yields, and how it becomes a dataset folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import polars as pl

from hafvt.data.dataset import DATASET, Dataset
from hafvt.data.ids import id_texts
from hafvt.data.info import count_same_time_targets, same_time_line
from hafvt.data.interaction_log import number_ids_in_order
from hafvt.data.order import user_offsets
from hafvt.data.prepare import write_log
from hafvt.data.sources.checks import Check, checks_table
from hafvt.data.splits import published_split
from hafvt.errors import ArgumentError, HafvtError
from hafvt.folders import check_output_folder, folder_lock

Function = TypeVar("Function", bound=Callable[..., Any])


class SourceTables(NamedTuple):
    """Interactions and items of a data source, with the split of its publisher.

    Attributes:
        interactions: user_id, item_id, timestamp, part. The interactions of a user are adjacent, oldest
            first; users keep the order of their rows. `part` is "train", "valid", "test", or null for an
            interaction that is neither trained on nor a target.
        items: item_id, domain, title, image and any other columns, in the order of the catalog, domain by
            domain. Draw that order at random, so that an item's number reveals nothing.
        metadata: settings, inputs and other provenance, kept in the manifest.
        tie_order: how interactions of a user with equal times are ordered.
        image_root: the folder that relative image paths start from.
    """

    interactions: pl.DataFrame
    items: pl.DataFrame
    metadata: dict[str, Any]
    tie_order: str = "input"
    image_root: Path | None = None


class PreparedSource(NamedTuple):
    """A dataset, its properties beside their published values, and lines about missing or broken input."""

    dataset: Dataset
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return checks, notes, shares of repeats and of baskets, and the folder of the dataset."""
        data = self.dataset
        pairs = zip(data.domains, data.repeats, strict=True)
        shares = ", ".join(f"{domain.name} {counts.share:.1%}" for domain, counts in pairs)
        lines = [
            f"repeats (next items that the history contains): {shares}",
            same_time_line(count_same_time_targets(data), len(data.valid) + len(data.test)),
        ]
        return "\n".join([checks_table(self.checks), *self.notes, *lines, f"wrote {data.folder}"])


def dataset_source(function: Function) -> Function:
    """Decorate a source: check its parameters `folder` and `out`, and lock the folder `out` while it runs.

    Raises:
        HafvtError: there is no such folder, or `out` cannot be replaced or is in use by another process.
    """

    @wraps(function)
    def run(folder: str | Path, out: str | Path, *, overwrite: bool = False, **options: Any) -> Any:
        if not Path(folder).is_dir():
            raise HafvtError(f"{folder} is not a folder: name the folder of the publisher's files")
        check_output_folder(out, DATASET, overwrite=overwrite)
        with folder_lock(out):
            return function(Path(folder), Path(out), overwrite=overwrite, **options)

    return cast(Function, run)


def domain_names(names: Iterable[object]) -> list[str]:
    """Return names of domains as text without blanks around them; raise HafvtError if two are the same."""
    texts = [name.strip() for name in id_texts(list(names), "--domains")]
    if len(set(texts)) < len(texts):
        raise ArgumentError(f"--domains {' '.join(texts)}: give each domain a name of its own")
    return texts


def prepare_source(tables: SourceTables, out: str | Path, *, overwrite: bool = False) -> Dataset:
    """Write the tables of a data source as a dataset folder; with `overwrite`, replace one that exists.

    Raises:
        InputError: an item is unknown or listed twice.
    """
    log = number_ids_in_order(tables.interactions, tables.items)
    offsets = user_offsets(log.users, len(log.user_ids))
    split = published_split(offsets, tables.interactions["part"].to_numpy())
    return write_log(
        out,
        log,
        split,
        tie_order=tables.tie_order,
        metadata=tables.metadata,
        image_root=tables.image_root,
        overwrite=overwrite,
    )
