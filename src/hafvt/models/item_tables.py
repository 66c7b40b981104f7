"""The vectors of all items as HAF-VT knows them: of ids learned, of pictures and titles frozen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hafvt.errors import HafvtError
from hafvt.features.catalogue import Catalogue, prepare_vectors

Made = TypeVar("Made")


class ItemTables(nn.Module):
    """One table per modality, and which items training met.

    Args:
        catalogue: the items.
        modalities: "id" and names of encoded features; None for all there are.
        id_width: of the learned vectors.
        id_scale: standard deviation of their entries at the start.
        content_width: see `prepare_vectors`.
        fused: adds learned projections of the frozen vectors to the ids' vectors.
        entered: makes such projections in any case, for `entering`.

    Attributes:
        modalities: their names, in order.
        widths: of their vectors.
        knowing: numbers of the modalities that know an item that training never met: all but its id, which
            content may speak for.
        learned: of each domain, and of all of them, the places in `met_items`.

    Raises:
        HafvtError: a modality is not encoded.
    """

    popularity: Tensor
    """(V',) how often training met each item that it met."""
    unmet: Tensor
    """(V,) which items training never met."""
    met_items: Tensor
    """(V',) the others."""
    met_number: Tensor
    """(V,) the place of each item among them."""

    def __init__(
        self,
        catalogue: Catalogue,
        modalities: tuple[str, ...] | None,
        id_width: int,
        id_scale: float,
        content_width: int,
        fused: bool,
        entered: bool,
    ) -> None:
        super().__init__()
        self.modalities = modalities or ("id", *sorted(catalogue.vectors))
        absent = [m for m in self.modalities if m != "id" and m not in catalogue.vectors]
        if absent:
            raise HafvtError(
                f"no features {', '.join(absent)}: encode them, or leave them out of --params.modalities"
            )
        met = ~catalogue.unmet
        self.all_met = bool(met.all())
        self.register_buffer("unmet", ~met, persistent=False)
        # Numbers, not a mask: how many there are is a shape then, and no graph is traced without shapes.
        self.register_buffer("met_items", met.nonzero()[:, 0], persistent=False)
        self.register_buffer("met_number", met.cumsum(0) - 1, persistent=False)
        self.register_buffer("popularity", catalogue.counts[met], persistent=False)
        before = F.pad(met.cumsum(0), (1, 0)).tolist()
        ends = [(d.start, d.stop) for d in catalogue.domains] + [(0, len(catalogue))]
        self.learned = [slice(before[start], before[stop]) for start, stop in ends]
        self.widths = []
        for modality in self.modalities:
            if modality == "id":
                self.ids = nn.Embedding(len(catalogue), id_width)
                nn.init.normal_(self.ids.weight, std=id_scale)
                self.widths.append(id_width)
            else:
                rows = prepare_vectors(catalogue.vectors[modality], catalogue, content_width)
                self.register_buffer(f"frozen_{modality}", rows, persistent=False)
                self.widths.append(rows.shape[1])
        self.fused = fused and "id" in self.modalities and len(self.modalities) > 1
        content = zip(self.modalities, self.widths, strict=True)
        self.project = nn.ModuleDict(
            {m: nn.Linear(w, id_width, bias=False) for m, w in content if m != "id"}
            if self.fused or entered
            else {}
        )
        for weight in self.project.parameters():  # content speaks as softly as ids at first
            nn.init.normal_(weight, std=id_scale)
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
        parts = [project(getattr(self, f"frozen_{name}")) for name, project in self.project.items()]
        if "id" in self.modalities:
            ids: Tensor = self.ids.weight
            parts.append(ids if self.all_met else ids.masked_fill(self.unmet[:, None], 0.0))
        total: Tensor = sum(parts[1:], parts[0])
        return total

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
        for name, project in self.project.items():
            rows = F.embedding(candidates, getattr(self, f"frozen_{name}"))
            adds[..., self.modalities.index(name)] = project(rows).norm(dim=2)
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
