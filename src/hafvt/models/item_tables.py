"""The vectors of all items as HAF-VT knows them: of ids learned, of pictures and titles frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.errors import HafvtError
from hafvt.features.item_features import ItemFeatures, SimilarItems, Vectors, prepare_vectors
from hafvt.features.similarity import find_similar_items
from hafvt.ops.embedding import SparseLinks, add_weighted_rows, build_links, weighted_row_sums

Made = TypeVar("Made")


class ItemTables(nn.Module):
    """One table per modality, and which items training met.

    Args:
        catalog: the items.
        modalities: "id" and names of encoded features; None for all there are.
        id_width: of the learned vectors.
        id_scale: standard deviation of their entries at the start.
        content_width: see `prepare_vectors`.
        fused: adds learned projections of the frozen vectors to the ids' vectors.
        mixed: compares candidates by the frozen vectors, too, not by the ids' alone.
        shrinkage: of ids where `fused`, see `HafVtConfig.shrinkage`.
        near: adds, where `fused`, the ids of so many neighbors by each modality.
        sizes: adds, where `fused`, learned vectors of groups of such sizes by each modality.
        entered: makes such projections in any case, for `entering`.

    Attributes:
        content: names of the frozen ones, in order.
        modalities: names of those that candidates are compared by, in order.
        widths: of their vectors.
        knowing: numbers of the modalities that know an item that training never met: all but its id, which
            content may speak for.
        learned: of each domain, and of all of them, the places in `met_items`.

    Raises:
        HafvtError: a modality is not encoded, or not `mixed` leaves it without a say.
    """

    popularity: Tensor
    """(V',) how often training met each item that it met."""
    unmet: Tensor
    """(V,) which items training never met."""
    met_items: Tensor
    """(V',) the others."""
    met_number: Tensor
    """(V,) the place of each item among them."""
    known: Tensor
    """(V, 1) what an item's id counts: where content speaks too, the less, the rarer training met it."""
    left: Tensor
    """(V, 1) what is borrowed counts: the rest, or, for an item never met, the mean over training."""

    def __init__(
        self,
        catalog: ItemFeatures,
        modalities: tuple[str, ...] | None,
        id_width: int,
        id_scale: float,
        content_width: int,
        fused: bool,
        mixed: bool,
        shrinkage: float,
        near: int,
        sizes: tuple[int, ...],
        entered: bool,
    ) -> None:
        super().__init__()
        given = modalities or ("id", *sorted(catalog.vectors))
        self.content = tuple(name for name in given if name != "id")
        self.fused = fused and "id" in given and len(self.content) > 0
        if not (mixed or self.fused or given == ("id",)):
            raise HafvtError("mixed false leaves content without a say: it needs ids and --params.fused true")
        self.modalities = given if mixed else ("id",)
        absent = [name for name in self.content if name not in catalog.vectors]
        if absent:
            raise HafvtError(
                f"no features {', '.join(absent)}: encode them, or leave them out of --params.modalities"
            )
        met = catalog.is_trained
        self.all_met = bool(met.all())
        self.register_buffer("unmet", ~met, persistent=False)
        # Numbers, not a mask: how many there are is a shape then, and no graph is traced without shapes.
        self.register_buffer("met_items", met.nonzero()[:, 0], persistent=False)
        self.register_buffer("met_number", met.cumsum(0) - 1, persistent=False)
        self.register_buffer("popularity", catalog.train_counts[met], persistent=False)
        before = F.pad(met.cumsum(0), (1, 0)).tolist()
        ends = [(d.start, d.stop) for d in catalog.domains] + [(0, len(catalog))]
        self.learned = [slice(before[start], before[stop]) for start, stop in ends]
        widths = {"id": id_width}
        if "id" in given:
            self.ids = nn.Embedding(len(catalog), id_width)
            nn.init.normal_(self.ids.weight, std=id_scale)
        for name in self.content:
            rows = prepare_vectors(catalog.vectors[name], catalog, content_width)
            self.register_buffer(f"frozen_{name}", rows, persistent=False)
            widths[name] = rows.shape[1]
        self.widths = [widths[name] for name in self.modalities]
        self.near = near if self.fused else 0
        projected = self.content if self.fused or entered else ()
        self.project = nn.ModuleDict(
            {name: nn.Linear(widths[name], id_width, bias=False) for name in projected}
        )
        for weight in self.project.parameters():  # content speaks as softly as ids at first
            nn.init.normal_(weight, std=id_scale)
        counts = catalog.train_counts
        known = counts / (counts + shrinkage) if self.fused and shrinkage else met.float()
        self.register_buffer("known", known[:, None], persistent=False)
        # What is borrowed was learned at the weight that it has where training meets items, on average.
        left = torch.where(met, 1 - known, ((1 - known) * counts).sum() / counts.sum().clamp(min=1))
        self.register_buffer("left", left[:, None], persistent=False)
        self.groups = nn.ParameterDict()
        for name in self.project if self.fused else ():
            rows, present = getattr(self, f"frozen_{name}"), catalog.vectors[name].present
            similar_items = find_similar_items(
                Vectors(rows, present), counts, near, sizes, catalog.similar_items.get(name)
            )
            if near:
                self.link(
                    f"near_{name}",
                    build_links(similar_items.neighbors, similar_items.neighbor_weights, len(rows)),
                )
            if sizes:  # those without a vector get nothing of their groups
                weights = present[:, None].expand(similar_items.clusters.shape).float()
                self.link(
                    f"group_{name}", build_links(similar_items.clusters, weights, similar_items.num_clusters)
                )
                self.groups[name] = nn.Parameter(torch.zeros(similar_items.num_clusters, id_width))
        self.register_load_state_dict_post_hook(rebuild_reverse_links)  # type: ignore[no-untyped-call]
        self.knowing = [number for number, name in enumerate(self.modalities) if name != "id" or self.fused]
        self.held: dict[str, Any] = {}  # see `once`

    def table(self, modality: int) -> Tensor:
        """Returns the vectors of all items, (V, d)."""
        name = self.modalities[modality]
        if name != "id":
            frozen: Tensor = getattr(self, f"frozen_{name}")
            return frozen
        return self.entering() if self.fused else self.ids.weight

    def entering(self) -> Tensor:
        """Returns the sum of what is known of each item, (V, id_width): its id and what content adds.

        Of an item never met content alone.
        """
        return self.once("entering", self._entering)

    def _entering(self) -> Tensor:
        own = self.own()  # once: it is as large as the table
        total = own.clone() if self.project else own  # all the rest is added to it in place
        for name, project in self.project.items():
            total += project(getattr(self, f"frozen_{name}"))
            for table, over in self.lenders(name, own):
                total = add_weighted_rows(total, table, over, self.left)
        return total

    def lenders(self, name: str, own: Tensor) -> Iterator[tuple[Tensor, SparseLinks]]:
        """Yields the tables that a modality has items borrow from, and what they are linked to there.

        The ids, (V, id_width), of those that look or read most alike, and the vectors of groups.
        """
        if self.near:
            yield own, self.links(f"near_{name}")
        if name in self.groups:
            yield self.groups[name], self.links(f"group_{name}")

    def own(self) -> Tensor:
        """Returns what is told of each item by its id alone, zeros without ids, (V, id_width)."""
        return self.once("own", self._own)

    def _own(self) -> Tensor:
        if "id" in self.modalities:
            return self.ids.weight * self.known
        width = next(self.project.parameters()).shape[0]
        return self.known.new_zeros(len(self.known), width)

    def adds(self, name: str, items: Tensor) -> Tensor:
        """Returns what a modality adds to the ids of some items, (N,) -> (N, id_width).

        The projection of the frozen vectors, and, as much as an item's own id leaves, what is borrowed.
        """
        total: Tensor = self.project[name](getattr(self, f"frozen_{name}")[items])
        for table, over in self.lenders(name, self.own()):
            total = total + self.left[items] * weighted_row_sums(table, over.rows[items], over.weights[items])
        return total

    def link(self, name: str, over: SparseLinks) -> None:
        """Keeps links under a name, with the weights: on another processor some might be found otherwise."""
        for part, values in over._asdict().items():
            self.register_buffer(f"{part}_{name}", values, persistent=part in ("rows", "weights"))

    def links(self, name: str) -> SparseLinks:
        """Returns the links of that name."""
        return SparseLinks(*(getattr(self, f"{part}_{name}") for part in SparseLinks._fields))

    def compared(self, modality: int) -> Tensor:
        """Returns the vectors of all items as candidates, (V, d): learned ones count with unit length."""
        table = self.table(modality)
        return F.normalize(table, dim=1) if self.modalities[modality] == "id" else table

    def candidates(self) -> list[tuple[Tensor, Tensor]]:
        """Returns, per modality, `compared` and its rows of what training met, which softmaxes are over."""
        return self.once("candidates", self._candidates)

    def _candidates(self) -> list[tuple[Tensor, Tensor]]:
        tables = [self.compared(modality) for modality in range(len(self.modalities))]
        return [(table, table if self.all_met else table[self.met_items]) for table in tables]

    def history(self, modality: int, items: Tensor) -> Tensor:
        """Returns the vectors of a history's items, (B, T, d): an id that was never fitted counts as zero."""
        found = F.embedding(items, self.table(modality))
        if self.all_met or self.fused or self.modalities[modality] != "id":
            return found
        return found.masked_fill(self.unmet[items][..., None], 0.0)

    def added(self, candidates: Tensor) -> Tensor:
        """Returns which share of what content adds to the ids comes from which modality, (B, C) -> (B, C, M).

        By length; the shares sum to 1.
        """
        adds = candidates.new_zeros((*candidates.shape, len(self.modalities)), dtype=torch.float32)
        for name in self.project:
            added = self.adds(name, candidates.flatten()).norm(dim=1)
            adds[..., self.modalities.index(name)] = added.view(candidates.shape)
        return F.normalize(adds, p=1, dim=2)

    def once(self, name: str, make: Callable[[], Made]) -> Made:
        """Returns what is made of the weights, which in evaluation no longer change: it is made once then."""
        if self.training or torch.is_grad_enabled() or torch.compiler.is_exporting():
            return make()
        if self.held.get("on") != self.unmet.device:
            self.held = {"on": self.unmet.device}
        if name not in self.held:
            self.held[name] = make()
        found: Made = self.held[name]
        return found

    def train(self, mode: bool = True) -> ItemTables:
        """Switches between training and evaluation."""
        self.held = {}
        super().train(mode)
        return self


def saved_similarity(weights: Mapping[str, Tensor]) -> dict[str, SimilarItems]:
    """Returns, by modality, what items are linked to as the weights of a model's `items` have it."""
    count, found = len(weights.get("ids.weight", ())), {}
    projections = [key.split(".")[1] for key in weights if key.startswith("project.")]
    for name in projections:
        nothing = torch.zeros(count, 0)
        near = weights.get(f"rows_near_{name}", nothing.long())
        of_near = weights.get(f"weights_near_{name}", nothing)
        in_groups = weights.get(f"rows_group_{name}", nothing.long())
        found[name] = SimilarItems(near, of_near, in_groups, len(weights.get(f"groups.{name}", ())))
    return found


def rebuild_reverse_links(tables: ItemTables, _: object) -> None:
    """Makes the way back of links that were loaded."""
    for name in tables.project:
        for key, table in ((f"near_{name}", tables.unmet), (f"group_{name}", tables.groups.get(name))):
            if hasattr(tables, f"rows_{key}"):
                over = tables.links(key)
                tables.link(key, build_links(over.rows, over.weights, len(table)))
