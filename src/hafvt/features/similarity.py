"""Similar items and clusters of items, computed from frozen vectors before a model is built.

Only trained items become neighbors or form clusters: a cold item never changes the results of other items.
To bound time and memory, items are compared with *reference items* alone: the trained items with a vector and
the most training interactions, at most `MAX_REFERENCE_ITEMS` of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures, SimilarItems, Vectors, prepare_vectors
from hafvt.progress import Advance, progress

MAX_REFERENCE_ITEMS = 32_768
BLOCK_ROWS = 512  # items that are compared with the reference items at a time
KMEANS_STEPS = 6
NEIGHBOR_TEMPERATURE = 0.1  # of the softmax over cosines that weighs the neighbors of an item


def with_similar_items(
    item_features: ItemFeatures, num_neighbors: int, cluster_sizes: tuple[int, ...], content_width: int = 0
) -> ItemFeatures:
    """Return `item_features` with `similar_items` filled for each modality that has vectors.

    What `item_features.similar_items` holds already, such as the saved results of a training, is reused: on
    another processor, neighbors of nearly the same similarity could differ. Only missing items are compared.

    Args:
        item_features: the items with their frozen vectors.
        num_neighbors: neighbors of each item; 0 for none.
        cluster_sizes: average numbers of items in a cluster, one for each clustering; empty for no clusters.
        content_width: width to which the vectors are reduced before the comparison; see `prepare_vectors`.

    Raises:
        HafvtError: the saved results belong to other items or other settings.
    """
    if not num_neighbors and not cluster_sizes:
        return item_features
    similar_items = {
        name: find_similar_items(
            Vectors(prepare_vectors(vectors, item_features, content_width), vectors.present),
            item_features.train_counts,
            num_neighbors,
            cluster_sizes,
            item_features.similar_items.get(name),
        )
        for name, vectors in item_features.vectors.items()
    }
    return replace(item_features, similar_items=similar_items)


def find_similar_items(
    vectors: Vectors,
    train_counts: Tensor,
    num_neighbors: int,
    cluster_sizes: tuple[int, ...],
    saved: SimilarItems | None = None,
) -> SimilarItems:
    """Return neighbors and clusters of all V items in one modality.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        num_neighbors: see `with_similar_items`.
        cluster_sizes: see `with_similar_items`.
        saved: earlier results, which stay as they are; only items whose entries are -1 are compared.

    Raises:
        HafvtError: `saved` belongs to other items or other settings.
    """
    rows, present = vectors
    if saved is None:
        no_numbers = torch.zeros(len(rows), 0)
        neighbors, clusters = (no_numbers.long(), no_numbers), (no_numbers.long(), 0)
        steps = KMEANS_STEPS * len(reference_items(vectors, train_counts))
        total = len(rows) * (num_neighbors > 0) + (len(rows) + steps) * len(cluster_sizes)
        with progress("similar items", total, "items") as advance:
            if num_neighbors:
                neighbors = nearest_neighbors(vectors, train_counts, num_neighbors, advance=advance)
            if cluster_sizes:
                clusters = cluster_items(vectors, train_counts, cluster_sizes, advance)
        return SimilarItems(*neighbors, *clusters)
    if not _fits(saved, len(rows), num_neighbors > 0, len(cluster_sizes) > 0):
        raise HafvtError(
            "the saved similar items do not fit these items, or are of an earlier version: train anew"
        )
    new = (torch.cat([saved.neighbors, saved.clusters], dim=1) < 0).any(1).nonzero()[:, 0]
    if not len(new):
        return saved
    members = present & (train_counts > 0)
    members[new] = False
    neighbor_index, weights = saved.neighbors.clone(), saved.neighbor_weights.clone()
    cluster_index = saved.clusters.clamp(min=0)
    if num_neighbors:
        neighbor_index[new], weights[new] = nearest_neighbors(vectors, train_counts, num_neighbors, new)
    if cluster_sizes and members.any():
        cluster_index[new] = assign_to_clusters(rows[new], saved.clusters[members], rows[members])
    return SimilarItems(neighbor_index, weights, cluster_index, saved.num_clusters)


def renumber_items(similar_items: SimilarItems, new_index: Tensor, num_items: int) -> SimilarItems:
    """Return similar items for a larger catalog; entries of the items that are new in it are -1.

    Args:
        similar_items: results for V items.
        new_index: (V,) the index of each of these items in the larger catalog.
        num_items: number of items of the larger catalog.
    """
    neighbors, weights, clusters = (
        part.new_full((num_items, part.shape[1]), -1) for part in similar_items[:3]
    )
    neighbors[new_index] = new_index[similar_items.neighbors]
    weights[new_index], clusters[new_index] = similar_items.neighbor_weights, similar_items.clusters
    return SimilarItems(neighbors, weights, clusters, similar_items.num_clusters)


def nearest_neighbors(
    vectors: Vectors,
    train_counts: Tensor,
    num_neighbors: int,
    items: Tensor | None = None,
    advance: Advance | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the reference items with the highest cosine to each item, itself left out, and their weights.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        num_neighbors: neighbors of each item, at most: there are fewer where there are few reference items.
        items: (N,) items whose neighbors are wanted; None for all V.
        advance: called with the number of items that are finished.

    Returns:
        Neighbors and weights, (N, k) each. Weights sum to 1 per item; they are 0 for items without a vector.
    """
    rows, present = vectors
    queries = torch.arange(len(rows)) if items is None else items
    references = reference_items(vectors, train_counts)
    k = max(0, min(num_neighbors, len(references) - 1))
    if k == 0:
        return torch.zeros(len(queries), 1, dtype=torch.int64), torch.zeros(len(queries), 1)
    start, neighbors, weights = 0, [], []
    for cosines in iter_cosines(rows if items is None else rows[items], rows[references], advance):
        block = queries[start : start + len(cosines), None]
        start += len(cosines)
        column = torch.searchsorted(references, block).clamp(max=len(references) - 1)
        is_itself = references[column] == block
        cosines.scatter_(1, column, cosines.gather(1, column).masked_fill(is_itself, -torch.inf))
        highest, columns = cosines.topk(k)  # (block, k)
        neighbors.append(references[columns])
        weights.append(torch.softmax(highest / NEIGHBOR_TEMPERATURE, dim=1))
    return torch.cat(neighbors), torch.cat(weights) * present[queries, None]


def cluster_items(
    vectors: Vectors, train_counts: Tensor, cluster_sizes: tuple[int, ...], advance: Advance | None = None
) -> tuple[Tensor, int]:
    """Return the cluster of each item for each cluster size, (V, L), and the number of all clusters.

    Spherical k-means over the reference items of all domains; every other item joins the nearest center.
    Cluster numbers continue from size to size. Items without a vector get the number 0 throughout.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        cluster_sizes: average number of reference items in a cluster, for each of L clusterings.
        advance: called with the number of items that were compared with the centers, for each size once for
            all items and `KMEANS_STEPS` times for the reference items.
    """
    rows, present = vectors
    table = rows[reference_items(vectors, train_counts)]  # (K, d)
    clusters, num_clusters = [], 0
    # Initial centers are spread evenly along a fixed direction, not drawn: item numbers must not matter.
    by_direction = (table @ torch.linspace(-1, 1, rows.shape[1])).argsort(stable=True)
    for size in cluster_sizes if len(table) else ():
        count = max(1, len(table) // size)
        centers = table[by_direction[torch.arange(count) * len(table) // count]]
        for _ in range(KMEANS_STEPS):
            nearest = _nearest_center(table, centers, advance)
            centers = F.normalize(torch.zeros_like(centers).index_add_(0, nearest, table), dim=1)
        clusters.append(num_clusters + _nearest_center(rows, centers, advance))
        num_clusters += count
    if not clusters:
        return torch.zeros(len(rows), 1, dtype=torch.int64), 1
    return torch.stack(clusters, dim=1) * present[:, None], num_clusters


def assign_to_clusters(rows: Tensor, clusters: Tensor, members: Tensor) -> Tensor:
    """Returns, for each clustering, the cluster whose members' mean is nearest, (N, d) -> (N, L).

    Args:
        rows: (N, d) of unit length, the items to assign.
        clusters: (M, L) the clusters of the members.
        members: (M, d) the vectors of the members.
    """
    assigned = []
    for clustering in clusters.T:  # (M,)
        numbers, index = clustering.unique(return_inverse=True)
        centers = members.new_zeros(len(numbers), members.shape[1]).index_add_(0, index, members)
        assigned.append(numbers[_nearest_center(rows, F.normalize(centers, dim=1))])
    return torch.stack(assigned, dim=1)


def reference_items(vectors: Vectors, train_counts: Tensor) -> Tensor:
    """Return the reference items, (K,) ascending; see the module's docstring."""
    items = (vectors.present & (train_counts > 0)).nonzero()[:, 0]
    order = train_counts[items].argsort(descending=True, stable=True)
    return items[order[:MAX_REFERENCE_ITEMS].sort().values]


def iter_cosines(rows: Tensor, table: Tensor, advance: Advance | None = None) -> Iterator[Tensor]:
    """Yield the cosines of up to `BLOCK_ROWS` rows at a time with a table, (V, d), (K, d) -> (block, K).

    All blocks share one buffer: each overwrites the one before. `advance` gets the number of finished rows.
    """
    buffer = rows.new_empty(BLOCK_ROWS, len(table))
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        # Always the same number of rows, so that the cosines of an item do not depend on its position.
        torch.mm(F.pad(block, (0, 0, 0, BLOCK_ROWS - len(block))), table.T, out=buffer)
        yield buffer[: len(block)]
        if advance is not None:
            advance(len(block))


def _nearest_center(rows: Tensor, centers: Tensor, advance: Advance | None = None) -> Tensor:
    """Return the index of the center with the highest cosine, (V, d), (G, d) -> (V,)."""
    return torch.cat([cosines.argmax(1) for cosines in iter_cosines(rows, centers, advance)])


def _fits(saved: SimilarItems, num_items: int, has_neighbors: bool, has_clusters: bool) -> bool:
    """Return whether saved results are for this many items and have neighbors and clusters as wanted."""
    neighbors, weights, clusters, _ = saved
    return (
        all(part.dtype == torch.int64 and part.ndim == 2 for part in (neighbors, clusters))
        and neighbors.shape == weights.shape
        and len(neighbors) == len(clusters) == num_items
        and (neighbors.shape[1] > 0, clusters.shape[1] > 0) == (has_neighbors, has_clusters)
    )
