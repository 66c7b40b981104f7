"""Selects the recommended items of one history under rules, from the scores of all items of a domain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from hafvt.data.attribute_values import ItemAttribute, read_attribute
from hafvt.data.conditions import items_that_meet
from hafvt.data.dataset import Bool, Int64
from hafvt.errors import HafvtError
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.item_vectors import VectorReader
from hafvt.inference.rerank import Calibration, Diversity, pool_size, rerank
from hafvt.inference.rules import Rules
from hafvt.inference.scorer import Float32
from hafvt.ops.top_k import top_k_columns


class ItemAttributes:
    """Reads the values of columns of a catalog once."""

    def __init__(self, catalog: ItemCatalog) -> None:
        self.catalog = catalog
        self._values: dict[str, ItemAttribute] = {}

    def values(self, name: str) -> ItemAttribute:
        """Return the values of a column.

        Raises:
            HafvtError: there is no such column.
        """
        if name not in self.catalog.table.columns:
            columns = ", ".join(self.catalog.table.columns[:50])
            raise HafvtError(f"no column {name[:80]!r} in the items table: choose from {columns}")
        if name not in self._values:
            self._values[name] = read_attribute(self.catalog.table[name])
        return self._values[name]


class Selector:
    """Selects the items of one domain under rules. A column is the index of an item in its domain.

    Args:
        attributes: of the catalog.
        read_vectors: returns the vectors of all items, for diversity.
        rules: the rules.
        domain: index of the domain.

    Raises:
        HafvtError: a condition or a column does not fit the items table.

    Attributes:
        unknown_ids: ids to allow or to pin that the catalog does not have.
    """

    def __init__(
        self, attributes: ItemAttributes, read_vectors: VectorReader, rules: Rules, domain: int
    ) -> None:
        catalog, items = attributes.catalog, attributes.catalog.domains[domain]
        self.rules, self.items = rules, items
        self.is_allowed: Bool = np.ones(len(items), dtype=np.bool_)
        if rules.where is not None:
            table = catalog.table[items.start : items.stop]
            self.is_allowed &= items_that_meet(table, rules.where).to_numpy()
        allowed, pinned = catalog.indices(rules.allow or ()), catalog.indices(i for _, i in rules.pin)
        if rules.allow is not None:
            is_listed = np.zeros(len(catalog), dtype=np.bool_)
            is_listed[allowed.indices] = True
            self.is_allowed &= is_listed[items.start : items.stop]
        self.unknown_ids = tuple(dict.fromkeys((*allowed.unknown_ids, *pinned.unknown_ids)))
        indices = {place: catalog.index_of(item_id) for place, item_id in rules.pin}
        self.pins = {
            place: index - items.start
            for place, index in indices.items()
            if index is not None and items.start <= index < items.stop
        }
        self.caps = [(attributes.values(name), count) for name, count in rules.max_per]
        self.calibrated = [(attributes.values(name), weight) for name, weight in rules.calibrate]
        self.read_vectors = read_vectors

    @property
    def scores_all_items(self) -> bool:
        """Whether the selection depends on more than the best items: re-ranking compares a large pool."""
        return bool(self.rules.diversity or self.calibrated)

    def select(
        self,
        scores: Float32,
        k: int,
        excluded: Int64,
        never: Int64,
        history: Int64,
        candidates: Int64 | None = None,
    ) -> Int64:
        """Return the columns of at most k items in the order in which they are recommended.

        Args:
            scores: (C,) of all items of the domain, or of candidates.
            k: the largest number of items.
            excluded: columns that are recommended at most where they are pinned.
            never: columns that are not recommended.
            history: item indices, of any domains.
            candidates: (C,) the columns of `scores`; None if these are all items.
        """
        not_pinned = set(never.tolist())
        pins = {place: c for place, c in self.pins.items() if place <= k and c not in not_pinned}
        is_allowed = self.is_allowed if candidates is None else self.is_allowed[candidates]
        allowed = np.where(is_allowed, scores, -np.inf)
        left_out = np.concatenate([excluded, never, np.array(list(pins.values()), dtype=np.int64)])
        if candidates is not None:
            left_out = np.flatnonzero(np.isin(candidates, left_out))
        num_free, size = k - len(pins), k
        choose: Callable[[list[int], int, list[int]], list[int]] = self._choose
        if self.scores_all_items:
            is_in_domain = (history >= self.items.start) & (history < self.items.stop)
            choose = partial(self._rerank, scores, history[is_in_domain])
            size = pool_size(k)
        while True:
            pool = top_k_columns(allowed, size, left_out)
            pool = pool if candidates is None else candidates[pool]
            chosen = choose(pool.tolist(), num_free, list(pins.values()))
            if len(chosen) == num_free or len(pool) < size or size >= len(scores):
                break
            size *= 4
        columns, free = list[int](), iter(chosen)
        for place in range(1, k + 1):
            column = pins.pop(place, None)
            column = next(free, None) if column is None else column
            if column is None:
                break
            columns.append(column)
        return np.array([*columns, *(pins[place] for place in sorted(pins))], dtype=np.int64)

    def _choose(self, pool: list[int], count: int, pins: list[int]) -> list[int]:
        """Return the first columns of a pool, at most `count`, that keep caps with the pinned ones."""
        if not self.caps:
            return pool[:count]
        chosen, counter = list[int](), CapCounter(self.caps, self.items.start, pins)
        for column in pool:
            if len(chosen) == count:
                break
            if counter.has_room(column):
                counter.add(column)
                chosen.append(column)
        return chosen

    def _rerank(
        self, scores: Float32, history: Int64, pool: list[int], count: int, pins: list[int]
    ) -> list[int]:
        """Return at most `count` columns of a pool, re-ranked, that keep caps with the pinned ones."""
        columns = np.array(pool + pins, dtype=np.int64)
        indices, counter = columns + self.items.start, CapCounter(self.caps, self.items.start, pins)
        penalties: list[Diversity | Calibration] = [
            Calibration(weight, values, history, indices) for values, weight in self.calibrated
        ]
        if self.rules.diversity:
            penalties.append(Diversity(self.rules.diversity, self.read_vectors(), indices))
        places = rerank(
            scores[columns],
            count,
            penalties,
            lambda place: counter.has_room(pool[place]),
            lambda place: counter.add(pool[place]),
            range(len(pool), len(columns)),
        )
        return [pool[place] for place in places]


class CapCounter:
    """Counts the values of recommended items, and which items may be added.

    Args:
        caps: values of the catalog's items, and the largest number of items of each value.
        start: index of the first item of the domain.
        columns: of items that are counted from the start.
    """

    def __init__(self, caps: Sequence[tuple[ItemAttribute, int]], start: int, columns: Sequence[int]) -> None:
        self.caps, self.start = caps, start
        self.counts: list[dict[int, int]] = [{} for _ in caps]
        for column in columns:
            self.add(column)

    def has_room(self, column: int) -> bool:
        """Return whether another item with the values of an item may be added."""
        return all(
            counts.get(value, 0) < limit
            for (values, limit), counts in zip(self.caps, self.counts, strict=True)
            for value in values.of_item(self.start + column)
        )

    def add(self, column: int) -> None:
        """Count an item."""
        for (values, _), counts in zip(self.caps, self.counts, strict=True):
            for value in values.of_item(self.start + column):
                counts[value] = counts.get(value, 0) + 1
