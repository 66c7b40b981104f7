"""What a model may know about the items: domains, frozen vectors, counts of training interactions."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.data.dataset import Dataset, Domain
from hafvt.data.relations import read_relations
from hafvt.errors import HafvtError
from hafvt.features.modalities import encode_option
from hafvt.features.table import FeatureTable
from hafvt.files import check_space, explained_write_errors
from hafvt.ops.shards import Shard

MIN_MAPPED_BYTES = 2**28
"""Size from which a table of vectors that is computed by chunks is kept in a file."""

NUM_TIME_KNOTS = 33
MAX_TIMES = 1_000_000
"""Times, evenly spread over the users, of which quantiles are computed."""


class Vectors(NamedTuple):
    """The frozen vectors of all items in one modality.

    Attributes:
        rows: (items, e) float32, or float16 if memory-mapped; unit length where present, zero elsewhere.
        present: (items,) bool, whether an item has a vector.
    """

    rows: Tensor
    present: Tensor


class ItemClusters(NamedTuple):
    """The clusters of V items in one modality.

    Attributes:
        cluster_rows: (V, L) int64, the cluster of each item in each of L clusterings, as a row of the table
            of all clusters; -1 for an item that is not assigned yet, meaningless for an item without a
            vector.
        num_clusters: number of clusters of all clusterings together.
    """

    cluster_rows: Tensor
    num_clusters: int


class ContentBasis(NamedTuple):
    """How frozen vectors of one modality are reduced: centered and projected, see `prepare_vectors`.

    Attributes:
        mean: (e,) the vector that is subtracted.
        directions: (e, d) the principal directions.
    """

    mean: Tensor
    directions: Tensor


class TrainInteractions(NamedTuple):
    """The n interactions of the training part.

    Attributes:
        users: (n,) int64 user indices.
        items: (n,) int64 item indices.
        times: (n,) int64, in seconds since 1970; None if the dataset has times of another kind.
        weights: (n,) float32; None if all have the same.
    """

    users: Tensor
    items: Tensor
    times: Tensor | None
    weights: Tensor | None = None


@dataclass(frozen=True)
class ItemFeatures:
    """The item catalog as a model sees it.

    Attributes:
        domains: contiguous slices of the items.
        vectors: frozen vectors by modality; empty for models that use item ids only.
        train_counts: (items,) float32, number of training interactions of each item.
        train_weights: (items,) float32, sum of the weights of each item's training interactions; None if the
            interactions have no weights.
        relations: (n, 2) int64 directed links between items, by name of the relation; see `read_relations`.
        clusters: clusters of similar items by modality; see `hafvt.features.clusters`.
        interactions: for models that count them; None for others, and for a trained model, whose weights have
            the counts.
        shard: the rows of item tables that this process holds in training; None for all.
        bases: by modality, those of the training that this one starts from; see `Model.inherit_features`.
        time_knots: (K,) int64 quantiles of the times of training interactions, in seconds since 1970; None if
            the dataset has times of another kind, the model does not use them, or it is trained: its weights
            have them.
    """

    domains: tuple[Domain, ...]
    vectors: dict[str, Vectors]
    train_counts: Tensor
    relations: Mapping[str, Tensor] = field(default_factory=dict)
    clusters: Mapping[str, ItemClusters] = field(default_factory=dict)
    interactions: TrainInteractions | None = None
    shard: Shard | None = None
    bases: Mapping[str, ContentBasis] = field(default_factory=dict)
    time_knots: Tensor | None = None
    train_weights: Tensor | None = None

    def __len__(self) -> int:
        """Return the number of items of all domains."""
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
        """Return the index of the domain of each item, same shape as `items`."""
        starts = torch.tensor([d.start for d in self.domains[1:]], device=items.device, dtype=items.dtype)
        return torch.bucketize(items, starts, right=True)


def load_item_features(
    data: Dataset,
    modalities: tuple[str, ...] | None = None,
    *,
    relations: bool = False,
    interactions: bool = False,
    times: bool = False,
    memory_map: bool = False,
) -> ItemFeatures:
    """Return the item features of a dataset, without clusters.

    Args:
        data: the dataset.
        modalities: names of the encoded features to read; None reads all.
        relations: whether to read the links between items as well.
        interactions: whether to read the training interactions as well.
        times: whether to compute the knots of time as well.
        memory_map: whether the vectors are float16 in memory-mapped files, in place of float32 in memory.

    Raises:
        HafvtError: a modality is not encoded.
    """
    folder, encoded = data.folder / "features", data.feature_names
    names = encoded if modalities is None else list(modalities)
    if missing := [name for name in names if name not in encoded]:
        raise HafvtError(
            f"{data.folder} has no features {', '.join(missing)} (it has: {', '.join(encoded) or 'none'}): "
            f"run hafvt encode {data.folder} {encode_option(missing[0])}"
        )
    vectors, num_items = {}, data.domains[-1].stop
    for name in names:
        table = FeatureTable.open(folder / name)
        if len(table.rows) != num_items:
            raise HafvtError(
                f"{table.folder} has {len(table.rows)} rows for {num_items} items: "
                f"run hafvt encode for {name} again"
            )
        if memory_map:  # "c" writes to memory only, and torch wants arrays that it may write to
            rows = np.load(folder / name / "rows.npy", mmap_mode="c", allow_pickle=False)
        else:
            rows = np.array(table.rows, dtype=np.float32)
        vectors[name] = Vectors(torch.from_numpy(rows), torch.from_numpy(np.array(table.present)))
    train_counts, weights = torch.from_numpy(data.train_counts().astype(np.float32)), data.train_weights()
    return ItemFeatures(
        data.domains,
        vectors,
        train_counts,
        read_relations(data) if relations else {},
        interactions=read_train_interactions(data) if interactions else None,
        time_knots=time_knots(data) if times else None,
        train_weights=None if weights is None else torch.from_numpy(weights.astype(np.float32)),
    )


def time_knots(data: Dataset) -> Tensor | None:
    """Return `NUM_TIME_KNOTS` quantiles of training times, (K,), or None; see `ItemFeatures`."""
    if data.is_catalog:
        saved = data.manifest["time_knots"]
        return None if saved is None else torch.tensor(saved)
    positions = data.train_positions()
    if data.seconds is None or not len(positions):
        return None
    times = np.sort(data.seconds[positions[:: -(-len(positions) // MAX_TIMES)]])
    return torch.from_numpy(times[np.linspace(0, len(times) - 1, NUM_TIME_KNOTS).astype(np.int64)])


def read_train_interactions(data: Dataset) -> TrainInteractions:
    """Return the interactions of the training part."""
    positions = data.train_positions()
    items = np.asarray(data.items)[positions].astype(np.int64)
    times = None if data.seconds is None else torch.from_numpy(data.seconds[positions])
    weights = None if data.weights is None else torch.from_numpy(data.weights[positions])
    return TrainInteractions(
        torch.from_numpy(data.users_at(positions)), torch.from_numpy(items), times, weights
    )


def prepare_vectors(
    vectors: Vectors,
    item_features: ItemFeatures,
    width: int,
    chunk_rows: int | None = None,
    basis: ContentBasis | None = None,
) -> Tensor:
    """Return frozen vectors for all items, (items, d), reduced to principal directions and without gaps.

    Items without a vector get the mean vector of their domain. Means and principal directions are computed
    from trained items alone, so that cold items do not change the vectors of other items.

    Args:
        vectors: (items, e) in one modality.
        item_features: defines domains and trained items.
        width: number of principal directions d, at most; the vectors are centered and projected onto them
            and get unit length again. 0 keeps the vectors as they are, d = e.
        chunk_rows: number of vectors that are computed at a time; a large result is then a memory-mapped
            temporary file. None computes all at once, which changes the result by rounding.
        basis: mean and principal directions; None computes them by `content_basis`.
    """
    rows, present = vectors
    fit = _fit_mask(vectors, item_features)
    size = chunk_rows or max(len(rows), 1)
    mean = directions = None
    if width:
        mean, directions = basis or content_basis(vectors, item_features, width, chunk_rows)
    reduced = _empty_rows(len(rows), rows.shape[1] if directions is None else directions.shape[1], chunk_rows)
    for part in _chunks(slice(0, len(rows)), size):
        if mean is None or directions is None:
            reduced[part] = rows[part]
        else:
            reduced[part] = F.normalize((rows[part].float() - mean) @ directions, dim=1)
    for domain in item_features.domains:
        items = slice(domain.start, domain.stop)
        fill = _mean_row(reduced, fit, items, size) if fit[items].any() else torch.zeros_like(reduced[0])
        reduced[items][~present[items]] = fill
    return reduced


def content_basis(
    vectors: Vectors, item_features: ItemFeatures, width: int, chunk_rows: int | None = None
) -> ContentBasis:
    """Return mean and principal directions of the vectors of trained items, see `prepare_vectors`."""
    rows, fit = vectors.rows, _fit_mask(vectors, item_features)
    size = chunk_rows or max(len(rows), 1)
    mean = _mean_row(rows, fit, slice(0, len(rows)), size)
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for part in _chunks(slice(0, len(rows)), size):
        centered = rows[part][fit[part]].float() - mean
        covariance += (centered.T @ centered).double()
    _, directions = torch.linalg.eigh(covariance)  # (e, e), ascending
    # The sign of a direction depends on the processor: make its largest entry positive.
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    return ContentBasis(mean, (directions * largest.sign())[:, -width:].float())


def _fit_mask(vectors: Vectors, item_features: ItemFeatures) -> Tensor:
    """Return the items from which mean and directions are computed: trained ones with a vector, if any."""
    fit = vectors.present & item_features.is_trained
    return fit if fit.any() else vectors.present


def _chunks(part: slice, size: int) -> Iterator[slice]:
    """Yield a range of rows in chunks."""
    for start in range(part.start, part.stop, size):
        yield slice(start, min(start + size, part.stop))


def _mean_row(rows: Tensor, mask: Tensor, part: slice, size: int) -> Tensor:
    """Return the mean of the rows of a range that are in a mask, (d,)."""
    total = torch.zeros(rows.shape[1])
    for chunk in _chunks(part, size):
        total += rows[chunk][mask[chunk]].float().sum(0)
    return total / int(mask[part].sum())


def _empty_rows(num_rows: int, width: int, chunk_rows: int | None) -> Tensor:
    """Return a float32 table in memory or, if it is computed by chunks and large, in a temporary file."""
    num_bytes = 4 * num_rows * width
    if chunk_rows is None or num_bytes < MIN_MAPPED_BYTES:
        return torch.empty(num_rows, width)
    path = Path(tempfile.gettempdir()) / "vectors"
    with explained_write_errors(path, num_bytes=num_bytes), tempfile.TemporaryFile() as file:
        check_space(path, num_bytes)
        file.truncate(num_bytes)
        return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=(num_rows, width)))
