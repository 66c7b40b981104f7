"""Item-based nearest neighbors.

Deshpande and Karypis, Item-Based Top-N Recommendation Algorithms, TOIS 2004. The similarity of items i and j
is the cosine of the sets of users who chose them, with shrinkage: n_ij / (sqrt(n_i n_j) + shrinkage), where
n_ij users chose both. Each item keeps its most similar items in every domain. The score of an item is the sum
of its similarities to the items of the history, older ones weighing less: decay^a at age a. Items without
similarity are ordered by popularity.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import torch
from torch import Tensor

from hafvt.data.batches import Batch
from hafvt.features.item_features import ItemFeatures
from hafvt.models.base import Model
from hafvt.models.configs import ItemKnnConfig
from hafvt.models.popularity import select_columns
from hafvt.models.sequences import last_occurrences

POPULARITY_WEIGHT = 1e-6  # of the share of training interactions in a score: less than any similarity
PAIRS_PER_BLOCK = 5_000_000  # pairs of interactions of one user that are counted at a time; bounds memory


class ItemKnn(Model):
    """Scores an item by its similarity to the items of the history."""

    uses_interactions = True
    neighbors: Tensor
    """(V, K) the items most similar to each item, of all domains; any item where there are fewer."""
    similarities: Tensor
    """(V, K) their similarities; 0 where there are fewer."""
    popularity: Tensor
    """(V,) share of the training interactions."""

    def __init__(self, item_features: ItemFeatures, config: ItemKnnConfig) -> None:
        super().__init__()
        self.max_length, self.domains, self.config = config.max_length, item_features.domains, config
        size = len(item_features)
        limits = [min(config.num_neighbors, len(domain)) for domain in self.domains]
        self.register_buffer("neighbors", torch.zeros(size, sum(limits), dtype=torch.int32))
        self.register_buffer("similarities", torch.zeros(size, sum(limits)))
        counts = item_features.train_counts
        self.register_buffer("popularity", counts / counts.sum().clamp(min=1))
        if item_features.interactions is not None:
            first_column = torch.tensor([0, *limits]).cumsum(0)
            users, items, *_ = item_features.interactions
            for source, target, similarity in item_similarities(users, items, size, config.shrinkage):
                domain = item_features.domain_of(target)
                place = places_by_similarity(source * len(limits) + domain, similarity)
                is_kept = place < torch.tensor(limits)[domain]
                index = source[is_kept], (first_column[domain] + place)[is_kept]
                self.neighbors[index] = target[is_kept].int()
                self.similarities[index] = similarity[is_kept].float()

    def scores(self, batch: Batch, domain: int, candidates: Tensor | None = None) -> Tensor:
        """Return the sum of the similarities to the history, see `Model.scores`."""
        age = batch.lengths[:, None] - 1 - torch.arange(batch.items.shape[1], device=batch.items.device)
        weights = self.config.decay ** age.clamp(min=0) * last_occurrences(
            batch
        )  # (B, T) each item of a history counts once
        similarities = (self.similarities[batch.items] * weights[:, :, None]).flatten(1)  # (B, T * K)
        neighbors = self.neighbors[batch.items].long().flatten(1)
        scores = (POPULARITY_WEIGHT * self.popularity).repeat(batch.items.shape[0], 1)  # (B, V)
        return select_columns(scores.scatter_add(1, neighbors, similarities), self, domain, candidates)


def item_similarities(
    users: Tensor, items: Tensor, num_items: int, shrinkage: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield pairs of different items with a common user and their similarity, (n,) each, item by item.

    Args:
        users: (N,) user of each interaction; repeated interactions count once.
        items: (N,) item of each interaction.
        num_items: V.
        shrinkage: added to the denominator of the cosine.
    """
    users, items = torch.unique(torch.stack([users, items]), dim=1)
    num_users = int(users.max()) + 1 if len(users) else 0
    counts = torch.bincount(items, minlength=num_items)  # n_i
    # Blocks of items whose interactions have about as many pairs.
    pairs = torch.zeros(num_items, dtype=torch.int64).index_add(0, items, torch.bincount(users)[users])
    block = pairs.cumsum(0) // PAIRS_PER_BLOCK
    by_item = items.argsort(stable=True)
    matrix = sparse_ones(users, items, (num_users, num_items))
    for number in torch.unique(block).tolist():
        first, last = (int(torch.searchsorted(block, number, right=right)) for right in (False, True))
        part = by_item[int(counts[:first].sum()) : int(counts[:last].sum())]
        columns = sparse_ones(items[part] - first, users[part], (last - first, num_users))
        with warnings.catch_warnings(action="ignore"):  # torch warns that sparse matrices may change
            common = torch.sparse.mm(columns, matrix).coalesce()  # n_ij
        (source, target), values = common.indices(), common.values()
        source = source + first
        is_other = source != target
        source, target, values = source[is_other], target[is_other], values[is_other]
        yield source, target, values / ((counts[source] * counts[target]).double().sqrt() + shrinkage)


def sparse_ones(rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """Return a sparse matrix with ones at some places, each given once."""
    ones, indices = torch.ones(len(rows), dtype=torch.float64), torch.stack([rows, columns])
    return torch.sparse_coo_tensor(indices, ones, shape, check_invariants=False).coalesce()


def places_by_similarity(groups: Tensor, similarities: Tensor) -> Tensor:
    """Return the place of each pair in its group, from 0, most similar first; ties keep their order."""
    order = similarities.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    ordered = groups[order]
    places = torch.empty_like(order)
    places[order] = torch.arange(len(order)) - torch.searchsorted(ordered, ordered)
    return places
