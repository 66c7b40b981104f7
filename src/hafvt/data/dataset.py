"""The dataset on disk: a folder of memory-mapped arrays that every command reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.errors import HafvtError
from hafvt.files import atomic_folder, read_json, sha256, write_json

FORMAT = 1

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

ARRAYS = ("items", "times", "offsets", "train_ends", "valid", "test")


@dataclass(frozen=True)
class Domain:
    """A domain: its items are the rows [start, stop) of the catalog."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        """Returns the number of items."""
        return self.stop - self.start


@dataclass(frozen=True)
class Dataset:
    """Histories of users over the items of one or more domains, with a split.

    All interactions stand in one flat array, user after user, oldest first; the domains of a user are
    merged. Targets of validation and test are positions in that array: the history of a target at position
    p of user u is `items[offsets[u]:p]`, so nothing at or after the target can be part of it.

    Attributes:
        folder: where it lies.
        manifest: `manifest.json`: format, domains, counts, settings, provenance, hashes.
        domains: the domains in the order of their items.
        items: (interactions,) item index of each interaction.
        times: (interactions,) its time, in seconds since 1970 or the input's own unit.
        offsets: (users + 1,) where each user's history starts.
        train_ends: (users,) how many leading interactions of each user may be trained on.
        valid: (n,) positions of the validation targets, ascending.
        test: (n,) positions of the test targets, ascending.
        cold: (n, 3) targets among the items that were held out of all histories: user, position in the
            flat array of what came next, item; its history is `items[offsets[user]:position]`.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    domains: tuple[Domain, ...]
    items: Int32 = field(repr=False)
    times: Int64 = field(repr=False)
    offsets: Int64 = field(repr=False)
    train_ends: Int64 = field(repr=False)
    valid: Int64 = field(repr=False)
    test: Int64 = field(repr=False)
    cold: Int64 = field(repr=False, default_factory=lambda: np.empty((0, 3), dtype=np.int64))

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Opens a dataset folder; its arrays are memory-mapped.

        Raises:
            HafvtError: the folder is missing, damaged, or of another format.
        """
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json")
        if manifest.get("format") != FORMAT:
            raise HafvtError(
                f"{folder}/manifest.json: format {manifest.get('format')!r}, expected {FORMAT}: "
                "prepare the dataset anew with this version of hafvt"
            )
        arrays = {}
        for name in (*ARRAYS, "cold") if manifest.get("cold_targets") else ARRAYS:
            path = folder / f"{name}.npy"
            try:
                arrays[name] = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError) as error:
                raise HafvtError(
                    f"{path} is missing or damaged ({error}): prepare the dataset anew"
                ) from None
        if (
            len(arrays["items"]) != manifest["interactions"]
            or len(arrays["offsets"]) != manifest["users"] + 1
        ):
            raise HafvtError(f"{folder}: its arrays and its manifest disagree: prepare the dataset anew")
        domains = tuple(Domain(d["name"], d["start"], d["stop"]) for d in manifest["domains"])
        return cls(folder=folder, manifest=manifest, domains=domains, **arrays)

    @property
    def users(self) -> int:
        """The number of users."""
        return len(self.offsets) - 1

    @cached_property
    def item_table(self) -> pl.DataFrame:
        """One row per item, in catalog order: item_id, domain, title, image (nulls where absent)."""
        return pl.read_parquet(self.folder / "items.parquet")

    @cached_property
    def user_ids(self) -> pl.Series:
        """The users' own ids; the row number is the user index."""
        return pl.read_parquet(self.folder / "users.parquet")["user_id"]

    @property
    def image_root(self) -> Path | None:
        """The folder that relative picture paths start from; None where the input had no file."""
        root = self.manifest.get("image_root")
        return Path(root) if root else None

    def domain(self, name: str) -> Domain:
        """Returns a domain by name.

        Raises:
            HafvtError: there is no such domain.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise HafvtError(f"no domain {name!r}: this dataset has {', '.join(d.name for d in self.domains)}")

    def user_of(self, positions: Int64) -> Int64:
        """Returns the user index of each position of the flat arrays."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def train_counts(self) -> Int64:
        """Returns how often each item occurs in the training part, (items,)."""
        starts = np.asarray(self.offsets[:-1])
        marks = np.zeros(len(self.items) + 1, dtype=np.int8)
        np.add.at(marks, starts, 1)
        np.add.at(marks, starts + self.train_ends, -1)
        return np.bincount(self.items[np.cumsum(marks[:-1]) > 0], minlength=self.domains[-1].stop)


def write_dataset(
    folder: str | Path,
    *,
    domains: list[Domain],
    item_table: pl.DataFrame,
    user_ids: pl.Series,
    items: Int32,
    times: Int64,
    offsets: Int64,
    train_ends: Int64,
    valid: Int64,
    test: Int64,
    cold: Int64 | None = None,
    image_root: Path | None = None,
    about: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Writes a dataset folder, whole or not at all, and opens it.

    Args:
        folder: where to.
        domains: the domains, contiguous and ascending from item 0.
        item_table: item_id, domain, title, image and what else is known, one row per item in catalog order.
        user_ids: the users' own ids in the order of `offsets`.
        items: see `Dataset`, as are times, offsets, train_ends, valid and test.
        times: see `Dataset`.
        offsets: see `Dataset`.
        train_ends: see `Dataset`.
        valid: see `Dataset`.
        test: see `Dataset`.
        cold: see `Dataset`.
        image_root: the folder that relative picture paths start from.
        about: settings and provenance, kept in the manifest.
        overwrite: replace a folder that exists.
    """
    arrays: dict[str, npt.NDArray[Any]] = {
        "items": items.astype(np.int32, copy=False),
        "times": times.astype(np.int64, copy=False),
        "offsets": offsets.astype(np.int64, copy=False),
        "train_ends": train_ends.astype(np.int64, copy=False),
        "valid": valid.astype(np.int64, copy=False),
        "test": test.astype(np.int64, copy=False),
    }
    if cold is not None and len(cold):
        arrays["cold"] = cold.astype(np.int64, copy=False)
    with atomic_folder(folder, overwrite=overwrite) as temporary:
        for name, array in arrays.items():
            np.save(temporary / f"{name}.npy", array, allow_pickle=False)
        columns = ["item_id", "domain", "title", "image"]
        item_table.select(*columns, pl.exclude(columns)).write_parquet(temporary / "items.parquet")
        user_ids.alias("user_id").to_frame().write_parquet(temporary / "users.parquet")
        manifest = {
            "format": FORMAT,
            "domains": [{"name": d.name, "start": d.start, "stop": d.stop} for d in domains],
            "users": len(offsets) - 1,
            "interactions": len(items),
            "valid_targets": len(valid),
            "test_targets": len(test),
            "cold_targets": len(arrays.get("cold", ())),
            "image_root": str(image_root.resolve()) if image_root else None,
            **(about or {}),
            "sha256": {path.name: sha256(path) for path in sorted(temporary.iterdir())},
        }
        write_json(temporary / "manifest.json", manifest)
    return Dataset.open(folder)
