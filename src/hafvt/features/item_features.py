"""What a model may know about the items: domains, frozen vectors, counts of training interactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.data.dataset import Dataset, Domain
from hafvt.data.relations import read_relations
from hafvt.errors import HafvtError
from hafvt.features.table import FeatureTable


class Vectors(NamedTuple):
    """The frozen vectors of one modality.

    Attributes:
        rows: (items, e) float32, unit length where present, zero elsewhere.
        present: (items,) bool.
    """

    rows: Tensor
    present: Tensor


class SimilarItems(NamedTuple):
    """The most similar items and the clusters of V items in one modality.

    All integers of an item that was not compared with the others yet are -1.

    Attributes:
        neighbors: (V, k) int64, the most similar trained items; k is 0 without neighbors.
        neighbor_weights: (V, k) float32, sums to 1 per item, 0 for items without a vector.
        clusters: (V, L) int64, the cluster of each item at L cluster sizes; L is 0 without clusters.
        num_clusters: number of clusters of all sizes together.
    """

    neighbors: Tensor
    neighbor_weights: Tensor
    clusters: Tensor
    num_clusters: int


@dataclass(frozen=True)
class ItemFeatures:
    """The item catalog as a model sees it.

    Attributes:
        domains: contiguous slices of the items.
        vectors: frozen vectors by modality; empty for models that use item ids only.
        train_counts: (items,) float32, number of training interactions of each item.
        relations: (n, 2) int64 directed links between items, by name of the relation; see `read_relations`.
        similar_items: similar items and clusters by modality; see `hafvt.features.similarity`.
    """

    domains: tuple[Domain, ...]
    vectors: dict[str, Vectors]
    train_counts: Tensor
    relations: Mapping[str, Tensor] = field(default_factory=dict)
    similar_items: Mapping[str, SimilarItems] = field(default_factory=dict)

    def __len__(self) -> int:
        """Returns the number of items over all domains."""
        return self.domains[-1].stop

    @cached_property
    def is_cold(self) -> Tensor:
        """Cold items, (items,) bool: no training interactions, in a domain that has some.

        In a domain without any training interaction, no item counts as cold.
        """
        is_cold = self.train_counts == 0
        for domain in self.domains:
            part = slice(domain.start, domain.stop)
            is_cold[part] &= ~is_cold[part].all()
        return is_cold

    @property
    def is_trained(self) -> Tensor:
        """Items that are not cold, (items,) bool."""
        return ~self.is_cold

    def domain_of(self, items: Tensor) -> Tensor:
        """Returns the number of the domain of each item index, same shape as `items`."""
        starts = torch.tensor([d.start for d in self.domains[1:]], device=items.device, dtype=items.dtype)
        return torch.bucketize(items, starts, right=True)


def load_item_features(
    data: Dataset, modalities: tuple[str, ...] | None = None, *, relations: bool = False
) -> ItemFeatures:
    """Reads what the dataset's folder knows of its items.

    Args:
        data: the dataset.
        modalities: names of encoded features to read; None reads all there are.
        relations: read the links between items too.

    Raises:
        HafvtError: a modality is not encoded.
    """
    folder = data.folder / "features"
    found = (
        sorted(p.name for p in folder.iterdir() if p.name[0] != "." and (p / "about.json").exists())
        if folder.exists()
        else []
    )
    names = found if modalities is None else list(modalities)
    missing = [name for name in names if name not in found]
    if missing:
        name = missing[0]
        how = f"--{name} classic" if name in ("image", "title") else f"--precomputed {name}=FILE"
        raise HafvtError(
            f"{data.folder} has no features {', '.join(missing)} (it has: {', '.join(found) or 'none'}): "
            f"run hafvt encode {data.folder} {how}"
        )
    vectors = {}
    for name in names:
        table = FeatureTable.open(folder / name)
        if len(table.rows) != data.domains[-1].stop:
            raise HafvtError(
                f"{folder / name} has {len(table.rows)} rows for {data.domains[-1].stop} items: encode anew"
            )
        rows = torch.from_numpy(np.array(table.rows, dtype=np.float32))
        vectors[name] = Vectors(rows, torch.from_numpy(np.array(table.present)))
    train_counts = torch.from_numpy(data.train_counts().astype(np.float32))
    links = read_relations(data) if relations else {}
    return ItemFeatures(domains=data.domains, vectors=vectors, train_counts=train_counts, relations=links)


def prepare_vectors(vectors: Vectors, catalog: ItemFeatures, width: int) -> Tensor:
    """Returns frozen vectors as candidates: (items, e) of unit length, absent ones their domain's mean.

    Center, directions and means are those of the items that training met, so that others change nothing.

    Args:
        vectors: of one modality.
        catalog: for its domains, and for which items training met.
        width: see `HafVtConfig.content_width`.
    """
    rows, present = vectors
    fit = present & catalog.is_trained
    fit = fit if fit.any() else present
    if width:
        centerd = rows - rows[fit].mean(0)
        _, directions = torch.linalg.eigh((centerd[fit].T @ centerd[fit]).double())  # ascending
        # Which way a direction points is left to the processor: here its largest entry is positive.
        largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
        rows = F.normalize(centerd @ (directions * largest.sign())[:, -width:].float(), dim=1)
    rows = rows.clone()
    for domain in catalog.domains:
        here = slice(domain.start, domain.stop)
        mean = rows[here][fit[here]].mean(0) if fit[here].any() else torch.zeros_like(rows[0])
        rows[here][~present[here]] = mean
    return rows
