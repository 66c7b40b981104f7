"""Clusters of similar items, computed from frozen vectors before a model is built.

Only trained items form clusters: a cold item never changes the clusters of other items. To bound time and
memory, clusters are formed from *reference items* alone: the trained items with a vector and the most
training interactions, at most `MAX_REFERENCE_ITEMS` of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemClusters, ItemFeatures, Vectors, prepare_vectors
from hafvt.progress import progress

MAX_REFERENCE_ITEMS = 32_768
BLOCK_ROWS = 512  # items that are compared with the centers at a time
KMEANS_STEPS = 6


def with_clusters(
    item_features: ItemFeatures,
    cluster_sizes: tuple[int, ...],
    content_width: int = 0,
    chunk_rows: int | None = None,
) -> ItemFeatures:
    """Return `item_features` with `clusters` filled for each modality that has vectors.

    What `item_features.clusters` holds already, such as the saved results of a training, is reused: on
    another processor, the nearest of two nearly equal centers could differ. Only missing items are assigned.
    With a shard, process 0 computes the clusters.

    Args:
        item_features: the items with their frozen vectors.
        cluster_sizes: see `cluster_items`; empty for no clusters.
        content_width: width to which the vectors are reduced; see `prepare_vectors`.
        chunk_rows: rows that are reduced at a time; see `prepare_vectors`.

    Raises:
        HafvtError: the saved results belong to other items or another number of cluster sizes.
    """
    shard = item_features.shard
    if not cluster_sizes or (shard is not None and shard.process > 0):
        return item_features
    clusters = {}
    for name, vectors in item_features.vectors.items():
        basis = item_features.bases.get(name)
        rows = prepare_vectors(vectors, item_features, content_width, chunk_rows, basis)
        saved, vectors = item_features.clusters.get(name), Vectors(rows, vectors.present)
        if saved is None:
            clusters[name] = cluster_items(vectors, item_features.train_counts, cluster_sizes)
        else:
            clusters[name] = complete_clusters(vectors, item_features.train_counts, saved, len(cluster_sizes))
    return replace(item_features, clusters=clusters)


def cluster_items(vectors: Vectors, train_counts: Tensor, cluster_sizes: tuple[int, ...]) -> ItemClusters:
    """Return the clusters of all V items in one modality, by spherical k-means over the reference items.

    Then every item gets the nearest center. Numbers continue from one clustering to the next.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        cluster_sizes: average number of reference items in a cluster, for each of L clusterings.
    """
    rows = vectors.rows
    table = rows[_reference_items(vectors, train_counts)]  # (K, d)
    if not len(table):
        return ItemClusters(torch.zeros(len(rows), len(cluster_sizes), dtype=torch.int64), 1)
    # Initial centers are spread evenly along a fixed direction, not drawn: item numbers must not matter.
    by_direction = (table @ torch.linspace(-1, 1, rows.shape[1])).argsort(stable=True)
    cluster_rows, num_clusters = [], 0
    total = len(cluster_sizes) * (KMEANS_STEPS + 1)
    with progress("clusters of similar items", total, "passes") as advance:
        for size in cluster_sizes:
            count = max(1, len(table) // size)
            centers = table[by_direction[torch.arange(count) * len(table) // count]]
            for _ in range(KMEANS_STEPS):
                nearest = _nearest_center(table, centers)
                centers = F.normalize(torch.zeros_like(centers).index_add_(0, nearest, table), dim=1)
                advance()
            cluster_rows.append(num_clusters + _nearest_center(rows, centers))
            num_clusters += count
            advance()
    return ItemClusters(torch.stack(cluster_rows, dim=1), num_clusters)


def complete_clusters(
    vectors: Vectors, train_counts: Tensor, saved: ItemClusters, num_clusterings: int
) -> ItemClusters:
    """Assign items whose `cluster_rows` are -1 to the cluster whose trained members' mean vector is nearest.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        saved: earlier results; all other assignments stay.
        num_clusterings: L, expected number of clusterings.

    Raises:
        HafvtError: `saved` belongs to other items or another number of clusterings.
    """
    cluster_rows, (rows, present) = saved.cluster_rows, vectors
    if cluster_rows.dtype != torch.int64 or cluster_rows.shape != (len(rows), num_clusterings):
        raise HafvtError(
            "the saved clusters do not fit these items, or are of an earlier version: train anew"
        )
    is_new = (cluster_rows < 0).any(1)
    if not is_new.any():
        return saved
    members = present & (train_counts > 0) & ~is_new
    cluster_rows = cluster_rows.clamp(min=0)
    for clustering in cluster_rows.T if members.any() else ():  # (V,), a view
        used, index = clustering[members].unique(return_inverse=True)
        centers = rows.new_zeros(len(used), rows.shape[1]).index_add_(0, index, rows[members])
        clustering[is_new] = used[_nearest_center(rows[is_new], F.normalize(centers, dim=1))]
    return ItemClusters(cluster_rows, saved.num_clusters)


def renumber_items(clusters: ItemClusters, extended_indices: Tensor, num_items: int) -> ItemClusters:
    """Return clusters for a larger catalog; items that are new in it are not assigned yet.

    Args:
        clusters: results for V items.
        extended_indices: (V,) the index of each of these items in the larger catalog.
        num_items: number of items of the larger catalog.
    """
    cluster_rows = clusters.cluster_rows.new_full((num_items, clusters.cluster_rows.shape[1]), -1)
    cluster_rows[extended_indices] = clusters.cluster_rows
    return ItemClusters(cluster_rows, clusters.num_clusters)


def _reference_items(vectors: Vectors, train_counts: Tensor) -> Tensor:
    """Return the reference items, (K,) ascending; see the module's docstring."""
    items = (vectors.present & (train_counts > 0)).nonzero()[:, 0]
    order = train_counts[items].argsort(descending=True, stable=True)
    return items[order[:MAX_REFERENCE_ITEMS].sort().values]


def _nearest_center(rows: Tensor, centers: Tensor) -> Tensor:
    """Return the index of the center with the highest cosine, (N, d), (G, d) -> (N,)."""
    cosines, nearest = rows.new_empty(BLOCK_ROWS, len(centers)), []
    for block in torch.split(rows, BLOCK_ROWS):
        # Always the same number of rows, so that the cosines of an item do not depend on its position.
        torch.mm(F.pad(block, (0, 0, 0, BLOCK_ROWS - len(block))), centers.T, out=cosines)
        nearest.append(cosines[: len(block)].argmax(1))
    return torch.cat(nearest)
