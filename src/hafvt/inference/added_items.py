"""`AddedItems`: items that were added to a finished run, on disk; `with_added_items`: the run with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch

from hafvt.data.attributes import ITEM_COLUMNS, attribute_names
from hafvt.data.dataset import Domain, Int64
from hafvt.data.parquet import read_parquet
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures, Vectors
from hafvt.features.table import FeatureTable, Float16
from hafvt.files import explained_read_errors, read_manifest, write_manifest
from hafvt.folders import FolderKind, atomic_folder, read_folder
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.item_vectors import ItemVectors, unit_vectors
from hafvt.models.base import Model
from hafvt.training.run import Run, model_item_features

FORMAT = 3
COLUMNS = (*ITEM_COLUMNS, "image_root")
ADDED_ITEMS = FolderKind("a folder of added items", "about.json")


@dataclass(frozen=True)
class AddedItems:
    """Items that were added to a run after training; the dataset has none of them.

    Attributes:
        table: item_id, domain, title, image, image_root, the folder that the picture path starts from, and
            attributes.
        vectors: by modality, (items, e) float16 vectors of unit length, or zero without a picture or title.
    """

    table: pl.DataFrame
    vectors: dict[str, Float16]

    @classmethod
    def read(cls, run: Run) -> AddedItems:
        """Read RUN/added_items/; a run without this folder has no added items.

        Raises:
            HafvtError: the folder is damaged, or the run was trained again on other features.
        """
        folder, names = added_items_folder(run), content_modalities(run)
        if not folder.exists():
            tables = {name: FeatureTable.open(run.data.folder / "features" / name) for name in names}
            empty = {n: np.zeros((0, table.rows.shape[1]), dtype=np.float16) for n, table in tables.items()}
            return cls(pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String)), empty)
        remedy = f"remove {folder} and add the items again"
        manifest = read_manifest(folder / ADDED_ITEMS.marker, FORMAT, remedy)
        if manifest.get("features") != run.manifest["training"]["features"]:
            raise HafvtError(f"{folder}: the run was trained again after these items were added: {remedy}")
        with explained_read_errors(folder, remedy):
            table = read_parquet(folder / "items.parquet").select(*COLUMNS, pl.exclude(COLUMNS))
            vectors = {name: np.load(folder / f"{name}.npy", allow_pickle=False) for name in names}
        return cls(table, vectors)

    def write(self, run: Run) -> None:
        """Write RUN/added_items/ and replace an older one; the folder appears complete or not at all."""
        with atomic_folder(added_items_folder(run), ADDED_ITEMS, overwrite=True) as folder:
            self.table.write_parquet(folder / "items.parquet")
            for name, rows in self.vectors.items():
                np.save(folder / f"{name}.npy", rows, allow_pickle=False)
            content = {"items": len(self.table), "features": run.manifest["training"]["features"]}
            write_manifest(folder / ADDED_ITEMS.marker, FORMAT, content)


def added_items_folder(run: Run) -> Path:
    """Return the folder of a run's added items."""
    return run.folder / "added_items"


def content_modalities(run: Run) -> tuple[str, ...]:
    """Return the modalities that describe a cold item to the model of a run, such as image and title.

    Raises:
        HafvtError: the model reads ids only.
    """
    names = run.model.content_modalities
    if not names or not run.model.can_extend_catalog:
        raise HafvtError(
            f"{run.folder}: {run.name} reads item ids only and cannot score new items: "
            "train hafvt with pictures or titles"
        )
    return names


def with_added_items(run: Run) -> tuple[Run, ItemCatalog]:
    """Return a run whose models score the added items, too, and the catalog of all items.

    Added items follow the other items of their domain, so item indices differ from those of the dataset.
    Their `train_count` is 0: they are cold items.

    Raises:
        HafvtError: see `AddedItems.read`.
    """
    data = run.data
    table = data.item_table.select(*ITEM_COLUMNS, *attribute_names(data.item_table))
    train_counts = data.train_counts()
    folder = added_items_folder(run)
    added = read_folder(folder, lambda: AddedItems.read(run) if folder.exists() else None)
    if added is None:
        return run, ItemCatalog(table, data.domains, train_counts, data.image_root)
    order, domains = _merged_order(data.domains, added.table["domain"].to_list())
    extended_indices = np.argsort(order)  # of each item of the dataset, then of each added item
    image_roots = zip(extended_indices[len(table) :].tolist(), added.table["image_root"], strict=True)
    features = model_item_features(data, run.name, run.config, for_training=False)
    features = _merged_features(features, added, order, domains)
    old_items = torch.from_numpy(extended_indices[: len(table)])
    extended: dict[Model, Model] = {}  # domains usually share one model
    for model in run.models:
        if model not in extended:
            extended[model] = model.extend_catalog(features, old_items)
    table = pl.concat([table, added.table.drop("image_root")], how="diagonal")[order]
    train_counts = np.concatenate([train_counts, np.zeros(len(added.table), train_counts.dtype)])[order]
    roots = {index: Path(root) for index, root in image_roots if root is not None}
    catalog = ItemCatalog(table, domains, train_counts, data.image_root, roots)
    return replace(run, models=tuple(extended[model] for model in run.models)), catalog


def feature_vectors(run: Run, catalog: ItemCatalog) -> dict[str, ItemVectors]:
    """Return the vectors of all items of a catalog by modality, those of added items included.

    Args:
        run: as it was opened, without the added items.
        catalog: see `with_added_items`.
    """
    indices, _ = catalog.indices(run.data.item_table["item_id"])
    added = AddedItems.read(run) if len(catalog) > len(indices) else None
    vectors = {}
    for name in run.data.feature_names:
        table = FeatureTable.open(run.data.folder / "features" / name)
        rows = np.zeros((len(catalog), table.rows.shape[1]), dtype=np.float32)
        rows[indices] = table.rows
        if added is not None and name in added.vectors:
            rows[catalog.indices(added.table["item_id"])[0]] = added.vectors[name]
        vectors[name] = unit_vectors(rows, np.ones(len(rows), dtype=np.bool_))
    return vectors


def _merged_order(domains: tuple[Domain, ...], added_domains: list[str]) -> tuple[Int64, tuple[Domain, ...]]:
    """Return how the dataset's items followed by the added ones are ordered, and the domains after it."""
    names = [domain.name for domain in domains]
    item_domains = [
        *np.repeat(np.arange(len(names)), [len(d) for d in domains]),
        *map(names.index, added_domains),
    ]
    order = np.argsort(item_domains, kind="stable").astype(np.int64)
    stops = np.bincount(item_domains, minlength=len(names)).cumsum().tolist()
    return order, tuple(Domain(n, a, b) for n, a, b in zip(names, [0, *stops], stops, strict=False))


def _merged_features(
    features: ItemFeatures, added: AddedItems, order: Int64, domains: tuple[Domain, ...]
) -> ItemFeatures:
    """Return the features of the dataset's items and the added ones, in a given order."""
    vectors = {}
    for name, (rows, present) in features.vectors.items():
        new_rows = torch.from_numpy(added.vectors[name].astype(np.float32))
        new_present = torch.from_numpy((added.vectors[name] != 0).any(axis=1))
        vectors[name] = Vectors(torch.cat([rows, new_rows])[order], torch.cat([present, new_present])[order])
    counts = torch.cat([features.train_counts, torch.zeros(len(added.table))])[order]
    return replace(features, domains=domains, vectors=vectors, train_counts=counts)
