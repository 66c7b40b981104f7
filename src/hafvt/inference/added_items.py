"""Items that were added to a finished run: what is stored of them, and the run over all items."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from hafvt.data.dataset import Domain, Int64
from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures, Vectors
from hafvt.features.table import FeatureTable
from hafvt.files import atomic_folder, read_json, write_json
from hafvt.inference.catalog import ItemCatalog
from hafvt.models.hafvt import HafVt
from hafvt.training.run import Run, model_item_features

FORMAT = 1
COLUMNS = ("item_id", "domain", "title", "image", "image_root")


@dataclass(frozen=True)
class AddedItems:
    """Added items; none of them is in the dataset.

    Attributes:
        table: item_id, domain, title, image, image_root (the folder that the picture's path starts from).
        vectors: (items, e) fp16 of unit length or zero, by modality.
    """

    table: pl.DataFrame
    vectors: dict[str, np.ndarray[Any, np.dtype[np.float16]]]

    @classmethod
    def read(cls, run: Run) -> AddedItems:
        """Reads RUN/additions/; where it is missing, nothing was added.

        Raises:
            HafvtError: it is damaged, or the run was trained anew on other features.
        """
        folder, names = folder_of(run), content_of(run)
        if not folder.exists():
            width = {
                name: FeatureTable.open(run.data.folder / "features" / name).rows.shape[1] for name in names
            }
            table = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
            return cls(table, {name: np.zeros((0, e), dtype=np.float16) for name, e in width.items()})
        remedy = f"remove {folder} and add the items again"
        about = read_json(folder / "about.json")
        if about.get("format") != FORMAT or about.get("features") != run.about["training"]["features"]:
            raise HafvtError(f"{folder}: the run was trained anew since these items were added: {remedy}")
        try:
            table = pl.read_parquet(folder / "items.parquet").select(COLUMNS)
        except (OSError, pl.exceptions.PolarsError) as error:
            reason = str(error).splitlines()[0]
            raise HafvtError(f"{folder}/items.parquet is damaged ({reason}): {remedy}") from None
        vectors = {name: np.asarray(FeatureTable.open(folder / "features" / name).rows) for name in names}
        if any(len(rows) != len(table) for rows in vectors.values()):
            raise HafvtError(f"{folder}: its table and its vectors disagree: {remedy}")
        return cls(table, vectors)

    def write(self, run: Run) -> None:
        """Writes RUN/additions/, whole or not at all, in place of what was there."""
        with atomic_folder(folder_of(run), overwrite=True) as folder:
            self.table.write_parquet(folder / "items.parquet")
            for name, rows in self.vectors.items():
                place = folder / "features" / name
                place.mkdir(parents=True)
                np.save(place / "rows.npy", rows, allow_pickle=False)
                np.save(place / "present.npy", present(rows), allow_pickle=False)
                write_json(place / "about.json", {"items": len(rows), "encoded": int(present(rows).sum())})
            about = {
                "format": FORMAT,
                "items": len(self.table),
                "features": run.about["training"]["features"],
            }
            write_json(folder / "about.json", about)


def folder_of(run: Run) -> Path:
    """Returns the folder of a run's additions."""
    return run.folder / "additions"


def content_of(run: Run) -> tuple[str, ...]:
    """Returns the modalities by which a run knows an item that it never met.

    Raises:
        HafvtError: there are none.
    """
    names = run.model.items.content if isinstance(run.model, HafVt) else ()
    if not names:
        raise HafvtError(
            f"{run.folder}: {run.name} knows items by their ids alone and has nothing to say of new ones: "
            "train hafvt with pictures or titles"
        )
    return names


def present(rows: np.ndarray[Any, np.dtype[np.float16]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Returns which rows are vectors, (items,)."""
    found: np.ndarray[Any, np.dtype[np.bool_]] = (rows != 0).any(axis=1)
    return found


def with_added_items(run: Run) -> tuple[Run, ItemCatalog]:
    """Returns a run whose models know the added items, too, and the shelf of all items.

    Added items stand at the end of their domain, so that numbers of items differ from the dataset's. Their
    count is 0: a model treats them as items that training never met.

    Raises:
        HafvtError: see `AddedItems.read`.
    """
    data = run.data
    columns = ["item_id", "domain", "title", "image"]
    table, met = data.item_table.select(columns), data.train_counts()
    if not folder_of(run).exists():
        return run, ItemCatalog(table, data.domains, met, data.image_root)
    added = AddedItems.read(run)
    order, domains = _arranged(data.domains, added.table["domain"].to_list())
    table = pl.concat([table, added.table.select(columns)])[order]
    counts = np.concatenate([met, np.zeros(len(added.table), dtype=met.dtype)])[order]
    number_of = np.empty_like(order)
    number_of[order] = np.arange(len(order))
    own, new = number_of[: len(met)], number_of[len(met) :]
    roots = {
        number: Path(root)
        for number, root in zip(new.tolist(), added.table["image_root"].to_list(), strict=True)
        if root is not None
    }
    catalog = _catalog(model_item_features(data, run.name, run.config), added, order, domains)
    found: dict[int, HafVt] = {}  # the domains' models are often one and the same
    for model in run.models:
        assert isinstance(model, HafVt)
        if id(model) not in found:
            found[id(model)] = model.grow(catalog, torch.from_numpy(own))
    run = replace(run, models=tuple(found[id(model)] for model in run.models))
    return run, ItemCatalog(table, domains, counts, data.image_root, roots)


def _arranged(domains: tuple[Domain, ...], of_added: list[str]) -> tuple[Int64, tuple[Domain, ...]]:
    """Returns the catalog's order of the dataset's items followed by the added ones, and its domains."""
    names = [domain.name for domain in domains]
    numbers = [*np.repeat(np.arange(len(names)), [len(d) for d in domains]), *map(names.index, of_added)]
    order = np.argsort(numbers, kind="stable").astype(np.int64)
    stops = np.bincount(numbers, minlength=len(names)).cumsum().tolist()
    return order, tuple(Domain(n, a, b) for n, a, b in zip(names, [0, *stops], stops, strict=False))


def _catalog(own: ItemFeatures, added: AddedItems, order: Int64, domains: tuple[Domain, ...]) -> ItemFeatures:
    """Returns the catalog of all items."""
    vectors = {}
    for name, (rows, has) in own.vectors.items():
        more = torch.from_numpy(added.vectors[name].astype(np.float32))
        here = torch.from_numpy(present(added.vectors[name]))
        vectors[name] = Vectors(torch.cat([rows, more])[order], torch.cat([has, here])[order])
    counts = torch.cat([own.train_counts, torch.zeros(len(added.table))])[order]
    return ItemFeatures(domains, vectors, counts)
