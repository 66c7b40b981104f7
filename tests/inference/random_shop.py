"""A recommender of random scores over random items with attributes, for tests of rules."""

from __future__ import annotations

import numpy as np
import polars as pl

from hafvt.data.dataset import Domain
from hafvt.inference.catalog import ItemCatalog
from hafvt.inference.item_vectors import unit_vectors
from hafvt.inference.recommender import Recommender

BRANDS = ["acme", "zeta", "orb", None]
GENRES = ["tea", "cups", "pots"]


class RandomScorer:
    """Scores that depend on the history and the domain alone, many of them equal."""

    name, max_length, uses_times, can_explain, sequence_names, modalities = "random", 50, False, False, (), ()

    def __init__(self, domains: tuple[Domain, ...]) -> None:
        self.domains = domains

    def scores(self, items, lengths, domain, time=None):
        rows = [
            np.random.default_rng([domain, *row[:length]]).integers(12, size=len(self.domains[domain]))
            for row, length in zip(items, lengths, strict=True)
        ]
        return np.array(rows, dtype=np.float32)


def random_recommender(seed: int, sizes: tuple[int, ...] = (30, 20)) -> Recommender:
    """Returns a recommender of the domains d0, d1, ... of items i0, i1, ..., with vectors for some items."""
    random, stops, count = np.random.default_rng(seed), np.cumsum(sizes).tolist(), sum(sizes)
    domains = tuple(
        Domain(f"d{n}", stop - size, stop) for n, (size, stop) in enumerate(zip(sizes, stops, strict=True))
    )
    genres = [[g for g in GENRES if random.random() < 0.5] for _ in range(count)]
    table = pl.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(count)],
            "domain": [domain.name for domain in domains for _ in range(len(domain))],
            "title": [f"number {n}" for n in range(count)],
            "image": pl.Series([None] * count, dtype=pl.String),
            "brand": [BRANDS[n] for n in random.integers(4, size=count)],
            "price": [None if n == 0 else float(n) for n in random.integers(40, size=count)],
            "genres": genres,
            "tags": ["|".join(one) or None for one in genres],
        }
    )
    catalog = ItemCatalog(table, domains, random.integers(9, size=count), None)
    vectors = {
        name: unit_vectors(random.normal(size=(count, width)), random.random(count) < 0.8)
        for name, width in (("image", 3), ("title", 5))
    }
    return Recommender(RandomScorer(domains), catalog, (True,) * len(sizes), None, lambda: vectors)
