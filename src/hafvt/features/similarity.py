"""Similar items, computed from frozen vectors before a model is built.

Only trained items become neighbors: a cold item never changes the neighbors of other items. To bound time and
memory, items are compared with *reference items* alone: the trained items with a vector and the most training
interactions, at most `MAX_REFERENCE_ITEMS` of them.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures, SimilarItems, Vectors, prepare_vectors
from hafvt.progress import progress

MAX_REFERENCE_ITEMS = 32_768
BLOCK_ROWS = 512  # items that are compared with the reference items at a time
NEIGHBOR_TEMPERATURE = 0.1  # of the softmax over cosines that weighs the neighbors of an item


def with_similar_items(
    item_features: ItemFeatures, num_neighbors: int, content_width: int = 0
) -> ItemFeatures:
    """Return `item_features` with `similar_items` filled for each modality that has vectors.

    What `item_features.similar_items` holds already, such as the saved results of a training, is reused: on
    another processor, neighbors of nearly the same similarity could differ. Only missing items are compared.

    Args:
        item_features: the items with their frozen vectors.
        num_neighbors: neighbors of each item; 0 for none.
        content_width: width to which the vectors are reduced before the comparison; see `prepare_vectors`.

    Raises:
        HafvtError: the saved results belong to other items.
    """
    if not num_neighbors:
        return item_features
    similar_items = {
        name: find_similar_items(
            Vectors(prepare_vectors(vectors, item_features, content_width), vectors.present),
            item_features.train_counts,
            num_neighbors,
            item_features.similar_items.get(name),
        )
        for name, vectors in item_features.vectors.items()
    }
    return replace(item_features, similar_items=similar_items)


def find_similar_items(
    vectors: Vectors, train_counts: Tensor, num_neighbors: int, saved: SimilarItems | None = None
) -> SimilarItems:
    """Return the neighbors of all V items in one modality.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        num_neighbors: neighbors of each item, at least 1.
        saved: earlier results, which stay as they are; only items whose neighbors are -1 are compared.

    Raises:
        HafvtError: `saved` belongs to other items.
    """
    if saved is None:
        return nearest_neighbors(vectors, train_counts, num_neighbors, torch.arange(len(vectors.rows)))
    neighbors, weights = saved
    if not (
        neighbors.dtype == torch.int64
        and neighbors.ndim == 2
        and neighbors.shape == weights.shape
        and len(neighbors) == len(vectors.rows)
        and neighbors.shape[1] > 0
    ):
        raise HafvtError(
            "the saved similar items do not fit these items, or are of an earlier version: train anew"
        )
    new = (neighbors < 0).any(1).nonzero()[:, 0]
    if not len(new):
        return saved
    neighbors, weights = neighbors.clone(), weights.clone()
    neighbors[new], weights[new] = nearest_neighbors(vectors, train_counts, num_neighbors, new)
    return SimilarItems(neighbors, weights)


def renumber_items(similar_items: SimilarItems, new_index: Tensor, num_items: int) -> SimilarItems:
    """Return similar items for a larger catalog; the neighbors of the items that are new in it are -1.

    Args:
        similar_items: results for V items.
        new_index: (V,) the index of each of these items in the larger catalog.
        num_items: number of items of the larger catalog.
    """
    neighbors, weights = (part.new_full((num_items, part.shape[1]), -1) for part in similar_items)
    neighbors[new_index] = new_index[similar_items.neighbors]
    weights[new_index] = similar_items.neighbor_weights
    return SimilarItems(neighbors, weights)


def nearest_neighbors(
    vectors: Vectors, train_counts: Tensor, num_neighbors: int, items: Tensor
) -> SimilarItems:
    """Return the reference items with the highest cosine to each of N items, itself left out.

    Args:
        vectors: (V, d) of unit length.
        train_counts: (V,) training interactions of each item.
        num_neighbors: neighbors of each item, at most: there are fewer if there are few reference items.
        items: (N,) items whose neighbors are wanted.

    Returns:
        Neighbors and weights, (N, k) each. Weights sum to 1 per item; they are 0 for items without a vector.
    """
    rows, present = vectors
    references = _reference_items(vectors, train_counts)
    k = max(0, min(num_neighbors, len(references) - 1))
    if k == 0:
        return SimilarItems(torch.zeros(len(items), 1, dtype=torch.int64), torch.zeros(len(items), 1))
    table, cosines = rows[references], rows.new_empty(BLOCK_ROWS, len(references))
    neighbors, weights = [], []
    with progress("similar items", len(items), "items") as advance:
        for block in torch.split(items, BLOCK_ROWS):
            # Always the same number of rows, so that the cosines of an item do not depend on its position.
            torch.mm(F.pad(rows[block], (0, 0, 0, BLOCK_ROWS - len(block))), table.T, out=cosines)
            column = torch.searchsorted(references, block).clamp(max=len(references) - 1)
            is_itself = references[column] == block
            cosines[is_itself.nonzero()[:, 0], column[is_itself]] = -torch.inf
            highest, columns = cosines[: len(block)].topk(k)  # (block, k)
            neighbors.append(references[columns])
            weights.append(torch.softmax(highest / NEIGHBOR_TEMPERATURE, dim=1))
            advance(len(block))
    return SimilarItems(torch.cat(neighbors), torch.cat(weights) * present[items, None])


def _reference_items(vectors: Vectors, train_counts: Tensor) -> Tensor:
    """Return the reference items, (K,) ascending; see the module's docstring."""
    items = (vectors.present & (train_counts > 0)).nonzero()[:, 0]
    order = train_counts[items].argsort(descending=True, stable=True)
    return items[order[:MAX_REFERENCE_ITEMS].sort().values]
