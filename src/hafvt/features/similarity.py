"""What each item is linked to by the frozen vectors of one modality: those most alike, and its groups."""

from __future__ import annotations

import torch
from torch import Tensor

from hafvt.errors import HafvtError
from hafvt.features.clusters import STEPS, find_clusters, nearest_clusters
from hafvt.features.cosines import known_items
from hafvt.features.item_features import SimilarItems
from hafvt.features.neighbors import neighbors
from hafvt.progress import progress


def find_similar_items(
    rows: Tensor,
    present: Tensor,
    counts: Tensor,
    near: int,
    sizes: tuple[int, ...],
    kept: SimilarItems | None,
) -> SimilarItems:
    """Returns the links of all items; those that are known already stay as they are.

    To find them takes long, and on another processor some might be others: so a training keeps them.

    Args:
        rows: (V, d) of unit length.
        present: (V,) which items have a vector of their own.
        counts: (V,) how often training met each.
        near: neighbors of an item, see `neighbors`.
        sizes: see `groups`.
        kept: what is known; None for nothing.

    Raises:
        HafvtError: what is known is of other items.
    """
    if kept is None:
        nothing, known = torch.zeros(len(rows), 0), len(known_items(present, counts))
        found, joined_by = (nothing.long(), nothing), (nothing.long(), 0)
        total = len(rows) * (near > 0) + (len(rows) + STEPS * known) * len(sizes)
        with progress("what looks or reads alike", total, "items") as advance:
            if near:
                found = neighbors(rows, present, counts, near, advance=advance)
            if sizes:
                joined_by = find_clusters(rows, present, counts, sizes, advance)
        return SimilarItems(*found, *joined_by)
    if not fits(kept, len(rows), near > 0, len(sizes) > 0):
        raise HafvtError("the weights do not fit these items, or are of an earlier version: train anew")
    new = (torch.cat([kept.neighbors, kept.clusters], dim=1) < 0).any(1).nonzero()[:, 0]
    if not len(new):
        return kept
    members = present & (counts > 0)
    members[new] = False
    of_items, weights, in_groups = (
        kept.neighbors.clone(),
        kept.neighbor_weights.clone(),
        kept.clusters.clamp(min=0),
    )
    if near:
        of_items[new], weights[new] = neighbors(rows, present, counts, near, new)
    if sizes and members.any():
        in_groups[new] = nearest_clusters(rows[new], kept.clusters[members], rows[members])
    return SimilarItems(of_items, weights, in_groups, kept.num_clusters)


def fits(kept: SimilarItems, count: int, near: bool, grouped: bool) -> bool:
    """Returns whether these are links of so many items, to neighbors and groups where such are sought."""
    items, weights, in_groups, _ = kept
    whole = all(part.dtype == torch.int64 and part.ndim == 2 for part in (items, in_groups))
    return (
        whole
        and items.shape == weights.shape
        and len(items) == len(in_groups) == count
        and (items.shape[1] > 0, in_groups.shape[1] > 0) == (near, grouped)
    )


def renumber_items(kept: SimilarItems, numbers: Tensor, count: int) -> SimilarItems:
    """Returns links of items among `count` others, of which nothing is known.

    Args:
        kept: links of V' items.
        numbers: (V',) their new numbers.
        count: V, of all items.
    """
    near, weights, in_groups = (
        part.new_full((count, part.shape[1]), -1)
        for part in (kept.neighbors, kept.neighbor_weights, kept.clusters)
    )
    near[numbers], weights[numbers], in_groups[numbers] = (
        numbers[kept.neighbors],
        kept.neighbor_weights,
        kept.clusters,
    )
    return SimilarItems(near, weights, in_groups, kept.num_clusters)
