"""Embeddings of all items for HAF-VT: learned for ids, frozen for the content (pictures, titles).

The *input embedding* of an item, (id_width,), is the sum of its id, its content and its clusters:

    n / (n + id_shrinkage) * id
      + sum over content modalities m of
          W_m content_m + id_shrinkage / (n + id_shrinkage) * sum over clusters c of c_m

Here `id` is the item's learned embedding, n its number of training interactions, and W_m a learned matrix.
Each cluster of items with similar content has a learned embedding c_m (`features/clusters.py`), if the model
has ids, content and an `id_shrinkage`. So a rare item relies on its content and on its clusters, a frequent
one on its own id. A cold item (n = 0) uses no `id`; the factor of its clusters is not 1, but the mean of that
factor over all training interactions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.errors import HafvtError
from hafvt.features.item_features import ContentBasis, ItemClusters, ItemFeatures, prepare_vectors
from hafvt.models.configs import HafVtConfig
from hafvt.models.trained_items import TrainedItems
from hafvt.ops.collectives import broadcast_
from hafvt.ops.embedding import (
    SparseLinks,
    add_weighted_rows,
    build_links,
    weighted_row_sums,
)
from hafvt.ops.shards import Shard, distribute_rows, init_normal, make_embedding, mapped_table

CONTENT_WIDTH = 128
"""Principal components kept of the frozen vectors; 64 and 128 are equally accurate, all components less."""
INITIAL_STD = 0.02
"""Standard deviation of initial ids and projections; small, as gradient steps turn short vectors faster."""

CHUNK_ROWS = 16_384
"""Rows of a table that are computed at a time."""

T = TypeVar("T")


class ItemEmbeddings(nn.Module):
    """Embeddings of all items.

    With a shard, tables of V items are this process's slices. In evaluation mode, the embeddings
    that scores need are whole; all processes enter this mode together.

    Args:
        item_features: The items; with `clusters` if the model has ids, content and `cluster_sizes`.
        config: The model's hyperparameters.

    Attributes:
        content_modalities: Names of the frozen modalities, such as image and title.
        modalities: Names of the modalities that have a branch (only the id without `modality_branches`).
        widths: Embedding width of each of `modalities`.
        shard: The items that this process holds in training; None for all.
        sharded_names: Names of the slices in the state dict.

    Raises:
        HafvtError: If a modality is not encoded, or clusters are missing.
    """

    id_weight: Tensor
    """(V, 1) weight of an item's own id in its input embedding."""
    cluster_weight: Tensor
    """(V, 1) weight of an item's clusters; for a cold item, the mean over all training interactions."""

    def __init__(self, item_features: ItemFeatures, config: HafVtConfig) -> None:
        super().__init__()
        self.trained, self.shard = TrainedItems(item_features), item_features.shard
        names = config.choose_modalities(item_features.vectors)
        self.content_modalities = tuple(name for name in names if name != "id")
        if not config.modality_branches and "id" not in names:
            raise HafvtError('modality_branches false needs "id" among the modalities')
        self.modalities = names if config.modality_branches else ("id",)
        widths = {"id": config.id_width}
        if "id" in names:
            sparse = config.num_negatives > 0
            self.ids = make_embedding(len(item_features), config.id_width, self.shard, sparse=sparse)
            init_normal(self.ids.weight, self.shard, std=INITIAL_STD)
        for name in self.content_modalities:
            basis, vectors = item_features.bases.get(name), item_features.vectors[name]
            arguments = vectors, item_features, CONTENT_WIDTH, content_chunk_rows(config), basis
            rows = distribute_rows(partial(prepare_vectors, *arguments), self.shard, torch.float32)
            for key, tensor in ({} if basis is None else basis._asdict()).items():
                self._add_buffer(f"{key}_{name}", tensor, persistent=True)
            self._add_buffer(f"content_{name}", rows)
            widths[name] = rows.shape[1]
        self.widths = [widths[name] for name in self.modalities]
        self.projections = nn.ModuleDict(
            {name: nn.Linear(widths[name], config.id_width, bias=False) for name in self.content_modalities}
        )
        for weight in self.projections.parameters():
            nn.init.normal_(weight, std=INITIAL_STD)
        counts = item_features.train_counts
        uses_shrinkage = "id" in names and len(names) > 1 and config.id_shrinkage > 0
        is_cold = self.trained.is_cold
        id_weight = counts / (counts + config.id_shrinkage) if uses_shrinkage else (~is_cold).float()
        self._add_buffer("id_weight", self._slice(id_weight[:, None]))
        mean_cluster_weight = ((1 - id_weight) * counts).sum() / counts.sum().clamp(min=1)
        cluster_weight = torch.where(is_cold, mean_cluster_weight, 1 - id_weight)[:, None]
        self._add_buffer("cluster_weight", self._slice(cluster_weight))
        self.clusters = nn.ParameterDict()  # by modality, the embeddings of its clusters
        for name in self.content_modalities if uses_shrinkage and config.cluster_sizes else ():
            clusters = item_features.clusters.get(name)
            if clusters is None and (self.shard is None or self.shard.process == 0):
                raise HafvtError(f"no clusters by {name}: call HafVt.prepare_item_features first")
            cluster_rows, num_clusters = distribute_clusters(clusters, self.shard)
            present = self._slice(item_features.vectors[name].present[:, None])
            self._set_links(name, build_links(cluster_rows, present.expand_as(cluster_rows), num_clusters))
            self.clusters[name] = nn.Parameter(torch.zeros(num_clusters, config.id_width))
        self.register_load_state_dict_post_hook(_after_load)  # type: ignore[no-untyped-call]
        self.sharded_names: tuple[str, ...] = ()
        if self.shard is not None:
            ids = ("ids.weight",) if "id" in names else ()
            self.sharded_names = (*ids, *(f"cluster_rows_{name}" for name in self.clusters))
        self._cache: dict[str, Any] = {}
        self._whole_content: dict[str, Tensor] = {}

    def _slice(self, table: Tensor) -> Tensor:
        return table if self.shard is None else self.shard.rows(table)

    def _add_buffer(self, name: str, value: Tensor, persistent: bool = False) -> None:
        self.register_buffer(name, value, persistent=persistent)

    def _set_links(self, name: str, links: SparseLinks) -> None:
        """Register links to clusters as buffers; only rows are saved, the rest is recomputed from them."""
        for field, values in links._asdict().items():
            self._add_buffer(f"cluster_{field}_{name}", values, persistent=field == "rows")

    def cluster_links(self, name: str) -> SparseLinks:
        """Return the links from items to the clusters of a modality."""
        return SparseLinks(*(getattr(self, f"cluster_{field}_{name}") for field in SparseLinks._fields))

    def content_vectors(self, name: str) -> Tensor:
        """Return the frozen vectors of a modality, (V, d); an item without one has its domain's mean."""
        rows: Tensor = getattr(self, f"content_{name}")
        return rows

    def input_and_content_rows(self, items: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return input embeddings and content vectors by modality of items, (N,) -> (N, id_width) and (N, d).

        Only these rows of the tables are read, in training mode, too.
        """
        content = {name: F.embedding(items, self.content_vectors(name)) for name in self.content_modalities}
        parts = [self.content_embeddings(name, items, vectors) for name, vectors in content.items()]
        if "id" in self.modalities:
            parts.insert(0, self.ids(items) * self.id_weight[items])
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total, content

    def input_embeddings(self) -> Tensor:
        """Return the input embeddings of all items, (V, id_width); see the module's docstring."""
        return self.cached_in_eval("input_embeddings", self._input_embeddings)

    def _input_embeddings(self) -> Tensor:
        ids = self._weighted_ids()
        total = ids.clone() if self.content_modalities else ids  # the loop adds in place
        for name, project in self.projections.items():
            total += project(self.content_vectors(name))
            if name in self.clusters:
                total = add_weighted_rows(
                    total, self.clusters[name], self.cluster_links(name), self.cluster_weight
                )
        return total

    def _weighted_ids(self) -> Tensor:
        """Return `id_weight` times the ids of all items, (V, id_width); zeros if the model has no ids."""
        if "id" in self.modalities:
            return self.ids.weight * self.id_weight
        width = next(self.projections.parameters()).shape[0]
        return self.id_weight.new_zeros(len(self.id_weight), width)

    def content_embeddings(self, name: str, items: Tensor, vectors: Tensor) -> Tensor:
        """Return what a content modality adds to the input embeddings of items, (N, id_width).

        `items` is (N,); `vectors`, (N, d), are their `content_vectors`.
        """
        total: Tensor = self.projections[name](vectors)
        if name in self.clusters:
            links = self.cluster_links(name)
            sums = weighted_row_sums(self.clusters[name], links.rows[items], links.weights[items])
            total = total + self.cluster_weight[items] * sums
        return total

    def content_shares(self, items: Tensor) -> Tensor:
        """Return each modality's share of the content in the input embeddings of items, (N,) -> (N, M).

        Shares are proportional to the norms of `content_embeddings`. Rows sum to 1; the share of ids is 0.
        """
        shares = torch.zeros(items.shape[0], len(self.modalities), device=items.device)
        for name in self.content_modalities:
            embeddings = self.content_embeddings(name, items, self.content_vectors(name)[items])
            shares[:, self.modalities.index(name)] = embeddings.norm(dim=1)
        return F.normalize(shares, p=1, dim=1)

    def input_embeddings_of(self, items: Tensor) -> Tensor:
        """Return the input embeddings of items, (...) -> (..., id_width)."""
        if self.content_modalities or self.shard is not None or torch.compiler.is_exporting():
            return F.embedding(items, self.input_embeddings())
        rows: Tensor = self.ids(items) * self.id_weight[items]  # no copy of the whole table
        return rows

    def rows_of(self, items: Tensor, *, by_row: bool) -> tuple[Tensor, list[Tensor]]:
        """Return rows of `input_embeddings` and, by modality, of `scoring_vectors`, (...) -> (..., d).

        With `by_row`, rows are computed without whole tables, which `by_row=False` caches.
        """
        if not by_row or self.shard is not None:
            return self.input_embeddings_of(items), [F.embedding(items, t) for t in self.scoring_vectors()]
        inputs, content = self.input_and_content_rows(items.flatten())
        vectors = [F.normalize(inputs, dim=1) if name == "id" else content[name] for name in self.modalities]
        return inputs.view(*items.shape, -1), [rows.view(*items.shape, -1) for rows in vectors]

    def scoring_vectors(self) -> list[Tensor]:
        """Return for each modality the vectors of all items that scores compare with states, (V, d).

        Those of the id are the normalized input embeddings, those of content its frozen vectors. A product
        with a unit vector is a cosine, as rows have norm 1; rows of items without content are means of rows.
        """
        return self.cached_in_eval("scoring_vectors", self._scoring_vectors)

    def _scoring_vectors(self) -> list[Tensor]:
        return [
            self._unit_input_embeddings() if name == "id" else self.content_vectors(name)
            for name in self.modalities
        ]

    def _unit_input_embeddings(self) -> Tensor:
        if self.content_modalities or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return F.normalize(self.input_embeddings(), dim=1)
        table = torch.empty_like(self.ids.weight)
        parts = (torch.split(t, CHUNK_ROWS) for t in (table, self.ids.weight, self.id_weight))
        for rows, ids, weight in zip(*parts, strict=True):  # no other copy of the whole table
            rows.copy_(F.normalize(ids * weight, dim=1))
        return table

    def trained_scoring_vectors(self) -> list[Tensor]:
        """Return the rows of the trained items in `scoring_vectors`, (V', d)."""
        return self.cached_in_eval(
            "trained_scoring_vectors", lambda: list(map(self.trained.select, self.scoring_vectors()))
        )

    def cached_in_eval(self, name: str, compute: Callable[[], T]) -> T:
        """Return `compute()`, a function of the weights; in inference, compute it once and cache it."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return compute()
        if self._cache.get("device") != self.trained.is_cold.device:
            self._cache = {"device": self.trained.is_cold.device}
        if name not in self._cache:
            self._cache[name] = compute()
        value: T = self._cache[name]
        return value

    def train(self, mode: bool = True) -> ItemEmbeddings:
        """Set training or evaluation mode, and clear the cache."""
        self._cache = {}
        super().train(mode)
        if self.shard is not None and not mode:
            self._cache = self._whole_tables(self.shard)
        return self

    @torch.no_grad()
    def _whole_tables(self, shard: Shard) -> dict[str, Any]:
        """Return what `cached_in_eval` caches of tables, for all items."""
        rows = self._input_embeddings()
        scoring = []
        for name in self.modalities:
            if name != "id" and name not in self._whole_content:
                self._whole_content[name] = mapped_table(self.content_vectors(name), shard)
            unit = mapped_table(F.normalize(rows, dim=1), shard) if name == "id" else None
            scoring.append(self._whole_content[name] if unit is None else unit)
        tables = {"input_embeddings": mapped_table(rows, shard), "scoring_vectors": scoring}
        return {"device": rows.device, **tables}


def content_chunk_rows(config: HafVtConfig) -> int | None:
    """Return how many frozen vectors are reduced at a time; all, unless softmaxes are sampled."""
    return CHUNK_ROWS if config.num_negatives else None


def distribute_clusters(clusters: ItemClusters | None, shard: Shard | None) -> ItemClusters:
    """Return process 0's clusters, with the rows of this process's slice; without a shard, `clusters`."""
    if shard is None and clusters is not None:
        return clusters

    def cluster_rows() -> Tensor:
        assert clusters is not None
        return clusters.cluster_rows

    rows = distribute_rows(cluster_rows, shard, torch.int64)
    return ItemClusters(rows, int(broadcast_(torch.tensor(clusters.num_clusters if clusters else 0))))


def saved_clusters(weights: Mapping[str, Tensor]) -> dict[str, ItemClusters]:
    """Return the clusters by modality in the state dict of `ItemEmbeddings`."""
    prefix = "cluster_rows_"
    return {
        name: ItemClusters(rows, len(weights[f"clusters.{name}"]))
        for key, rows in weights.items()
        if key.startswith(prefix) and f"clusters.{(name := key.removeprefix(prefix))}" in weights
    }


def saved_bases(weights: Mapping[str, Tensor]) -> dict[str, ContentBasis]:
    """Return the bases by modality in the state dict of `ItemEmbeddings`, if they were inherited."""
    prefix = "directions_"
    return {
        (name := key.removeprefix(prefix)): ContentBasis(weights[f"mean_{name}"], tensor)
        for key, tensor in weights.items()
        if key.startswith(prefix)
    }


def _after_load(embeddings: ItemEmbeddings, _: object) -> None:
    """After a state dict is loaded, clear the cache and recompute the reverse order of links, not saved."""
    embeddings._cache = {}
    for name, table in embeddings.clusters.items():
        links = embeddings.cluster_links(name)
        embeddings._set_links(name, build_links(links.rows, links.weights, len(table)))
