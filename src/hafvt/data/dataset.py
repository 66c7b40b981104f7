"""The dataset on disk: a folder of memory-mapped arrays that every command reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import polars as pl

from hafvt.data.attributes import ITEM_COLUMNS
from hafvt.data.parquet import read_parquet
from hafvt.data.repeats import MAX_REPEAT_SHARE, CandidateRule, RepeatCounts, count_repeats, find_repeats
from hafvt.data.times import unix_ticks
from hafvt.errors import HafvtError
from hafvt.files import (
    atomic_file,
    explained_read_errors,
    hash_files,
    read_json,
    sha256,
    verify_files,
    verify_json,
    write_json,
)
from hafvt.folders import FolderKind, atomic_folder, recover_folder

FORMAT = 2
MAX_READ_BYTES = 2**26  # larger arrays are memory-mapped
SECONDS_PER_DAY = 86_400

Bool = npt.NDArray[np.bool_]
Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

ARRAYS = {
    "items": np.int32,
    "times": np.int64,
    "offsets": np.int64,
    "train_lengths": np.int64,
    "valid": np.int64,
    "test": np.int64,
    "cold_targets": np.int64,
    "weights": np.float32,
    "item_counts": np.int64,
}
"""Name and dtype of the arrays of a dataset; the optional ones are there only if needed, see `Dataset`."""
OPTIONAL_ARRAYS = ("cold_targets", "weights", "item_counts")

DATASET = FolderKind("a dataset", "manifest.json", ("features", "negatives", "relations.npz"))
TABLES = ("items.parquet", "users.parquet")
REMEDY = "prepare the dataset again"
RUN_CATALOG = "catalog"
"""Name of the folder of a run's catalog, see `Dataset.is_catalog`."""


@dataclass(frozen=True)
class Domain:
    """A domain: its items are the rows [start, stop) of the catalog."""

    name: str
    start: int
    stop: int

    def __len__(self) -> int:
        """Return the number of items."""
        return self.stop - self.start


@dataclass(frozen=True)
class Dataset:
    """Histories of users over the items of one or more domains, with a split.

    All interactions are in one flat array, user after user, oldest first; the domains of a user are merged.
    Validation and test targets are positions in that array: the history of a target at position p of user u
    is `items[offsets[u]:p]`, so neither the target nor a later interaction can be part of it.

    Attributes:
        folder: the dataset folder.
        manifest: `manifest.json`: format, domains, counts, settings, provenance, hashes.
        domains: the domains in the order of their items.
        items: (interactions,) item index of each interaction.
        times: (interactions,) its time, in seconds since 1970 or in the unit of the input.
        offsets: (users + 1,) where each user's history starts.
        train_lengths: (users,) how many interactions at the start of each history are for training.
        valid: (n,) positions of the validation targets, ascending.
        test: (n,) positions of the test targets, ascending.
        cold_targets: (n, 3) interactions with items that `prepare` held out of all histories. Columns: user
            index, position p where the interaction belongs in the flat array, item index; its history is
            `items[offsets[user]:p]`.
        weights: (interactions,) weight of each interaction as a training target; None if all have the same.
        item_counts: (items,) training interactions of each item, in the catalog of a run.
    """

    folder: Path
    manifest: dict[str, Any] = field(repr=False)
    domains: tuple[Domain, ...]
    items: Int32 = field(repr=False)
    times: Int64 = field(repr=False)
    offsets: Int64 = field(repr=False)
    train_lengths: Int64 = field(repr=False)
    valid: Int64 = field(repr=False)
    test: Int64 = field(repr=False)
    cold_targets: Int64 = field(repr=False, default_factory=lambda: np.empty((0, 3), dtype=np.int64))
    weights: Float32 | None = field(repr=False, default=None)
    item_counts: Int64 | None = field(repr=False, default=None)

    @classmethod
    def open(cls, folder: str | Path, *, catalog: bool = False) -> Self:
        """Open a dataset folder after comparing its files with their hashes; large arrays are memory-mapped.

        With `catalog`, it is the catalog of a run, see `is_catalog`.

        Raises:
            HafvtError: the folder is missing, damaged, or of another format.
        """
        folder = Path(folder)
        recover_folder(folder)
        if (folder / "config.yaml").exists() and not (folder / "manifest.json").exists():
            raise HafvtError(
                f"{folder} is a run, not a dataset: hafvt evaluate {folder} prints its results, and data in "
                "its config.yaml names its dataset"
            )
        manifest = read_json(folder / "manifest.json", REMEDY)
        with explained_read_errors(folder / "manifest.json", REMEDY):
            if manifest.get("format") != FORMAT:
                raise HafvtError(
                    f"{folder} has dataset format {manifest.get('format')!r}, this version reads {FORMAT}: "
                    f"{REMEDY}"
                )
            domains = tuple(Domain(d["name"], d["start"], d["stop"]) for d in manifest["domains"])
            files = manifest["sha256"]
            names = [name for name in ARRAYS if name not in OPTIONAL_ARRAYS or f"{name}.npy" in files]
            hashes = {name: files[name] for name in (*map("{}.npy".format, names), *TABLES)}
            counts = manifest["interactions"], manifest["users"]
        verify_json(folder / "manifest.json", manifest, REMEDY)
        if not catalog and "catalog_of" in manifest:
            raise HafvtError(f"{folder} is the catalog of a run, without histories: name a dataset")
        verify_files(folder, hashes, REMEDY)
        arrays = {}
        for name in names:
            with explained_read_errors(folder / f"{name}.npy", REMEDY):
                arrays[name] = load_array(folder / f"{name}.npy")
        is_contiguous = [d.start for d in domains] == [0, *(d.stop for d in domains[:-1])]
        if (len(arrays["items"]), len(arrays["offsets"]) - 1) != counts or not domains or not is_contiguous:
            raise HafvtError(f"{folder}: its arrays and its manifest disagree: {REMEDY}")
        return cls(folder=folder, manifest=manifest, domains=domains, **arrays)

    def __fspath__(self) -> str:
        """Return the folder: functions that take the folder of a dataset take the dataset, too."""
        return str(self.folder)

    @property
    def is_catalog(self) -> bool:
        """Whether this is what a run keeps of its dataset: items, counts and vectors, without histories."""
        return "catalog_of" in self.manifest

    @property
    def num_users(self) -> int:
        """The number of users."""
        return len(self.offsets) - 1

    @property
    def num_items(self) -> int:
        """The number of items of all domains."""
        return self.domains[-1].stop

    @cached_property
    def item_table(self) -> pl.DataFrame:
        """One row per item, in catalog order: item_id, domain, title, image (null if unknown), attributes."""
        with explained_read_errors(self.folder / "items.parquet", REMEDY):
            return read_parquet(self.folder / "items.parquet")

    @cached_property
    def user_ids(self) -> pl.Series:
        """The user ids of the input; the row number is the user index."""
        with explained_read_errors(self.folder / "users.parquet", REMEDY):
            return read_parquet(self.folder / "users.parquet")["user_id"]

    @property
    def feature_names(self) -> list[str]:
        """The modalities that `encode` has written to the folder `features`."""
        paths = (self.folder / "features").glob("[!.]*")
        return sorted(path.name for path in paths if path.is_dir())

    @property
    def image_root(self) -> Path | None:
        """The folder that relative image paths start from; None if the items were a data frame."""
        root = self.manifest.get("image_root")
        return Path(root) if root else None

    @cached_property
    def is_repeat(self) -> Bool:
        """Whether the history of each interaction contains its item already, (interactions,)."""
        return find_repeats(self.items, self.offsets)

    @cached_property
    def repeats(self) -> list[RepeatCounts]:
        """The repeats in the training part of each domain."""
        if "repeats" in self.manifest:
            with explained_read_errors(self.folder / "manifest.json", REMEDY):
                return [RepeatCounts(*map(int, counts)) for counts in self.manifest["repeats"]]
        starts = [domain.start for domain in self.domains]
        return count_repeats(self.items, self.offsets, self.train_lengths, starts)

    def exclude_seen(self, candidates: CandidateRule = "auto") -> tuple[bool, ...]:
        """Return for each domain whether items of a history are neither recommended nor ranked.

        With "auto" they are left out unless more than `MAX_REPEAT_SHARE` of the next items are repeats.
        """
        if candidates == "auto":
            return tuple(counts.share <= MAX_REPEAT_SHARE for counts in self.repeats)
        return (candidates == "unseen",) * len(self.domains)

    def domain(self, name: str) -> Domain:
        """Return a domain by name.

        Raises:
            HafvtError: there is no such domain.
        """
        for domain in self.domains:
            if domain.name == name:
                return domain
        raise HafvtError(f"no domain {name!r}: this dataset has {', '.join(d.name for d in self.domains)}")

    def domains_of(self, items: npt.ArrayLike) -> Int64:
        """Return the domain index of each item index."""
        return np.searchsorted([d.start for d in self.domains], items, side="right") - 1

    def users_at(self, positions: Int64) -> Int64:
        """Return the user index of each position of the flat arrays."""
        return np.searchsorted(self.offsets, positions, side="right") - 1

    def train_positions(self) -> Int64:
        """Return the positions of the training interactions, user after user, oldest first, (n,)."""
        lengths = np.asarray(self.train_lengths)
        first = lengths.cumsum() - lengths  # of each user, among training interactions
        return np.arange(lengths.sum()) + np.repeat(np.asarray(self.offsets[:-1]) - first, lengths)

    def train_counts(self) -> Int64:
        """Return how often each item occurs in the training part, (items,)."""
        if self.item_counts is not None:
            return self.item_counts
        starts = np.asarray(self.offsets[:-1])
        changes = np.zeros(len(self.items) + 1, dtype=np.int8)  # 1: training part starts, -1: ends
        np.add.at(changes, starts, 1)
        np.add.at(changes, starts + self.train_lengths, -1)
        return np.bincount(self.items[np.cumsum(changes[:-1]) > 0], minlength=self.num_items)

    def train_weights(self) -> Float64 | None:
        """Return the sum of the weights of each item's training interactions, (items,); None without weights.

        In the catalog of a run, all are 0.
        """
        if self.weights is None:
            return np.zeros(self.num_items) if self.manifest.get("weighted") else None
        positions = self.train_positions()
        weights = self.weights[positions].astype(np.float64)
        sums: Float64 = np.bincount(self.items[positions], weights, self.num_items).astype(np.float64)
        return sums

    def item_ids_at(self, positions: Int64) -> pl.Series:
        """Return the id of the item at each position of the flat arrays."""
        return self.item_table["item_id"].gather(np.asarray(self.items)[positions])

    @cached_property
    def seconds(self) -> Int64 | None:
        """(interactions,) times in seconds since 1970; None if the dataset has times of another kind."""
        times = np.asarray(self.times)
        ticks = unix_ticks(int(times.min()), int(times.max())) if len(times) else None
        return None if ticks is None else times // ticks

    def request_times(self, positions: Int64) -> Int64 | None:
        """Return the time at which each target is to be predicted, (n,), in seconds since 1970.

        It is the start of the target's own day (UTC), or the time of the item before it if that is later:
        whoever recommends knows the date, but not when the user will act. None if the dataset has no such
        times.
        """
        if self.seconds is None:
            return None
        days = self.seconds[positions] // SECONDS_PER_DAY * SECONDS_PER_DAY
        return np.minimum(np.maximum(days, self.seconds[positions - 1]), self.seconds[positions])


def load_array(path: Path) -> npt.NDArray[Any]:
    """Return the array in an .npy file, read-only; a large one is memory-mapped.

    A process with a memory map dies if the file is cut short, so that small files are read at once.
    """
    is_large = path.stat().st_size > MAX_READ_BYTES
    array: npt.NDArray[Any] = np.load(path, mmap_mode="r" if is_large else None, allow_pickle=False)
    array.flags.writeable = False
    return array


def write_dataset(
    folder: str | Path,
    *,
    domains: list[Domain],
    item_table: pl.DataFrame,
    user_ids: pl.Series,
    items: Int32 | Path,
    times: Int64 | Path,
    offsets: Int64,
    train_lengths: Int64,
    valid: Int64 | Path,
    test: Int64 | Path,
    cold_targets: Int64 | None = None,
    weights: Float32 | Path | None = None,
    item_counts: Int64 | None = None,
    repeats: list[RepeatCounts] | None = None,
    image_root: Path | None = None,
    metadata: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> Dataset:
    """Write a dataset folder atomically and open it. An array may be an .npy file, which is moved.

    Args:
        folder: the folder to write.
        domains: the domains, contiguous and ascending from item 0.
        item_table: item_id, domain, title, image and any other columns, one row per item in catalog order.
        user_ids: the user ids of the input in the order of `offsets`.
        items: see `Dataset`.
        times: see `Dataset`.
        offsets: see `Dataset`.
        train_lengths: see `Dataset`.
        valid: see `Dataset`.
        test: see `Dataset`.
        cold_targets: see `Dataset`; None or empty without held-out items.
        weights: see `Dataset`.
        item_counts: see `Dataset`; None but for the catalog of a run.
        repeats: see `Dataset`; None counts them.
        image_root: the folder that relative image paths start from.
        metadata: settings and provenance, kept in the manifest.
        overwrite: replace a folder that exists.

    Raises:
        HafvtError: the folder exists and `overwrite` is false or it is no dataset, or the disk is full.
    """
    arrays: dict[str, npt.NDArray[Any] | Path] = {"items": items, "times": times, "offsets": offsets}
    arrays |= {"train_lengths": train_lengths, "valid": valid, "test": test}
    if cold_targets is not None and len(cold_targets):
        arrays["cold_targets"] = cold_targets
    others = {"weights": weights, "item_counts": item_counts}
    arrays |= {name: array for name, array in others.items() if array is not None}
    num_bytes = sum(array.nbytes for array in arrays.values() if not isinstance(array, Path))
    with atomic_folder(folder, DATASET, overwrite=overwrite, num_bytes=num_bytes) as temporary:
        for name, array in arrays.items():
            if isinstance(array, Path):
                array.replace(temporary / f"{name}.npy")
            else:
                np.save(temporary / f"{name}.npy", array.astype(ARRAYS[name], copy=False), allow_pickle=False)
        lengths = {name: len(load_array(temporary / f"{name}.npy")) for name in arrays}
        if repeats is None:
            stored = load_array(temporary / "items.npy")
            repeats = count_repeats(stored, offsets, train_lengths, [d.start for d in domains])
        item_table.select(*ITEM_COLUMNS, pl.exclude(ITEM_COLUMNS)).write_parquet(temporary / "items.parquet")
        user_ids.alias("user_id").to_frame().write_parquet(temporary / "users.parquet")
        manifest = {
            "format": FORMAT,
            "domains": [{"name": d.name, "start": d.start, "stop": d.stop} for d in domains],
            "users": len(offsets) - 1,
            "interactions": lengths["items"],
            "valid_targets": lengths["valid"],
            "test_targets": lengths["test"],
            "cold_targets": lengths.get("cold_targets", 0),
            "repeats": repeats,
            "image_root": str(image_root.resolve()) if image_root else None,
            **(metadata or {}),
            "sha256": hash_files(temporary),
        }
        write_json(temporary / "manifest.json", manifest, checksum=True)
    return Dataset.open(folder, catalog="catalog_of" in manifest)


def replace_item_table(folder: Path, table: pl.DataFrame, **changes: Any) -> None:
    """Replace the item table of a dataset, and fields of its manifest; a kill leaves a dataset that is valid.

    Args:
        folder: the dataset folder.
        table: the new content of items.parquet, with the same items.
        changes: new values of fields of the manifest.
    """
    path = folder / "items.parquet"
    with atomic_file(path) as temporary:
        table.write_parquet(temporary)
        manifest = read_json(folder / "manifest.json", REMEDY)
        with explained_read_errors(folder / "manifest.json", REMEDY):
            # Until the new file has its name, the old one is valid, too.
            manifest["sha256"][path.name] = f"{sha256(temporary)} {sha256(path)}"
        write_json(folder / "manifest.json", manifest | changes, checksum=True)
