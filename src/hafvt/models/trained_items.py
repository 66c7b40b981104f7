"""The items with training interactions, called trained; all others are cold."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.features.item_features import ItemFeatures


class TrainedItems(nn.Module):
    """Which of the V items of a catalog are trained, and the position of each among the V' trained items.

    Attributes:
        has_cold: whether some items are cold.
        shard: the positions that this process holds in training; None for all.
        ranges: by domain, the positions of its trained items; last, those of all trained items.
    """

    is_cold: Tensor
    """(V,) bool, whether the item has no training interactions."""
    indices: Tensor
    """(V',) item indices of the trained items, ascending."""
    positions: Tensor
    """(V,) position of each trained item in `indices`; undefined for cold items."""

    slice_indices: Tensor
    """With a shard, (V'_r,) the rows of this process's slice of the catalog that are trained items."""

    def __init__(self, item_features: ItemFeatures) -> None:
        super().__init__()
        is_trained = item_features.is_trained
        self.has_cold = not bool(is_trained.all())
        self.register_buffer("is_cold", ~is_trained, persistent=False)
        self.register_buffer("indices", is_trained.nonzero()[:, 0], persistent=False)
        self.register_buffer("positions", is_trained.cumsum(0) - 1, persistent=False)
        trained_before = F.pad(is_trained.cumsum(0), (1, 0)).tolist()
        ranges = [(domain.start, domain.stop) for domain in item_features.domains] + [(0, len(is_trained))]
        self.ranges = [slice(trained_before[start], trained_before[stop]) for start, stop in ranges]
        self.shard = None
        if item_features.shard is not None:
            self.shard = item_features.shard.subset(is_trained)
            is_trained = item_features.shard.rows(is_trained)
            self.register_buffer("slice_indices", is_trained.nonzero()[:, 0], persistent=False)

    def select(self, table: Tensor) -> Tensor:
        """Return the rows of the trained items, (V, d) -> (V', d): the table itself if no item is cold."""
        return table.index_select(0, self.indices) if self.has_cold else table  # much faster than an index
